"""A collect that writes only what has changed leaves what one leaves that makes all rows anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from quick_cases import first_quick
from run_folder import RunFolder, make_run_folder

from batchgen.catalog import collect as collect_module
from batchgen.catalog import parts
from batchgen.catalog.collect import collect
from batchgen.catalog.frames import current_catalog
from batchgen.catalog.source import COLLECT_KEY, PARTS_KEY, are_together
from batchgen.durable import write_json
from batchgen.ledger.events import End
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading import bands
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.upkeep.repair import void_rows
from batchgen.paths import RunPaths, parse_journal
from batchgen.records import Attempt, Audit, Metric
from batchgen.runfile import read_run

ROWS, PART = 13, 5
SEEDS, STEPS = range(2), 10
ALIASES = {2: 1, 7: 1, 12: 9}
OWN = [row for row in range(ROWS) if row not in ALIASES]


class History:
    """A run folder to which things happen."""

    def __init__(self, folder: RunFolder, seed: int) -> None:
        self.folder, self.run = folder, folder.run
        self.random = np.random.default_rng(seed)
        self.number, self.task, self.restart = folder.submit(), 0, 0
        self.journals = [folder.journal(self.number)]

    def rows(self, most: int) -> list[int]:
        return self.random.choice(OWN, int(self.random.integers(1, most + 1)), False).tolist()

    def journal(self) -> JournalWriter:
        """The last one, or now and then one that may be fenced off."""
        late = self.random.random() < 0.2
        return self.journals[int(self.random.integers(len(self.journals))) if late else -1]

    def render(self, most: int = 3) -> None:
        journal = self.journal()
        for row in self.rows(most):
            self._commit(journal, row)

    def _commit(self, journal: JournalWriter, row: int) -> None:
        """Without media: a collect does not look at them."""
        commit = self.folder.commit_of(row, parse_journal(journal.path), None)
        assert commit.stats is not None
        seconds = replace(commit.stats.stages, denoise=float(self.random.random()))
        audit = Audit(float(self.random.integers(20, 40)), 0.5, busy=0.3, seconds=0.4, steps=4.0)
        audited = audit if self.random.random() < 0.3 else None
        stats = replace(commit.stats, stages=seconds, audit=audited)
        score = (Metric("score", f"{self.random.random()}"),) if self.random.random() < 0.3 else ()
        seed = int(self.random.integers(100)) if score else None
        journal.commit(replace(commit, stats=stats, metrics=score, seed=seed))

    def fail(self) -> None:
        journal = self.journal()
        for row in self.rows(2):
            self.folder.fail(journal, row)

    def submit(self) -> None:
        self.number, self.restart = self.folder.submit(), 0
        self.journals.append(self.folder.journal(self.number))

    def start_again(self) -> None:
        self.restart += 1
        attempt = Attempt(self.number, 0, self.restart, 0)
        fence_restart(self.run, attempt)
        self.journals.append(self.folder.journal(self.number, restart=self.restart))

    def void(self) -> None:
        for journal in self.journals:
            journal.end(End(reason="done"))
        self.number = void_rows(self.run, [(row, "media/x.png", "lost") for row in self.rows(2)])
        self.submit()

    def replan(self) -> None:
        """One row, and with it its aliases, has another key and other steps."""
        table = pq.read_table(self.run.plan)
        row, columns = self.rows(1)[0], table.to_pydict()
        key = f"{self.random.integers(2**60):016x}" * 4
        for each in [row, *(alias for alias, original in ALIASES.items() if original == row)]:
            columns["row_key"][each] = key
            columns["num_steps"][each] += 1
        self.folder.install_plan(pa.table(columns, schema=table.schema))
        self.folder.requests[row] = replace(self.folder.requests[row], row_key=key)

    def set_anew(self) -> None:
        """As a resume with other settings does."""
        header = read_run(self.run)
        other = {**header.config, "seed": int(self.random.integers(1000))}
        write_json(self.run.run_json, replace(header, config=other).to_json())

    def damage(self) -> None:
        """A part, or what is kept of one, is damaged, older, another's or gone."""
        number, other = self.random.integers(0, 3, 2)
        path = self.run.catalog_rows / parts.part_name(int(number))
        if kept := self.random.random() < 0.4:
            path = self.run.kept_rows(path.name)
        data = bytearray(path.read_bytes())
        if (kind := self.random.integers(4)) == 0:
            data[int(self.random.integers(len(data)))] ^= 1
            path.write_bytes(data)
        elif kind == 1 and kept:
            path.with_name(parts.part_name(int(other))).with_suffix(path.suffix).write_bytes(data)
        elif kind == 2:
            path.write_bytes(data[: len(data) // 2])
        elif number:  # without the first part nothing says what the catalog was made from
            path.unlink()

    def crash(self) -> None:
        """A collect is killed while it publishes."""
        self.render(len(OWN))
        left = [None] * int(self.random.integers(3))

        def at(name: str) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(collect_module, "failpoint", at)
            with suppress(KeyboardInterrupt):
                collect(self.run)

    def nothing(self) -> None:
        """Not a line more."""

    def step(self) -> None:
        often = [self.render] * 3 + [self.damage] * 2 + [self.crash, self.nothing, self.fail]
        seldom = [self.submit, self.start_again, self.void, self.replan, self.set_anew]
        self.random.choice([*often, *seldom])()


def collected(run: RunPaths) -> tuple[object, ...]:
    """All that a collect leaves, but for the time of day."""
    stats = [line.split(",", 1)[1] for line in run.time_stats.read_text().splitlines()]
    fidelity = run.catalog_fidelity
    audited = json.loads(fidelity.read_text()) if fidelity.exists() else None
    return current_catalog(run), pq.read_table(run.catalog_runs), stats, audited


def metadata(run: RunPaths) -> list[dict[bytes, bytes]]:
    """Of all parts, without the numbers of their collects."""
    found = [pq.read_schema(path).metadata for path in sorted(run.catalog_rows.iterdir())]
    assert are_together(found)
    numbers = (COLLECT_KEY, PARTS_KEY)
    return [{key: m[key] for key in m if key not in numbers} for m in found]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Small parts; yields how groups were made."""
    monkeypatch.setattr(parts, "PART_ROWS", PART)
    monkeypatch.setattr(parts, "GROUP_ROWS", 2)
    made: list[str] = []

    def spy(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def spied(*given: object) -> object:
            made.append(name)
            return real(*given)

        monkeypatch.setattr(owner, name, spied)

    spy(parts.PartMaker, "_fresh")
    spy(parts.PartMaker, "_mended")
    spy(parts, "outcome_rows")
    yield made


@pytest.mark.parametrize("seed", first_quick(SEEDS, 1))
def test_it_leaves_what_a_collect_of_all_rows_does(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Also where that one takes all rows in one band."""
    history = History(make_run_folder(tmp_path / "run", ROWS, ALIASES), seed)
    run, kept = history.run, 0
    collect(run)
    for step in range(STEPS):
        history.step()
        before = {path: path.stat().st_ino for path in run.catalog_rows.iterdir()}
        monkeypatch.setattr(bands, "BAND_ROWS", PART)
        collect(run)
        monkeypatch.setattr(bands, "BAND_ROWS", ROWS)
        kept += sum(path.stat().st_ino == inode for path, inode in before.items())
        copy = RunPaths(tmp_path / f"copy-{step}" / "run")
        shutil.copytree(run.root, copy.root, ignore=shutil.ignore_patterns("catalog"))
        collect(copy)
        for one, other in zip(collected(run), collected(copy), strict=True):
            assert one == other
        assert metadata(run) == metadata(copy)
    assert kept and {*small} == {"_fresh", "_mended", "outcome_rows"}, "all three ways were taken"


def test_only_parts_with_a_change_are_written(tmp_path: Path, small: list[str]) -> None:
    """And the first, which says so; nothing at all without a change."""
    folder = make_run_folder(tmp_path / "run", ROWS)
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
        collect(folder.run)
        folder.render(journal, 7)
        before = [path.stat().st_ino for path in sorted(folder.run.catalog_rows.iterdir())]
        small.clear()
        collect(folder.run)
    after = [path.stat().st_ino for path in sorted(folder.run.catalog_rows.iterdir())]
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, False, True]
    assert "_fresh" not in small
    assert small.count("outcome_rows") == 1, "of the group with the row"
    whole = [path.read_bytes() for path in sorted(folder.run.catalog_rows.iterdir())]
    collect(folder.run)
    assert [path.read_bytes() for path in sorted(folder.run.catalog_rows.iterdir())] == whole


def test_what_is_kept_and_says_that_it_is_encrypted_is_not_believed(tmp_path: Path) -> None:
    """As one changed bit may."""
    folder = make_run_folder(tmp_path / "run", 2)
    collect(folder.run)
    kept = folder.run.kept_rows(parts.part_name(0))
    data = bytearray(kept.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    kept.write_bytes(data)
    assert collect(folder.run).pending == 2


def test_a_link_to_parts_that_are_as_they_were_is_replaced_by_a_folder(tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "run", 2)
    collect(folder.run)
    rows = folder.run.catalog_rows
    rows.symlink_to(shutil.move(rows, tmp_path / "elsewhere"))
    collect(folder.run)
    assert not rows.is_symlink() and len(current_catalog(folder.run)) == 2


def test_a_row_that_a_replan_makes_an_alias_is_neither_lost_nor_counted_twice(
    tmp_path: Path,
) -> None:
    """An earlier row has its key now and is still to be rendered."""
    folder = make_run_folder(tmp_path / "run", 3)
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 1)
        folder.render(journal, 2)
    collect(folder.run)
    table = pq.read_table(folder.run.plan)
    columns = table.to_pydict()
    columns["row_key"][0], columns["alias_of"][2] = columns["row_key"][2], columns["row_id"][0]
    folder.install_plan(pa.table(columns, schema=table.schema))
    assert (found := collect(folder.run)).ok == 1 and found.pending == 2
    spent = pq.read_table(folder.run.catalog_runs).to_pylist()[0]
    assert (spent["rows_ok"], spent["useful_s"], spent["retried_s"]) == (1, 1.1, 1.1)


@pytest.mark.parametrize(("before", "now"), [(2, 3), (3, 2)])
def test_a_part_of_other_row_groups_is_made_anew(
    tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch, before: int, now: int
) -> None:
    folder = make_run_folder(tmp_path / "run", ROWS)
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
        monkeypatch.setattr(parts, "GROUP_ROWS", before)
        collect(folder.run)
        folder.render(journal, 7)
        monkeypatch.setattr(parts, "GROUP_ROWS", now)
        small.clear()
        collect(folder.run)
    assert "_mended" not in small
    status = current_catalog(folder.run)["status"].to_pylist()
    assert [row for row, name in enumerate(status) if name == "ok"] == [0, 7]
