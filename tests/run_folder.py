"""A run folder with real media and journals, and a process that renders into it.

`python tests/run_folder.py RUN SUBMISSION TASK RESTART ROW...` is such a process: it renders the
rows as a worker would, so that tests can kill it anywhere.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import warm

from batchgen.durable import write_json
from batchgen.ledger.events import AttemptHeader, End, Event, decode_line
from batchgen.ledger.intent import INTENT_UNSEEN_S
from batchgen.ledger.journal import JournalWriter, raw_lines
from batchgen.ledger.meter import Meter, Unmetered
from batchgen.media.publish import write_media
from batchgen.paths import RunPaths, parse_journal
from batchgen.records import Attempt, Commit, Media, RankSeconds, Rendered, RowStats, StageSeconds
from batchgen.regular import digest_regular
from batchgen.request import Request
from batchgen.runfile import RunFile, read_run

STAGES = StageSeconds(queue=0.5, encode=0.1, denoise=1.0, decode=0.2, d2h=0.01, write=0.02)


def make_request(row_index: int, format_name: str = "png") -> Request:
    """A request for one tiny frame."""
    return Request(
        row_index=row_index,
        row_id=f"row{row_index:04d}",
        row_key=hashlib.sha256(f"key {row_index}".encode()).hexdigest(),
        prompt=f"prompt {row_index}",
        negative_prompt="",
        seed=2**62 + row_index,
        width=16,
        height=8,
        num_frames=1,
        fps=16,
        num_steps=4,
        guidance_scale=5.0,
        guidance_scale_2=None,
        solver="unipc",
        sigma_shift=3.0,
        format=format_name,
        quality=8,
        cost_s=1.0,
    )


def render(request: Request) -> Rendered:
    """The pixels of a request: a function of its seed."""
    shape = (request.num_frames, request.height, request.width, 3)
    frames = np.random.default_rng(request.seed).integers(0, 256, shape, np.uint8)
    return Rendered(request, frames, RowStats(stages=STAGES, steps_total=8, steps_computed=8.0))


@dataclass(frozen=True, slots=True)
class Journal:
    """The events of one journal, and what could not be read."""

    events: tuple[Event, ...]
    bad_lines: tuple[int, ...]  # offsets of lines that are not the last one and still not whole
    torn_bytes: int  # of a last line without newline


def read_journal(path: Path, limit: int | None = None) -> Journal:
    """All events whose line ends at or before byte `limit`."""
    events: list[Event] = []
    bad: list[int] = []
    torn = 0
    for offset, line in raw_lines(path, limit):
        if not line.endswith(b"\n"):
            torn = len(line)
            continue
        try:
            events.append(decode_line(line))
        except ValueError:
            bad.append(offset)
    return Journal(tuple(events), tuple(bad), torn)


@dataclass
class GivenSeconds(Unmetered):
    """A meter that says what it is told to."""

    spent: RankSeconds

    def read(self) -> RankSeconds:
        return self.spent


@dataclass
class RunFolder:
    """A run folder and the few moves that the tests make in it."""

    run: RunPaths
    requests: list[Request]

    def submit(self, rows: Sequence[int] | None = None, shard: int = 0, **slurm: str | int) -> int:
        """Begin a submission of `rows` (all) as one shard, under these settings of a profile."""
        from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission

        index = np.arange(len(self.requests)) if rows is None else np.array(rows, np.int64)
        shards = np.full(len(index), shard, np.int32)
        chosen = SubmissionRows(index, shards, np.arange(len(index)))
        config = {"slurm": slurm} if slurm else {}
        return begin_submission(self.run, chosen, SubmissionInfo(config=config))

    def age(self) -> None:
        """Nothing was begun just now."""
        long_ago = time.time() - 2 * INTENT_UNSEEN_S
        for block in self.run.journal_blocks():
            os.utime(block, (long_ago, long_ago))

    def install_plan(self, table: pa.Table) -> None:
        """Another plan, with the header that says so."""
        pq.write_table(table, self.run.plan)
        digest, size = digest_regular(self.run.plan)
        new = replace(read_run(self.run), plan_sha256=digest, plan_bytes=size)
        write_json(self.run.run_json, new.to_json())

    def journal(
        self,
        submission: int,
        task: int = 0,
        restart: int = 0,
        replica: int = 0,
        host: str = "n1",
        meter: Meter | None = None,
        card: str = "",
    ) -> JournalWriter:
        attempt = Attempt(submission, task, restart, replica)
        header = AttemptHeader(attempt=attempt, host=host, device="cpu")
        journal = JournalWriter.open(self.run, header, meter)
        if card:
            journal.device("NVIDIA H100", card)
        return journal

    def render(self, journal: JournalWriter, row: int) -> Commit:
        """Start a row, write its media, commit it."""
        attempt, request = parse_journal(journal.path), self.requests[row]
        journal.start(row, request.row_id)
        media = write_media(render(request), self.run, attempt, len(self.requests))
        commit = self.commit_of(row, attempt, media)
        journal.commit(commit)
        return commit

    def fail(self, journal: JournalWriter, row: int, error: str = "boom") -> Commit:
        """Start a row and commit its failure."""
        journal.start(row, self.requests[row].row_id)
        commit = replace(
            self.commit_of(row, parse_journal(journal.path), None),
            status="failed",
            error_type="NonFiniteOutput",
            error=error,
            traceback="Traceback ...",
        )
        journal.commit(commit)
        return commit

    def commit_of(self, row: int, attempt: Attempt, media: Media | None) -> Commit:
        request = self.requests[row]
        now = time.time()
        return Commit(
            row_index=row,
            row_id=request.row_id,
            row_key=request.row_key,
            status="ok",
            attempt=attempt.tag,
            shard=attempt.task,
            host="n1",
            started=now - 1.5,
            ended=now,
            media=media,
            stats=RowStats(stages=STAGES, steps_total=8, steps_computed=8.0, device="cpu"),
        )

    def start_rank(
        self, submission: int, rows: Sequence[int], failpoint: str = "", restart: int = 0
    ) -> warm.Process:
        """Render `rows` in a process of its own, with a failpoint of `batchgen.failpoints`."""
        values = [self.run.root, submission, 0, restart, *rows]
        env = {"BATCHGEN_FAILPOINT": failpoint}
        return warm.start("run_folder", [*map(str, values)], env, heard=False)


def write_plan(
    run: RunPaths,
    requests: Sequence[Request],
    aliases: Mapping[int, int],
    extra: Mapping[str, Sequence[object]],
) -> None:
    """plan.parquet with every Request field, alias_of, bucket, tags and `extra` columns."""
    names = [field.name for field in fields(Request)]
    columns: dict[str, object] = {n: [getattr(r, n) for r in requests] for n in names}
    columns["guidance_scale_2"] = pa.array(columns["guidance_scale_2"], pa.float64())
    ids = [requests[aliases[n]].row_id if n in aliases else None for n in range(len(requests))]
    columns["alias_of"] = pa.array(ids, pa.string())
    columns["bucket"] = [str(request.bucket) for request in requests]
    columns["tags"] = pa.array([None] * len(requests), pa.string())
    columns |= extra
    run.root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), run.plan, row_group_size=1000)


def make_run_folder(
    root: Path,
    rows: int = 4,
    aliases: Mapping[int, int] | None = None,
    extra: Mapping[str, Sequence[object]] | None = None,
    format_name: str = "png",
) -> RunFolder:
    """A run folder with a synthetic plan: `aliases` are {row: original}."""
    aliases = aliases or {}
    requests = [make_request(row, format_name) for row in range(rows)]
    for row, original in aliases.items():
        same = requests[original]
        requests[row] = replace(same, row_index=row, row_id=requests[row].row_id)
    run = RunPaths(root)
    write_plan(run, requests, aliases, extra or {})
    header = RunFile(
        name=root.name,
        tag="",
        created=time.time(),
        rows=rows,
        unique_rows=rows - len(aliases),
        plan_id="plan-" + root.name,
        plan_sha256=digest_regular(run.plan)[0],
        plan_bytes=run.plan.stat().st_size,
        manifest="/nowhere/manifest.parquet",
        manifest_digest="0" * 64,
        key_context={},
        config={"name": root.name, "seed": 3},
        overrides=["seed=3"],
        versions={"torch": "2.13.0"},
    )
    write_json(run.run_json, header.to_json())
    return RunFolder(run, requests)


def die(
    run_folder: RunFolder,
    submission: int,
    *rows: int,
    host: str = "n1",
    alone: bool = False,
    restart: int = 0,
    task: int = 0,
    card: str = "",
) -> JournalWriter:
    """An attempt that starts some rows and is never heard of again."""
    journal = run_folder.journal(submission, task, restart, host=host, card=card)
    for row in rows:
        journal.start(row, f"row{row:04d}", alone)
    journal.close()
    return journal


def fail(
    run_folder: RunFolder, journal: JournalWriter, row: int, error: str = "RuntimeError"
) -> None:
    """Start a row and commit its failure, by any error."""
    journal.start(row, f"row{row:04d}")
    commit = run_folder.commit_of(row, parse_journal(journal.path), None)
    journal.commit(replace(commit, status="failed", error_type=error, error="boom"))


def main(root: str, *numbers: str) -> None:
    submission, task, restart, *rows = map(int, numbers)
    run_folder = RunFolder(
        RunPaths(Path(root)), [make_request(row) for row in range(max(rows) + 1)]
    )
    with run_folder.journal(submission, task, restart) as journal:
        journal.phase("load", 0.5)
        for row in rows:
            run_folder.render(journal, row)
        journal.end(End(reason="done"))


if __name__ == "__main__":
    main(*sys.argv[1:])
