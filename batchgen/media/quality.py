"""How far the pixels of one clip are from another's: PSNR and SSIM of uint8 frames.

Both take (frames, height, width, 3), the clip and its reference, of one shape."""

from __future__ import annotations

import math

import numpy as np

# Equal clips have an infinite PSNR, which neither JSON nor a mean can hold. 100 dB is a difference
# of 1 in one of 150,000 samples: whatever is nearer counts as equal.
MOST_DB = 100.0
_PEAK = 255.0
# Wang, Bovik, Sheikh, Simoncelli: "Image quality assessment: from error visibility to structural
# similarity", IEEE Trans. Image Processing 13(4), 2004: K1 = 0.01, K2 = 0.03
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_WINDOW, _SIGMA = 11, 1.5  # pixels
_LUMA = np.array([0.299, 0.587, 0.114])  # of ITU-R BT.601


def psnr(frames: np.ndarray, reference: np.ndarray) -> float:
    """`exact_psnr`, at most `MOST_DB`."""
    return min(MOST_DB, exact_psnr(frames, reference))


def exact_psnr(frames: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal to noise ratio in dB: 10 log10(255^2 / mean squared error), the mean over all
    samples of all frames in float64; infinite for equal clips. ValueError for clips of different
    shapes."""
    _check(frames, reference)
    errors = [
        np.mean((frame.astype(np.float64) - other) ** 2)
        for frame, other in zip(frames, reference, strict=True)
    ]
    error = float(np.mean(errors))
    return 10 * np.log10(_PEAK**2 / error).item() if error else math.inf


def ssim(frames: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004) of luma, in [-1, 1], 1.0 for equal clips: the mean
    over the windows that lie inside a frame, then over frames. A window is a Gaussian of 11 x 11
    pixels, or less where a frame is smaller. ValueError for clips of different shapes."""
    _check(frames, reference)
    similar = [_of_frame(a @ _LUMA, b @ _LUMA) for a, b in zip(frames, reference, strict=True)]
    return float(np.mean(similar))


def _check(frames: np.ndarray, reference: np.ndarray) -> None:
    if frames.shape != reference.shape:
        raise ValueError(f"clips of {frames.shape} and {reference.shape} cannot be compared")


def _of_frame(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x * mean_x
    var_y = _blur(y * y) - mean_y * mean_y
    cov = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x * mean_x + mean_y * mean_y + _C1)
    structure = (2 * cov + _C2) / (var_x + var_y + _C2)
    return float(np.mean(luminance * structure))


def _blur(image: np.ndarray) -> np.ndarray:
    """Weighted means of all windows inside (height, width), one axis after the other."""
    for _ in range(2):
        taps = _gaussian(min(_WINDOW, len(image)))
        inside = len(image) - len(taps) + 1
        means = np.zeros((inside, image.shape[1]))
        for at, weight in enumerate(taps):
            means += weight * image[at : at + inside]
        image = np.ascontiguousarray(means.T)
    return image


def _gaussian(size: int) -> np.ndarray:
    """Weights that add up to 1."""
    places = np.arange(size) - (size - 1) / 2
    bell = np.exp(-(places**2) / (2 * _SIGMA**2))
    weights: np.ndarray = bell / bell.sum()
    return weights
