"""PSNR and SSIM against values worked out by hand, and by scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from batchgen.media.quality import MOST_DB, psnr, ssim

LUMA = np.array([0.299, 0.587, 0.114])
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def grey(level: int, shape: tuple[int, ...] = (2, 16, 20, 3)) -> np.ndarray:
    return np.full(shape, level, np.uint8)


def noisy(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    clip = rng.integers(0, 256, shape, dtype=np.uint8)
    apart = rng.integers(-40, 41, shape)
    return clip, np.clip(clip.astype(int) + apart, 0, 255).astype(np.uint8)


def naive_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Of two frames (height, width, 3), window by window as the paper has it."""
    x, y = x @ LUMA, y @ LUMA
    square = np.arange(11) - 5
    bell = np.exp(-(square[:, None] ** 2 + square**2) / (2 * 1.5**2))
    weights, values = bell / bell.sum(), []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (z[top : top + 11, left : left + 11] for z in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + C1)
                * (2 * cov + C2)
                / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
            )
    return float(np.mean(values))


def test_equal_clips_are_as_near_as_it_gets() -> None:
    clip, _ = noisy(1, (3, 16, 20, 3))
    assert psnr(clip, clip.copy()) == MOST_DB
    assert ssim(clip, clip.copy()) == 1.0


def test_flat_clips_have_the_values_of_the_formulas() -> None:
    assert psnr(grey(10), grey(20)) == pytest.approx(20 * math.log10(25.5))
    assert psnr(grey(0), grey(255)) == 0.0
    assert ssim(grey(10), grey(20)) == pytest.approx((2 * 10 * 20 + C1) / (10**2 + 20**2 + C1))


def test_the_error_is_the_mean_over_all_frames() -> None:
    """One frame of four is 20 off: a mean squared error of 100, not a mean of decibels."""
    clip = grey(50, (4, 16, 16, 3))
    clip[2] = 70
    assert psnr(clip, grey(50, (4, 16, 16, 3))) == pytest.approx(20 * math.log10(255 / 10))


def test_a_single_sample_of_a_large_clip_is_told_apart_up_to_the_cap() -> None:
    clip = grey(9, (1, 200, 200, 3))
    clip[0, 0, 0, 0] = 10
    assert psnr(clip, grey(9, (1, 200, 200, 3))) == pytest.approx(
        20 * math.log10(255) + 10 * math.log10(120_000)
    )
    clip = grey(9, (1, 300, 300, 3))
    clip[0, 0, 0, 0] = 10
    assert psnr(clip, grey(9, (1, 300, 300, 3))) == MOST_DB


def test_values_of_scikit_image() -> None:
    """`peak_signal_noise_ratio` and, on luma, `structural_similarity` with gaussian_weights,
    sigma=1.5, use_sample_covariance=False, of scikit-image 0.26."""
    clip, other = noisy(7, (3, 24, 20, 3))
    assert psnr(other, clip) == pytest.approx(21.13012537870069)
    assert ssim(other, clip) == pytest.approx(0.9502876995351084)
    down, right = np.mgrid[:24, :20]
    ramp = np.stack([right * 12, down * 10, (right + down) * 5], -1)[None].astype(np.uint8)
    assert psnr(ramp // 2 + 30, ramp) == pytest.approx(15.995552255027176)
    assert ssim(ramp // 2 + 30, ramp) == pytest.approx(0.8229570776219818)


def test_windows_one_by_one_give_the_same() -> None:
    clip, other = noisy(3, (2, 13, 17, 3))
    assert ssim(clip, other) == pytest.approx(
        np.mean([naive_ssim(a, b) for a, b in zip(clip, other, strict=True)])
    )


def test_frames_smaller_than_a_window_are_compared_too() -> None:
    clip, other = noisy(4, (1, 8, 30, 3))
    assert ssim(clip, clip) == 1.0
    assert 0 < ssim(clip, other) < 1


def test_clips_of_different_shapes_are_refused() -> None:
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="cannot be compared"):
            metric(grey(1), grey(1, (2, 16, 16, 3)))
