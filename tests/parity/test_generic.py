"""The generic family: each row is what a call of the checkpoint's own pipeline returns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_engine import Keeper, ListSource, request, save_small, system
from toy_generic import GENERIC_TOYS, PARAMS, SET_PARAMS, pipeline_of

from batchgen import failpoints
from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import ModelSpec
from batchgen.engine.choose import choose_engine
from batchgen.engine.ranks.team import Alone
from batchgen.errors import OutOfMemory, WrongSize
from batchgen.request import Request

COMPARED = ("generic",)  # families
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers'
JOB = Path(__file__).parents[2] / "jobs" / "demo.yaml"


@dataclass(frozen=True)
class Case:
    """A checkpoint, rows for it, and what its call is given beside a row's columns."""

    model: ModelSpec
    folder: Path
    rows: list[Request]
    params: dict[str, Any]

    def draw(self, rows: list[Request] | None = None, **changes: Any) -> Keeper:
        choice = choose_engine(self.model, system(), local_rank=0, host="here")
        engine, kept = choice.load(lambda: None, Alone()), Keeper()
        source = ListSource(self.rows if rows is None else rows)
        kept.report = engine.render(
            source,
            kept,
            **({"stop": lambda: False, "moved": lambda: None, "clock": None} | changes),
        )
        return kept


def images() -> list[Request]:
    """Mixed steps, guidances, sizes and texts."""
    return [
        request(
            i,
            prompt=f"a red cat runs {i}",
            negative_prompt=("", "small tree")[i % 2],
            num_steps=2 + i,
            guidance_scale=(4.5, 1.0, 2.0)[i % 3],
            width=(64, 96)[i % 2],
            height=64,
            num_frames=1,
            solver="own",
        )
        for i in range(4)
    ]


@pytest.fixture(scope="module", params=[*sorted(GENERIC_TOYS), "wan"])
def case(
    request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "wan":  # a clip, by a pipeline that has a family, too
        save_small(folder)
        rows = [replace(row, num_frames=5, negative_prompt="n") for row in images()]
        overrides, params = ("model=generic",), {}
    else:
        GENERIC_TOYS[request.param](folder)
        rows, overrides, params = images(), ("model=auto", *SET_PARAMS), dict(PARAMS)
    model = compose_job(JOB, [*overrides, f"model.weights={folder}"]).config.model
    return Case(model, folder, rows, params)


def test_rows_equal_a_call_of_the_pipeline(case: Case) -> None:
    """Alone, and whatever was drawn before."""
    kept, pipeline = case.draw(), pipeline_of(case.folder)
    assert kept.errors == {}
    for row in case.rows:
        length = {"num_frames": row.num_frames} if row.num_frames > 1 else {}
        output = pipeline(
            row.prompt,
            negative_prompt=row.negative_prompt,
            num_inference_steps=row.num_steps,
            guidance_scale=row.guidance_scale,
            width=row.width,
            height=row.height,
            generator=torch.Generator().manual_seed(row.seed),
            **length,
            **case.params,
        )
        theirs = output.images if row.num_frames == 1 else (output.frames[0] * 255).round()
        assert np.array_equal(kept.frames[row.row_id], np.stack([*map(np.asarray, theirs)]))
        stats = kept.stats[row.row_id]
        assert stats.steps_computed == stats.steps_total == row.num_steps
    assert len({frames.tobytes() for frames in kept.frames.values()}) == len(case.rows)


@pytest.mark.parametrize("passes", [3, 6])
def test_a_stop_leaves_the_call_and_the_row_begins_anew(case: Case, passes: int) -> None:
    """Asked before each forward of a component: of an encoder, of a step."""
    asked, long = iter(range(10**6)), replace(case.rows[0], num_steps=50)
    kept = case.draw([long, case.rows[1]], stop=lambda: next(asked) >= passes)
    assert (kept.frames, kept.states, kept.errors) == ({}, {}, {})
    assert kept.report.rows_abandoned == 1 and next(asked) <= passes + 3
    assert kept.started_ids == ["row-0"]


@pytest.mark.parametrize(("points", "ok"), [("3", True), ("1,2", False)])
def test_out_of_memory_a_call_is_made_once_more(
    case: Case, points: str, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = case.draw(case.rows[:1]).frames["row-0"]
    monkeypatch.setattr(failpoints, "_passes", Counter())
    at = ",".join(f"memory.denoise:{number}:oom" for number in points.split(","))
    monkeypatch.setenv("BATCHGEN_FAILPOINT", at)
    kept = case.draw(case.rows[:2])
    if ok:
        assert np.array_equal(kept.frames["row-0"], whole)
    else:
        assert [*kept.frames] == ["row-1"] and isinstance(kept.errors["row-0"], OutOfMemory)
        assert str(kept.errors["row-0"]).startswith("the device is out of memory, tried free: ")
    assert {stats.memory_rung for stats in kept.stats.values()} == {"free"}


def test_a_row_that_the_call_refuses_or_rounds_fails_alone(case: Case) -> None:
    """The call of Wan rounds lengths, with a warning of its own."""
    bad = replace(case.rows[0], row_id="bad", width=65)
    if case.model.media == "video":
        bad = replace(case.rows[0], row_id="bad", num_frames=7)
    kept = case.draw([bad, case.rows[1]])
    assert set(kept.frames) == {"row-1"}
    if case.model.media == "video":
        assert isinstance(kept.errors["bad"], WrongSize)
        assert str(kept.errors["bad"]) == "asked for 64x64x7, the pipeline drew 64x64x5"
    else:
        assert kept.errors.keys() == {"bad"}
