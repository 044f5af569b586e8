"""The judge is right about true clips, strict about wrong ones, silent about what is not named."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from quick_cases import first_quick

from batchgen.tiny import data
from batchgen.tiny.evaluate import summarise, to_uint8
from batchgen.tiny.score import Attributes, look, parse, score


def _clips(count: int, seed: int, **size: int) -> tuple[list[np.ndarray], list[data.Scene]]:  # type: ignore[type-arg]
    clips, scenes = data.sample_clips(
        count, torch.Generator().manual_seed(seed), split="all", **size
    )
    return to_uint8(clips), scenes


def _say(scene: data.Scene) -> str:
    return f"a {scene.colour} {scene.shape} {scene.motion} on a {scene.background} background"


@pytest.mark.parametrize(
    "size",
    first_quick(
        [
            {"frames": 9, "height": 64, "width": 64},
            {"frames": 2, "height": 64, "width": 112},
            {"frames": 17, "height": 96, "width": 96},
            {"frames": 33, "height": 80, "width": 48},
        ],
        2,
    ),
    ids=str,
)
def test_right_on_true_clips_of_any_size(size: dict[str, int]) -> None:
    clips, scenes = _clips(100, 11, **size)
    accuracy = summarise([score(c, _say(s)) for c, s in zip(clips, scenes, strict=True)])
    assert min(accuracy.colour, accuracy.shape, accuracy.motion, accuracy.background) >= 0.99


def test_near_chance_on_shuffled_captions() -> None:
    clips, scenes = _clips(400, 12)
    shuffled = scenes[1:] + scenes[:1]
    accuracy = summarise([score(c, _say(s)) for c, s in zip(clips, shuffled, strict=True)])
    assert accuracy.colour == pytest.approx(1 / 8, abs=0.06)
    assert accuracy.shape == pytest.approx(1 / 4, abs=0.08)
    assert accuracy.motion == pytest.approx(1 / 6, abs=0.07)
    assert accuracy.background == pytest.approx(1 / 3, abs=0.08)


def test_an_image_is_judged_without_its_motion() -> None:
    clips, scenes = _clips(100, 13)
    for clip, scene in zip(clips, scenes, strict=True):
        verdict = score(clip[-1:], _say(scene))
        assert verdict.motion is None
        assert verdict.fraction == 1.0


def test_survives_noise() -> None:
    clips, scenes = _clips(150, 14)
    random = np.random.default_rng(0)
    noisy = [np.clip(c + random.normal(0, 8, c.shape), 0, 255).astype(np.uint8) for c in clips]
    accuracy = summarise([score(c, _say(s)) for c, s in zip(noisy, scenes, strict=True)])
    assert accuracy.everything >= 0.97


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((9, 64, 64, 3), np.uint8),
        np.random.default_rng(1).integers(0, 256, (9, 64, 64, 3), np.uint8),
        np.full((1, 8, 8, 3), 255, np.uint8),
    ],
    ids=["black", "noise", "white"],
)
def test_pictures_without_a_shape_get_no_credit_for_one(frames: np.ndarray) -> None:  # type: ignore[type-arg]
    seen = look(frames)
    assert seen.shape is None or seen.colour is None
    assert (score(frames, "a red circle moving left").fraction or 0) == 0


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "a red circle moving left on a black background",
            Attributes("red", "circle", "left", "black"),
        ),
        ("Grey backdrop; a VIOLET hoop rises", Attributes("purple", "ring", "up", "gray")),
        ("a blue ball falling, navy blue background", Attributes("blue", "circle", "down", "navy")),
        ("on navy, the square grows in place", Attributes(None, "square", "growing", "navy")),
        ("something yellow that does not move", Attributes("yellow", None, "still", None)),
        ("a triangle on a white background", Attributes(None, "triangle", None, None)),
        ("a black circle", Attributes(None, "circle", None, None)),
        ("left-moving orange donut!", Attributes("orange", "ring", "left", None)),
        ("a cat plays chess 🙂", Attributes()),
        ("", Attributes()),
    ],
)
def test_parse_any_phrasing(prompt: str, expected: Attributes) -> None:
    assert parse(prompt) == expected


def test_only_what_the_prompt_names_counts() -> None:
    clips, scenes = _clips(1, 15)
    assert score(clips[0], "a cat plays chess").fraction is None
    assert score(clips[0], f"a {scenes[0].shape}").fraction == 1.0
    wrong = "square" if scenes[0].shape != "square" else "ring"
    assert score(clips[0], f"a {scenes[0].colour} {wrong}").fraction == 0.5


def test_judge_needs_no_torch() -> None:
    code = "import sys, batchgen.tiny.score; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
