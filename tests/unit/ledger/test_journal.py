"""The journal: one mapping between events and lines, one commit point, tolerant readers."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_folder import STAGES, RunFolder, read_journal

from batchgen.errors import RunStateError, StorageError
from batchgen.ledger import events
from batchgen.ledger.counts import read_counters
from batchgen.ledger.journal import whole_length
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Audit, Commit, Media, Metric, RowStats

COMMIT = Commit(
    row_index=3,
    row_id="row-3",
    row_key="ab" * 32,
    status="ok",
    attempt="s1t0r0p0",
    shard=0,
    host="n1",
    started=10.25,
    ended=12.5,
    tries=2,
    media=Media("media/a.mp4", "cd" * 32, 1234, "ef" * 32, 9),
    stats=RowStats(stages=STAGES, steps_total=8, prompt_truncated=True, device="cpu"),
    seed=2**62,
    metrics=(Metric("score", "0.75"), Metric("reference_psnr", "inf")),
    judge_notes="a judge: skipped: ☃",
)
EVENTS: list[events.Event] = [
    events.AttemptHeader(
        attempt=Attempt(1, 2, 3, 4),
        rank=1,
        world_size=2,
        host="node",
        device="cpu",
        versions=(("numpy", "2.0"), ("torch", "2.13")),
        process=ProcessId("node", 77, "boot pid:[1]", 9),
        t=1.5,
    ),
    events.Start(3, "row-3", 2.5),
    events.Start(3, "row-3", 2.5, alone=True),
    events.Saved(3, 17, 4.25, 2.75),
    events.Tried(3, 4.25, "RuntimeError", 2.75),
    events.Device("NVIDIA H100", 2.0),
    events.Signalled("SIGTERM", 2.25),
    events.Phase("load", 12.25, 3.5),
    COMMIT,
    Commit(4, "r", "00" * 32, "failed", "s1t0r0p0", 0, "n", 1.0, 2.0, error="☃ \0\n"),
    events.Void(3, "media/a.mp4", "sha256: differs", 4.5),
    events.End(reason="done", busy_s=1.0, forwards=9, t=5.5),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_survives_the_round_trip(event: events.Event) -> None:
    line = events.encode_line(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert events.decode_line(line) == event
    assert line.startswith(b'{"kind":"%b",' % json.loads(line)["kind"].encode())


def test_any_changed_byte_of_a_line_is_noticed() -> None:
    line = events.encode_line(COMMIT)
    for place in range(len(line) - 1):
        spoiled = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
        with pytest.raises(ValueError, match="torn"):
            events.decode_line(spoiled)


def test_what_json_cannot_hold_is_recorded_all_the_same() -> None:
    """Lone surrogates in an error's text, and what is not a number."""
    stats = RowStats(audit=Audit(psnr=math.nan))
    commit = Commit(1, "r", "k", "failed", "a", 0, "n", 1.0, 2.0, error="\ud800", stats=stats)
    back = events.decode_line(events.encode_line(commit))
    assert isinstance(back, Commit)
    assert back.error == "\\ud800"
    assert back.stats is not None
    assert back.stats.audit == Audit()


def test_a_reader_takes_lines_of_later_versions_and_of_earlier_ones() -> None:
    """An unknown field is ignored; an absent one takes its default."""
    plain = {"reason": "done", "busy_s": 1.0, "t": 2.0, "invented_later": [1]}
    assert events.from_plain(events.End, plain) == events.End(reason="done", busy_s=1.0, t=2.0)
    with pytest.raises(ValueError, match="reason"):
        events.from_plain(events.End, {"t": 2.0})


def test_a_journal_reads_back_as_written(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        journal.phase("load", 1.0)
        committed = [run_folder.render(journal, 0), run_folder.fail(journal, 1)]
        journal.end(events.End(reason="done"))
    content = read_journal(journal.path)
    kinds = [type(event).__name__ for event in content.events]
    assert kinds == ["AttemptHeader", "Phase", "Start", "Commit", "Start", "Commit", "End"]
    assert [e for e in content.events if isinstance(e, Commit)] == committed
    assert (content.bad_lines, content.torn_bytes) == ((), 0)


def test_a_torn_last_line_is_ignored_and_one_in_the_middle_is_told(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(3)
    journal = run_folder.journal(run_folder.submit())
    for row in range(3):
        run_folder.render(journal, row)
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-10])
    content = read_journal(journal.path)
    commits = [e.row_index for e in content.events if isinstance(e, Commit)]
    assert commits == [0, 1]
    assert content.torn_bytes > 0
    assert content.bad_lines == ()
    place = whole.index(b'"row_id":"row0001"', whole.index(b'{"kind":"commit","row_index":1'))
    journal.path.write_bytes(whole[:place] + b"\0" * 10 + whole[place + 10 :])
    content = read_journal(journal.path)
    assert [e.row_index for e in content.events if isinstance(e, Commit)] == [0, 2]
    begin = whole.index(b'{"kind":"commit","row_index":1')
    assert content.bad_lines == (begin,)


@pytest.mark.parametrize("kind", ["attempt", "device", "start", "saved", "phase", "commit", "end"])
@pytest.mark.parametrize("counted", [True, False])
def test_readers_outlive_a_damaged_line_of_any_kind(
    kind: str, counted: bool, make_run_folder: Callable[..., RunFolder]
) -> None:
    """Zeros where the storage lost a page: that line is gone, the others count."""
    from batchgen import catalog
    from batchgen.catalog.collect import collect
    from batchgen.ledger.status import read_status

    run_folder = make_run_folder(1)
    with run_folder.journal(run_folder.submit()) as journal:
        journal.device("gpu")
        journal.phase("load", 1.0)
        journal.saved(0, 1, 0.5)
        run_folder.render(journal, 0)
        journal.end(events.End(reason="done"))
    lines = journal.path.read_bytes().splitlines(keepends=True)
    place = next(
        n for n, line in enumerate(lines) if line.startswith(b'{"kind":"%b"' % kind.encode())
    )
    lines[place] = lines[place][:30] + b"\0" * (len(lines[place]) - 31) + b"\n"
    journal.path.write_bytes(b"".join(lines))
    if not counted:
        run_folder.run.counters(Attempt(1, 0, 0, 0)).unlink()
    survives = kind != "commit"
    assert collect(run_folder.run).ok == survives
    assert catalog.snapshot(run_folder.run.root)["status"].tolist() == [
        "ok" if survives else "pending"
    ]
    if not counted:  # counters were right when they were written; only the journal is damaged
        assert read_status(run_folder.run).ok == survives


def test_a_limit_cuts_at_whole_lines(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
        limit = journal.path.stat().st_size
        run_folder.render(journal, 1)
    rows = [e.row_index for e in read_journal(journal.path, limit).events if isinstance(e, Commit)]
    assert rows == [0]
    one_less = read_journal(journal.path, limit - 1).events
    assert not [e for e in one_less if isinstance(e, Commit)]


def test_a_zero_length_journal_is_empty(make_run_folder: Callable[..., RunFolder]) -> None:
    """A crash between the making of the file and its first line."""
    run_folder = make_run_folder(1)
    path = run_folder.run.journal(Attempt(run_folder.submit(), 0, 0, 0))
    path.parent.mkdir(parents=True)
    path.touch()
    from batchgen.catalog.collect import collect
    from batchgen.ledger.status import read_status

    assert read_journal(path).events == ()
    assert whole_length(path) == 0
    assert read_status(run_folder.run).attempts[0].life == "dead"
    assert collect(run_folder.run).pending == 1
    assert run_folder.submit() == 2


def test_a_file_that_no_attempt_writes_is_left_alone(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Somebody's copy of a journal beside it must neither count nor be in the way."""
    from batchgen.ledger.status import read_status

    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
    journal.path.with_name("0-r0-0 copy.jsonl").write_bytes(journal.path.read_bytes())
    assert read_status(run_folder.run).ok == 1
    assert len(read_status(run_folder.run).attempts) == 1


def test_numpys_numbers_are_written_as_numbers() -> None:
    """A seed or a row index may come straight out of an array."""
    commit = replace(COMMIT, row_index=np.int64(3), started=np.float32(0.5), shard=np.int32(2))
    assert events.decode_line(events.encode_line(commit)) == replace(COMMIT, started=0.5, shard=2)


def test_whole_length_looks_back_over_a_long_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"abc\n" + b"x" * 200_000)
    assert whole_length(path) == 4


def test_an_attempt_starts_only_once(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(1)
    number = run_folder.submit()
    run_folder.journal(number).close()
    with pytest.raises(RunStateError, match="s1t0r0p0 was started before"):
        run_folder.journal(number)


def test_a_failed_append_leaves_whole_lines_and_stops_the_journal(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up in the middle of a line: the half line is cut off again."""
    run_folder = make_run_folder(3)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    before = journal.path.read_bytes()
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "journal.torn:*:enospc")
    with pytest.raises(StorageError, match=r"0-r0-0\.jsonl.*No space left"):
        journal.commit(COMMIT)
    monkeypatch.delenv("BATCHGEN_FAILPOINT")
    assert journal.path.read_bytes() == before
    with pytest.raises(StorageError, match="No space left"):
        journal.start(2, "row0002")
    journal.close()
    assert read_journal(journal.path).torn_bytes == 0


def test_threads_do_not_mix_their_lines(make_run_folder: Callable[..., RunFolder]) -> None:
    """Starts come from the engine's thread while commits come from another."""
    run_folder = make_run_folder(200)
    journal = run_folder.journal(run_folder.submit())

    def start() -> None:
        for request in run_folder.requests:
            journal.start(request.row_index, request.row_id)

    thread = threading.Thread(target=start)
    thread.start()
    for row in range(200):
        journal.commit(run_folder.commit_of(row, Attempt(1, 0, 0, 0), COMMIT.media))
    thread.join()
    journal.close()
    content = read_journal(journal.path)
    assert len(content.events) == 401
    counters = read_counters(run_folder.run.counters(Attempt(1, 0, 0, 0)))
    assert counters is not None
    assert counters.offset == journal.path.stat().st_size
    assert (counters.commits, counters.changes.ok) == (200, 200)


def test_counters_that_cannot_be_written_do_not_stop_the_journal(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """They are a short cut for readers; the journal says all."""
    run_folder = make_run_folder(1)
    journal = run_folder.journal(run_folder.submit())
    shutil.rmtree(run_folder.run.counters_dir)
    run_folder.run.counters_dir.touch()
    run_folder.render(journal, 0)
    journal.close()
    assert len(read_journal(journal.path).events) == 3
