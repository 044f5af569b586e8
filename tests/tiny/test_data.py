"""The generated clips: reproducible, complete, inside the canvas, true to the held-out split."""

from __future__ import annotations

import pytest
import torch

from batchgen.tiny import data
from batchgen.tiny.domain import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, is_held_out
from batchgen.tiny.score import Attributes, parse


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_seed_gives_the_same_clips_and_captions() -> None:
    clips, scenes = data.sample_clips(8, _seeded())
    again, scenes_again = data.sample_clips(8, _seeded())
    assert torch.equal(clips, again)
    assert scenes == scenes_again
    assert [data.caption(s, _seeded(3)) for s in scenes] == [
        data.caption(s, _seeded(3)) for s in scenes
    ]


def test_clips_have_the_asked_shape_and_range() -> None:
    clips, _ = data.sample_clips(3, _seeded(), frames=5, height=48, width=80)
    assert clips.shape == (3, 3, 5, 48, 80)
    assert clips.min() >= -1 and clips.max() <= 1


def test_edges_are_soft() -> None:
    scenes = [data.Scene("white", "circle", "still", "black")]
    _, cover = data.render(scenes, data.sample_layout(scenes, _seeded()), data.frame_times(1, 1))
    assert ((cover > 0.1) & (cover < 0.9)).sum() > 10


def test_shapes_stay_inside_the_canvas() -> None:
    scenes = data.sample_scenes(300, _seeded(), "all")
    _, cover = data.render(scenes, data.sample_layout(scenes, _seeded(1)), data.frame_times(300, 3))
    border = torch.cat(
        [cover[..., 0, :], cover[..., -1, :], cover[..., :, 0], cover[..., :, -1]], -1
    )
    assert border.max() < 0.5, "more than a soft edge touches the border"


def test_training_never_draws_a_held_out_combination() -> None:
    drawn = {(s.colour, s.shape, s.motion) for s in data.sample_scenes(5000, _seeded(), "train")}
    held = {(s.colour, s.shape, s.motion) for s in data.sample_scenes(2000, _seeded(), "held_out")}
    assert not any(is_held_out(*c) for c in drawn)
    assert all(is_held_out(*c) for c in held)
    assert drawn.isdisjoint(held)


def test_about_an_eighth_is_held_out_and_training_still_meets_every_word() -> None:
    total = len(COLOURS) * len(SHAPES) * len(MOTIONS)
    held = {(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS if is_held_out(c, s, m)}
    assert total / 14 < len(held) < total / 5
    scenes = data.sample_scenes(5000, _seeded(), "train")
    assert {s.colour for s in scenes} == set(COLOURS)
    assert {s.shape for s in scenes} == set(SHAPES)
    assert {s.motion for s in scenes} == set(MOTIONS)
    assert {s.background for s in scenes} == set(BACKGROUNDS)


@pytest.mark.parametrize("seed", range(3))
def test_full_captions_name_exactly_the_scene(seed: int) -> None:
    generator = _seeded(seed)
    captions = set()
    for scene in data.sample_scenes(500, generator, "all"):
        text = data.caption(scene, generator)
        captions.add(text)
        assert parse(text) == Attributes(
            scene.colour, scene.shape, scene.motion, scene.background
        ), text
    assert len(captions) > 450


def test_partial_captions_never_contradict_the_scene() -> None:
    generator = _seeded()
    for scene in data.sample_scenes(300, generator, "all"):
        named = parse(data.caption(scene, generator, partial=1.0))
        for attribute in ("colour", "shape", "motion", "background"):
            assert getattr(named, attribute) in (None, getattr(scene, attribute))
