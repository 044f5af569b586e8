"""A plan, a list of shards or an intent that changed behind our back: one error that names the
file, or nothing at all has changed."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planned_run import PlannedRun, plan_run
from quick_cases import first_quick

from batchgen.catalog.collect import collect
from batchgen.catalog.verify import verify
from batchgen.durable import write_json
from batchgen.engine.contract import never
from batchgen.errors import RunStateError
from batchgen.ledger.intent import read_intent
from batchgen.ledger.submissions import read_shard, rows_of
from batchgen.paths import RunPaths
from batchgen.planfile import check_plan
from batchgen.planning.plan import read_requests
from batchgen.records import Attempt, RankInfo
from batchgen.request import Request
from batchgen.runfile import read_run
from batchgen.runner.resume import finish_replan, prepare_resume
from batchgen.runner.submit import submit
from batchgen.worker.admission import Admission
from batchgen.worker.source import RowStart, open_source
from batchgen.worker.states import RowStates

ROWS = 24
VERBS: dict[str, Callable[[RunPaths], object]] = {
    "submit": submit,
    "collect": collect,
    "verify": verify,
    "repair": lambda run: verify(run, repair=True),
    "resume": lambda run: prepare_resume(run, ["seed=9"], rerender_changed=True),
}


@pytest.fixture
def planned_run(tmp_path: Path) -> PlannedRun:
    """A run of the null engine with one submission that nobody has worked on."""
    made = plan_run(tmp_path, [2] * ROWS, "slurm.executor=inline")
    made.begin(range(ROWS))
    return made


def drawn(planned_run: PlannedRun) -> list[Request]:
    """What a rank of the submission would draw."""
    start = RowStart("node0", RowStates(planned_run.run, ROWS, "strict", "none"))
    rank = RankInfo(0, 1, 0, 0, 0, "node0")
    opened = open_source(
        planned_run.run, Attempt(1, 0, 0, 0), rank, Admission(None), start, never, 1
    )
    with opened as source:
        taken = []
        while more := source.take(100):
            taken += more
        return taken


def flips(path: Path, count: int) -> Iterator[int]:
    """The file with one bit another way, again and again; in the end as it was."""
    good, rng = path.read_bytes(), random.Random(5)
    for bit in rng.sample(range(8 * len(good)), count):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        yield bit
    path.write_bytes(good)


def older(run: RunPaths) -> None:
    """As a run was made before plans had a digest."""
    plain = read_run(run).to_json()
    del plain["plan_sha256"], plain["plan_bytes"]
    write_json(run.run_json, plain)


@pytest.mark.parametrize("bits", first_quick([100, 300], 1))
def test_a_rank_draws_the_very_same_requests_or_nothing(planned_run: PlannedRun, bits: int) -> None:
    good, refused = drawn(planned_run), 0
    assert [request.row_index for request in good] == list(range(ROWS))
    for bit in flips(planned_run.run.plan, bits):
        try:
            assert drawn(planned_run) == good, bit
        except RunStateError as error:
            assert "plan.parquet" in str(error), bit
            refused += 1
    assert refused > bits // 3
    assert drawn(planned_run) == good


@pytest.mark.parametrize("bits", first_quick([10, 30], 1))
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_plan_with_a_flipped_bit(
    planned_run: PlannedRun, verb: str, bits: int
) -> None:
    before = sorted(planned_run.run.root.rglob("*"))
    for _ in flips(planned_run.run.plan, bits):
        with pytest.raises(RunStateError, match=r"plan\.parquet is not the plan of this run: its"):
            VERBS[verb](planned_run.run)
    assert sorted(planned_run.run.root.rglob("*")) == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("digest", [True, False])
def test_another_runs_plan_is_refused(
    planned_run: PlannedRun, tmp_path: Path, verb: str, digest: bool
) -> None:
    other = plan_run(tmp_path / "other", [3] * ROWS)
    shutil.copy(other.run.plan, planned_run.run.plan)
    if not digest:
        older(planned_run.run)
    with pytest.raises(RunStateError, match=r"plan\.parquet is not the plan of this run"):
        VERBS[verb](planned_run.run)
    with pytest.raises(RunStateError, match=r"plan\.parquet is not the plan of this run"):
        drawn(planned_run)


@pytest.mark.parametrize("bits", first_quick([30, 60], 1))
def test_a_plan_without_digest_gives_one_error_or_is_read(
    planned_run: PlannedRun, bits: int
) -> None:
    older(planned_run.run)
    assert collect(planned_run.run).rows == ROWS
    refused = 0
    for _ in flips(planned_run.run.plan, bits):
        for verb in (collect, verify):
            try:
                verb(planned_run.run)
            except RunStateError as error:
                assert "plan.parquet" in str(error)
                refused += 1
    assert refused > bits // 3
    assert not verify(planned_run.run).damage


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 9, None])
def test_a_plan_that_is_none_is_refused_by_name(
    planned_run: PlannedRun, content: bytes | None
) -> None:
    planned_run.run.plan.unlink()
    if content is None:
        planned_run.run.plan.mkdir()
    else:
        planned_run.run.plan.write_bytes(content)
    for digest in (True, False):
        if not digest:
            older(planned_run.run)
        for verb in (*VERBS.values(), lambda _: drawn(planned_run)):
            with pytest.raises(RunStateError, match=r"plan\.parquet"):
                verb(planned_run.run)


def test_a_key_that_its_values_do_not_make_is_told_before_the_row_is_drawn(
    planned_run: PlannedRun,
) -> None:
    """Written by somebody who knew how: page and file are in order."""
    table = pq.read_table(planned_run.run.plan)
    seeds = table["seed"].to_pylist()
    seeds[3] += 1
    place = table.schema.get_field_index("seed")
    header = pq.read_metadata(planned_run.run.plan).metadata
    changed = table.set_column(place, "seed", pa.array(seeds)).replace_schema_metadata(header)
    pq.write_table(changed, planned_run.run.plan)
    size = planned_run.run.plan.stat().st_size
    write_json(
        planned_run.run.run_json, replace(read_run(planned_run.run), plan_bytes=size).to_json()
    )
    assert len(read_requests(planned_run.run.plan)) == ROWS
    with pytest.raises(RunStateError, match=r"plan\.parquet: row 'row-3' is damaged: its key is"):
        drawn(planned_run)


def test_a_cut_off_replan_is_told_and_finished_by_the_plan_that_is_there(
    planned_run: PlannedRun, tmp_path: Path
) -> None:
    """Between the two renames whoever holds the plan against run.json is told what to type, and a
    collect goes by the header that comes; a plan of neither is left alone."""
    run, other = planned_run.run, plan_run(tmp_path / "other", [3] * ROWS).run
    old = run.plan.read_bytes()
    shutil.copy(other.run_json, run.next_run_json)
    shutil.copy(other.plan, run.plan)
    with pytest.raises(RunStateError, match=r"was cut off: `batchgen resume` brings"):
        check_plan(run, read_run(run))
    assert collect(run).pending == ROWS
    run.plan.write_bytes(old[:-1])
    with pytest.raises(RunStateError, match=r"is not the plan of this run"):
        finish_replan(run)
    assert run.next_run_json.exists()
    run.plan.write_bytes(old)
    finish_replan(run)
    assert not run.next_run_json.exists()
    check_plan(run, read_run(run))
    shutil.copy(other.run_json, run.next_run_json)
    shutil.copy(other.plan, run.plan)
    finish_replan(run)
    assert read_run(run) == read_run(other)


def test_a_list_of_shards_gives_one_error_or_the_same_rows(planned_run: PlannedRun) -> None:
    path = planned_run.run.shards(1)
    good, refused = read_shard(planned_run.run, 1, 0).all.tolist(), 0
    for bit in flips(path, 200):
        try:
            assert set(read_shard(planned_run.run, 1, 0).all.tolist()) <= set(good), bit
            assert set(rows_of(planned_run.run, 1).tolist()) <= set(good), bit
        except RunStateError as error:
            assert "shards.parquet" in str(error), bit
            refused += 1
    assert refused > 50
    path.unlink()
    with pytest.raises(RunStateError, match=r"shards\.parquet: no list of shards"):
        read_shard(planned_run.run, 1, 0)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_that_the_plan_does_not_have_is_refused(planned_run: PlannedRun, row: int) -> None:
    path = planned_run.run.shards(1)
    table = pq.read_table(path)
    index = pa.array([row, *range(1, ROWS)], pa.int64())
    pq.write_table(table.set_column(0, table.schema.field(0), index), path)
    for read in (lambda: drawn(planned_run), lambda: rows_of(planned_run.run, 1)):
        with pytest.raises(RunStateError, match=rf"shards\.parquet: .* row_index {row} is not in"):
            read()


def test_an_intent_with_a_flipped_bit_is_refused_or_says_the_same(planned_run: PlannedRun) -> None:
    good, refused = read_intent(planned_run.run, 1), 0
    for bit in flips(planned_run.run.intent(1), 200):
        try:
            assert read_intent(planned_run.run, 1) == good, bit
        except RunStateError as error:
            assert re.search(r"intent\.json (cannot be read|is damaged)", str(error))
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "change", [[], "x", {"accepted": 3}, {"accepted": {"a": None}, "copies": 1}]
)
def test_an_intent_of_other_types_is_one_error(planned_run: PlannedRun, change: object) -> None:
    path = planned_run.run.intent(1)
    plain = json.loads(path.read_bytes())
    del plain["sha256"]
    path.write_text(json.dumps(plain | change if isinstance(change, dict) else change))
    with pytest.raises(RunStateError, match=r"intent\.json (cannot be read|is damaged)"):
        collect(planned_run.run)
