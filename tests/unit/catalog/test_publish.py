"""Several collects at once: the catalog never goes back, is never of two of them or of two plans,
and whoever was killed while it published keeps nobody from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folder import RunFolder

from batchgen import catalog
from batchgen.catalog import collect as catalog_module
from batchgen.catalog import parts as parts_module
from batchgen.catalog import turns
from batchgen.catalog.collect import collect
from batchgen.catalog.source import are_together
from batchgen.catalog.turns import Overtaken, turn_of
from batchgen.durable import write_json
from batchgen.errors import RunStateError
from batchgen.ledger.events import End
from batchgen.ledger.reading import plan_rows as rows_module
from batchgen.ledger.reading.plan_rows import read_plan_rows
from batchgen.ledger.upkeep import losses
from batchgen.ledger.upkeep.repair import void_rows
from batchgen.paths import RunPaths
from batchgen.planfile import open_parquet, own_parquet
from batchgen.processes import ProcessId
from batchgen.regular import digest_regular
from batchgen.runfile import RunFile, read_run


def statuses(run: RunPaths) -> str:
    """First letters, as anybody with pandas reads them."""
    return "".join(status[0] for status in pd.read_parquet(run.catalog_rows)["status"])


def is_whole(run: RunPaths) -> bool:
    """Whether the parts are those that the first one lists."""
    parts = sorted(run.catalog_rows.glob("*.parquet"))
    return are_together([pq.read_schema(part).metadata for part in parts])


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, once: Callable[[], object], reader: str = "bands_of"
) -> None:
    """Call `once` when the next collect (or what uses another `reader`) has read the ledger and has
    not published yet."""
    real = getattr(catalog_module, reader)
    left = [once]

    def late(run: RunPaths) -> object:
        found = real(run)
        if left:
            left.pop()()
        return found

    monkeypatch.setattr(catalog_module, reader, late)


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_an_older_collect_that_comes_last_starts_again(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    run_folder = make_run_folder(2)
    journal = run_folder.journal(run_folder.submit())
    if not first:
        collect(run_folder.run)

    def overtake() -> None:
        run_folder.render(journal, 0)
        assert collect(run_folder.run).ok == 1

    meanwhile(monkeypatch, overtake)
    summary = collect(run_folder.run)
    assert (summary.ok, summary.pending) == (1, 1)
    assert statuses(run_folder.run) == "op"
    assert [p.name for p in run_folder.run.catalog_rows.iterdir()] == ["part-00000.parquet"]


def header_for(run_folder: RunFolder, plan: Path, plan_id: str) -> RunFile:
    """The run's header with another plan."""
    size, digest = plan.stat().st_size, digest_regular(plan)[0]
    return replace(read_run(run_folder.run), plan_id=plan_id, plan_bytes=size, plan_sha256=digest)


def change_plan(run_folder: RunFolder, steps: int = 9) -> None:
    """As a replan does: other keys, another number of steps, a new header."""
    table = pq.read_table(run_folder.run.plan)
    keys = pa.array([f"{steps:064x}"] * len(table))
    table = table.set_column(table.column_names.index("row_key"), "row_key", keys)
    counts = pa.array([steps] * len(table))
    table = table.set_column(table.column_names.index("num_steps"), "num_steps", counts)
    draft = run_folder.run.root / ".plan-1.parquet"
    pq.write_table(table, draft)
    write_json(
        run_folder.run.next_run_json, header_for(run_folder, draft, f"plan-{steps}").to_json()
    )
    os.replace(draft, run_folder.run.plan)
    os.replace(run_folder.run.next_run_json, run_folder.run.run_json)


def test_a_replan_in_between_is_not_mixed_with_what_was_rendered_under_the_old_plan(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
    meanwhile(monkeypatch, lambda: change_plan(run_folder))
    assert collect(run_folder.run).pending == 2
    frame = pd.read_parquet(run_folder.run.catalog_rows)
    assert set(frame["num_steps"]) == {9} and set(frame["plan_id"]) == {"plan-9"}
    assert set(frame["status"]) == {"pending"}
    meanwhile(monkeypatch, lambda: change_plan(run_folder, 10), "winners")
    assert set(catalog.snapshot(run_folder.run.root)["num_steps"]) == {10}


def test_a_replan_while_parts_are_made_starts_it_again(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of another plan are where the old one's were: that is no damage."""
    run_folder, real = make_run_folder(2), parts_module.PartMaker._plan_rows
    left = [lambda: change_plan(run_folder)]

    def late(maker: parts_module.PartMaker, begin: int, end: int) -> pa.Table:
        if left:
            left.pop()()
        return real(maker, begin, end)

    monkeypatch.setattr(parts_module.PartMaker, "_plan_rows", late)
    assert collect(run_folder.run).pending == 2
    assert set(pd.read_parquet(run_folder.run.catalog_rows)["plan_id"]) == {"plan-9"}


def test_the_header_is_the_one_of_the_plan_while_a_replan_is_installed(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """A crash may leave it like this."""
    run_folder = make_run_folder(1)
    metadata = {b"batchgen": json.dumps({"plan_id": "new"}).encode()}
    table = pq.read_table(run_folder.run.plan).replace_schema_metadata(metadata)
    draft = run_folder.run.root / ".plan-1.parquet"
    pq.write_table(table, draft)
    write_json(run_folder.run.next_run_json, header_for(run_folder, draft, "new").to_json())
    collect(run_folder.run)
    assert set(pd.read_parquet(run_folder.run.catalog_rows)["plan_id"]) == {"plan-demo-1"}
    os.replace(draft, run_folder.run.plan)
    collect(run_folder.run)
    assert set(pd.read_parquet(run_folder.run.catalog_rows)["plan_id"]) == {"new"}


def test_a_ledger_that_lost_something_does_not_take_the_catalog_back(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "UNSEEN_S", 0.1)
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
        journal.end(End(reason="done"))
    collect(run_folder.run)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:100])
    with pytest.raises(RunStateError, match=r"jsonl has 100 bytes; it had \d+ .*verify"):
        collect(run_folder.run)
    assert statuses(run_folder.run) == "op"
    void_rows(run_folder.run, [(0, "media/x.png", "lost")])  # as a repair writes it off
    assert collect(run_folder.run).pending == 2


PARTS = """
import sys
from pathlib import Path
from batchgen.catalog import collect as catalog
from batchgen.paths import RunPaths
from batchgen.planfile import open_parquet, own_parquet
from batchgen.catalog import parts
parts.GROUP_ROWS = parts.PART_ROWS = 2
print(catalog.collect(RunPaths(Path(sys.argv[1]))).ok)
"""


def start_collect(run: RunPaths, failpoint: str = "") -> subprocess.Popen[bytes]:
    """Two rows a part."""
    return subprocess.Popen(
        [sys.executable, "-c", PARTS, str(run.root)],
        env={**os.environ, "BATCHGEN_FAILPOINT": failpoint},
    )


@pytest.fixture
def parts(make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of three parts that was collected, and has gone on since."""
    monkeypatch.setattr(parts_module, "GROUP_ROWS", 2)
    monkeypatch.setattr(parts_module, "PART_ROWS", 2)
    run_folder = make_run_folder(6)
    collect(run_folder.run)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 5)
    return run_folder


def test_a_collect_that_is_killed_between_two_parts_keeps_nobody_waiting(parts: RunFolder) -> None:
    assert start_collect(parts.run, "collect.before_part:2:kill").wait() == -signal.SIGKILL
    assert not is_whole(parts.run)
    began = time.monotonic()
    assert collect(parts.run).ok == 1
    assert time.monotonic() - began < turns.NAMELESS_S
    assert is_whole(parts.run) and statuses(parts.run) == "pppppo"


def test_a_collect_waits_while_another_one_publishes(parts: RunFolder) -> None:
    """One that is stopped between two parts, and goes on: the second has the last word."""
    slow = start_collect(parts.run, "collect.before_part:2:stop")
    assert os.waitpid(slow.pid, os.WUNTRACED)[1]
    with parts.journal(1, task=1) as journal:
        parts.render(journal, 4)
    second = threading.Thread(target=collect, args=[parts.run])
    second.start()
    second.join(0.5)
    assert second.is_alive() and not is_whole(parts.run)
    os.kill(slow.pid, signal.SIGCONT)
    second.join(60)
    assert slow.wait(60) == 0 and not second.is_alive()
    assert is_whole(parts.run) and statuses(parts.run) == "ppppoo"


def test_many_collects_at_once_leave_one_whole_catalog(parts: RunFolder) -> None:
    stop = threading.Event()
    seen: list[int] = []

    def look() -> None:
        while not stop.is_set():
            seen.append(statuses(parts.run).count("o"))

    reader = threading.Thread(target=look)
    reader.start()
    with parts.journal(1, task=1) as journal:
        for row in range(5):
            others = [threading.Thread(target=collect, args=[parts.run]) for _ in range(3)]
            for other in others:
                other.start()
            parts.render(journal, row)
            for other in others:
                other.join(60)
            assert is_whole(parts.run)
    collect(parts.run)
    stop.set()
    reader.join()
    assert statuses(parts.run) == "oooooo"
    hidden = [p.name for p in parts.run.catalog_rows.parent.iterdir() if p.name[0] == "."]
    assert hidden == [".turns"]
    assert len(list((parts.run.catalog_rows.parent / ".turns").iterdir())) == 1


def test_whoever_reads_a_plan_has_a_file_of_its_own(
    parts: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that read from one abort the process, now and then."""
    shared, opened = open_parquet(parts.run.plan), []

    def own(path: Path) -> pq.ParquetFile:
        opened.append(own_parquet(path))
        return opened[-1]

    monkeypatch.setattr(rows_module, "own_parquet", own)
    assert len(read_plan_rows(parts.run.plan).key) == len(read_plan_rows(parts.run.plan).key) == 6
    one, other = opened
    assert one is not other and shared not in opened


def test_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "turns"
    monkeypatch.setattr(turns, "PATIENCE_S", 0.1)
    holder = f"process {os.getpid()} on .* does not end"
    with turn_of(folder) as first:
        with pytest.raises(RunStateError, match=holder), turn_of(folder):
            raise AssertionError("two at once")
        first.check()
        gone = replace(ProcessId.current(), start=1)
        write_json(folder / "000001" / "holder.json", asdict(gone))
        with turn_of(folder) as second:
            with pytest.raises(Overtaken):
                first.check()
            first.end()  # of one that was believed dead: it ends nobody else's
            second.check()
            with pytest.raises(RunStateError), turn_of(folder):
                raise AssertionError("two at once")
    elsewhere = replace(ProcessId.current(), place="another machine")
    (folder / "000003").mkdir()
    write_json(folder / "000003" / "holder.json", asdict(elsewhere))
    with pytest.raises(RunStateError, match="does not end"), turn_of(folder):
        raise AssertionError("it may live")
    long_ago = time.time() - turns.ELSEWHERE_S - 10
    os.utime(folder / "000003", (long_ago, long_ago))
    with turn_of(folder) as fourth:
        assert fourth.number == 4
    (folder / "000005").mkdir()  # killed before it said its name
    os.utime(folder / "000005", (long_ago, long_ago))
    with turn_of(folder) as sixth:
        assert sixth.number == 6
    assert [path.name for path in folder.iterdir()] == ["000006"]
