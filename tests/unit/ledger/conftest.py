"""A small run folder with a real plan and real journals, shared by the tests of the ledger."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.ledger.attempts import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.events import AttemptHeader
from batchgen.ledger.journal import JournalWriter
from batchgen.media.durable import write_json, write_media
from batchgen.paths import RunPaths, parse_journal
from batchgen.records import Attempt, Commit, Media, Rendered, Request, RowStats, StageSeconds
from batchgen.runfile import RunFile

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


def frames_of(request: Request) -> np.ndarray:
    """The pixels of a request: a function of its seed."""
    shape = (request.num_frames, request.height, request.width, 3)
    return np.random.default_rng(request.seed).integers(0, 256, shape, np.uint8)


@dataclass
class Lab:
    """A run folder and the few moves that the tests make in it."""

    run: RunPaths
    requests: list[Request]

    def submit(self, rows: Sequence[int] | None = None, shard: int = 0) -> int:
        """Begin a submission of `rows` (all) as one shard."""
        index = np.arange(len(self.requests)) if rows is None else np.array(rows, np.int64)
        shards = np.full(len(index), shard, np.int32)
        chosen = SubmissionRows(index, shards, np.arange(len(index)))
        return begin_submission(self.run, chosen, SubmissionInfo())

    def journal(
        self, submission: int, task: int = 0, restart: int = 0, replica: int = 0, devices: int = 1
    ) -> JournalWriter:
        attempt = Attempt(submission, task, restart, replica)
        header = AttemptHeader(attempt=attempt, host="n1", device="cpu", devices=devices)
        return JournalWriter.open(self.run, header)

    def render(self, journal: JournalWriter, row: int) -> Commit:
        """Start a row, write its media, commit it."""
        attempt = attempt_of(journal)
        request = self.requests[row]
        journal.start(row, request.row_id)
        rendered = Rendered(request, frames_of(request), RowStats(stages=STAGES, steps_total=8))
        media = write_media(rendered, self.run, attempt, len(self.requests))
        commit = self.commit_of(row, attempt, media)
        journal.commit(commit)
        return commit

    def fail(self, journal: JournalWriter, row: int, error: str = "boom") -> Commit:
        """Start a row and commit its failure."""
        journal.start(row, self.requests[row].row_id)
        commit = replace(
            self.commit_of(row, attempt_of(journal), None),
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


def attempt_of(journal: JournalWriter) -> Attempt:
    """The attempt that a writer writes for."""
    return parse_journal(journal.path)


def write_plan(
    run: RunPaths,
    requests: Sequence[Request],
    aliases: Mapping[int, int],
    extra: Mapping[str, Sequence[object]],
) -> None:
    """plan.parquet with every Request field, alias_of, tags and `extra` columns."""
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


@pytest.fixture
def make_lab(tmp_path: Path) -> Callable[..., Lab]:
    """Factory: `make_lab(rows, aliases={row: original}, extra={column: values}, name=...)`."""

    def make(
        rows: int = 4,
        aliases: Mapping[int, int] | None = None,
        extra: Mapping[str, Sequence[object]] | None = None,
        name: str = "demo-1",
        format_name: str = "png",
    ) -> Lab:
        aliases = aliases or {}
        requests = [make_request(row, format_name) for row in range(rows)]
        for row, original in aliases.items():
            same = requests[original]
            requests[row] = replace(same, row_index=row, row_id=requests[row].row_id)
        run = RunPaths(tmp_path / name)
        write_plan(run, requests, aliases, extra or {})
        header = RunFile(
            name=name,
            tag="",
            created=time.time(),
            rows=rows,
            unique_rows=rows - len(aliases),
            plan_id="plan-" + name,
            manifest="/nowhere/manifest.parquet",
            manifest_digest="0" * 64,
            key_context={},
            config={"name": name, "seed": 3},
            overrides=["seed=3"],
            versions={"torch": "2.13.0"},
        )
        write_json(run.run_json, header.to_json())
        return Lab(run, requests)

    return make
