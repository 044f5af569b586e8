"""The journal of one attempt: one writer, append only, one line for each event.

A commit line is appended in one write and fsynced before `commit` returns; nothing else publishes
or fails a row. Beside the journal the writer keeps a small counters file for `status`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from batchgen.anchor import Anchor, gone, is_same
from batchgen.durable import make_folder, sync, sync_folder
from batchgen.errors import RunStateError, StorageError
from batchgen.failpoints import failpoint, is_armed
from batchgen.ledger import events
from batchgen.ledger.counts import ChangedCounts, Counters
from batchgen.ledger.intent import changed_counts, read_intent, suspects_of
from batchgen.ledger.meter import Meter, Unmetered
from batchgen.paths import RunPaths
from batchgen.records import Climb, Commit

COUNTERS_EVERY_S = 2.0  # readers follow the journal from where the counters end
RECENT = 64  # commit times kept for the rate
RESERVE_BYTES = 2 * 4096  # disk space reserved for the last line and the last counters
TORN = "journal.torn"  # failpoint


class JournalWriter:
    """Appends to the journal of one attempt. All threads of its process may call it."""

    def __init__(
        self, run: RunPaths, header: events.AttemptHeader, descriptor: int, meter: Meter
    ) -> None:
        self._run, self._attempt, self._meter = run, header.attempt, meter
        self.path = run.journal(header.attempt)
        self._counters_path = run.counters(header.attempt)
        self._reserve_path = self._counters_path.with_suffix(".reserve")
        self._descriptor = descriptor
        self._anchor = Anchor(run)
        self._lock = threading.Lock()
        self._broken = ""
        self._open: set[int] = set()  # row_index of rows in flight
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._written = 0.0  # by time.monotonic
        self._synced = 0  # bytes
        self._counters = Counters(
            offset=0,
            process=header.process,
            device=header.device,
            devices=header.devices,
            began=header.t,
        )

    @classmethod
    def open(
        cls, run: RunPaths, header: events.AttemptHeader, meter: Meter | None = None
    ) -> JournalWriter:
        """Create the journal of `header.attempt` (with O_EXCL) and write its first line durably.

        `meter` is read for every line and heartbeat, so that the cost of a killed attempt is known.
        RunStateError if this attempt was started before, StorageError if the run folder cannot be
        written.
        """
        path = run.journal(header.attempt)
        try:
            make_folder(path.parent, run.root)
            make_folder(run.counters(header.attempt).parent, run.root)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o644)
        except FileExistsError as error:
            raise RunStateError(
                f"{path} exists: attempt {header.attempt.tag} was started before"
            ) from error
        except OSError as error:
            raise StorageError(f"{path}: the journal cannot be made: {error}") from error
        try:
            writer = cls(run, header, descriptor, meter or Unmetered())
            writer._append(header)
            writer._sync()
            sync_folder(path.parent)
        except (StorageError, OSError) as error:
            os.close(descriptor)
            raise StorageError(f"{path}: the journal cannot be written: {error}") from error
        writer._keep_room()
        return writer

    def device(self, name: str, id_: str = "") -> None:
        """Note the device of this attempt; `id_` tells devices of one name on a host apart."""
        with self._lock:
            now = time.time()
            self._write(events.Device(name, now, id_))
            self._counters = replace(self._counters, device=name)
            self._save_counters(now, force=True)

    def start(self, row_index: int, row_id: str, alone: bool = False) -> None:
        """Note that a row joins; `alone` means that it is a suspect and no other row is in flight.
        Not synced: a kill loses nothing, and after a power cut nobody is blamed."""
        with self._lock:
            now = time.time()
            self._write(events.Start(row_index, row_id, now, alone))
            self._open.add(row_index)
            self._counters = replace(self._counters, phase="render")
            self._save_counters(now)

    def saved(self, row_index: int, step: int, seconds: float) -> None:
        """Note, durably, that the state of a row after solver step `step` was saved in the run
        folder, and that this attempt was busy with the row for `seconds`. The row is no longer in
        flight."""
        with self._lock:
            now = time.time()
            self.check_place()
            with self._closing(row_index):
                self._write(events.Saved(row_index, step, seconds, now))
            self._save_counters(now)
        self._sync()

    def tried(self, row_index: int, seconds: float, error: Exception) -> None:
        """Note that a row failed after `seconds` of busy time and will be tried again. It is not in
        flight until it starts again. Not synced, like `start`."""
        with self._lock:
            now = time.time()
            with self._closing(row_index):
                self._write(events.Tried(row_index, seconds, type(error).__name__, now))
            self._save_counters(now)

    def check_place(self) -> None:
        """StorageError unless the run folder is the one that was opened and this journal is in it.
        The open descriptor would follow a folder that is moved, but media are written by their
        path."""
        self._anchor.check()
        try:
            here = is_same(self.path, self._descriptor)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error}") from error
        if not here:
            raise StorageError(gone(self.path))

    def commit(self, commit: Commit) -> None:
        """Publish or fail a row; durable when this returns. StorageError if the line could not be
        written (the journal then ends before it and takes no more), or, with nothing written, if
        the run folder went away, since the row's media is then elsewhere."""
        with self._lock:
            changed, _ = self._past
            failpoint("journal.before_append")
            self.check_place()
            with self._closing(commit.row_index):
                self._write(commit, self._write_torn if is_armed(TORN) else self._write_whole)
            changed.add(commit.row_index, commit.status)
            self._count(commit)
        self._sync()
        failpoint("journal.after_append")

    def void(self, void: events.Void) -> None:
        """Take back what earlier submissions committed for a row (`verify --repair`), durably."""
        with self._lock:
            changed, _ = self._past
            self._write(void)
            changed.add(void.row_index, "void")
            self._counters = replace(self._counters, changes=changed.counts)
        self._sync()

    def phase(self, name: str, seconds: float) -> None:
        """Note seconds spent on no row: load, compile, warmup."""
        with self._lock:
            now = time.time()
            self._write(events.Phase(name, seconds, now))
            self._counters = replace(self._counters, phase="render")
            self._save_counters(now, force=True)

    def signalled(self, name: str) -> None:
        """Note, durably, that this process was told to end by signal `name`, since a kill may
        follow. StorageError if the line could not be written."""
        self._note(events.Signalled(name, time.time()))

    def climbed(self, climb: Climb) -> None:
        """Note, durably, a climb of the memory ladder: what comes next may end this process."""
        rung = climb.above(self._counters.memory_rung)
        self._note(events.Climbed(climb, time.time()), memory_rung=rung)

    def beat(self) -> None:
        """Say that this process is alive; writes at most every COUNTERS_EVERY_S seconds."""
        with self._lock:
            self._save_counters(time.time())

    def end(self, end: events.End) -> None:
        """Write the last line: the attempt ended by itself. It is tried even if an earlier line
        could not be written: that one was cut off, and disk space is reserved for this one."""
        with self._lock:
            self._give_room()
            self._broken = ""
            self._write(end)
            self._counters = self._counters.after_end(end)
            self._save_counters(end.t, force=True)
        self._sync()

    def close(self) -> None:
        """Write the counters a last time and close the file; safe to call twice."""
        with self._lock:
            if self._descriptor < 0:
                return
            self._save_counters(time.time(), force=True)
            self._give_room()
            os.close(self._descriptor)
            self._descriptor = -1
            self._anchor.close()

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_room(self) -> None:
        """Reserve disk space with random bytes: a file of zeros might take no space at all."""
        with contextlib.suppress(OSError), self._reserve_path.open("wb") as file:
            file.write(os.urandom(RESERVE_BYTES))
            file.flush()
            os.fsync(file.fileno())

    def _give_room(self) -> None:
        with contextlib.suppress(OSError):
            if not self._anchor.is_lost():
                self._reserve_path.unlink(missing_ok=True)

    def _note(self, event: events.Signalled | events.Climbed, **known: str) -> None:
        """Write a line durably; `known`: what the counters then say."""
        with self._lock:
            self._write(event)
            self._counters = replace(self._counters, **known)  # type: ignore[arg-type]
            self._save_counters(event.t)
        self._sync()

    def _append(self, event: events.Event) -> None:
        with self._lock:
            self._write(event)
            self._save_counters(time.time(), force=True)

    @contextlib.contextmanager
    def _closing(self, row_index: int) -> Iterator[None]:
        """Close a row in the meter, unless writing its line fails."""
        seconds = self._meter.close(row_index)
        try:
            yield
        except BaseException:
            self._meter.share({row_index: seconds})
            raise
        self._open.discard(row_index)

    def _write(self, event: events.Event, write: Callable[[bytes], int] | None = None) -> None:
        """Write one line in one write. A line that was written only in part is cut off again."""
        if self._broken:
            raise StorageError(self._broken)
        line = events.encode_line(event, self._meter.read())
        offset = self._counters.offset
        try:
            written = (write or self._write_whole)(line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, offset)
            self._broken = f"{self.path}: the journal cannot be written: {error}"
            raise StorageError(self._broken) from error
        self._counters = replace(self._counters, offset=offset + len(line))

    def _write_whole(self, line: bytes) -> int:
        return os.write(self._descriptor, line)

    def _write_torn(self, line: bytes) -> int:
        """The failpoint `journal.torn` acts after half of a line."""
        half = os.write(self._descriptor, line[: len(line) // 2])
        failpoint(TORN)
        return half + os.write(self._descriptor, line[half:])

    def _sync(self) -> None:
        written = self._counters.offset
        try:
            os.fsync(self._descriptor)
            self._synced = max(self._synced, written)
        except OSError as error:  # what the disk holds is unknown now: the journal ends here
            self._broken = f"{self.path}: the journal cannot be synced: {error}"
            raise StorageError(self._broken) from error

    @cached_property
    def _past(self) -> tuple[ChangedCounts, frozenset[int]]:
        """Counts of what changes here, and the suspects. Read late: the task's first rank may still
        be writing the fence when a rank opens its journal."""
        try:
            intent = read_intent(self._run, self._attempt.submission)
            suspects = suspects_of(self._run, intent, self._attempt)
            return changed_counts(self._run, intent, self._attempt), suspects
        except OSError as error:
            raise StorageError(f"{self._run.root} cannot be read: {error}") from error

    def _count(self, commit: Commit) -> None:
        changed, suspects = self._past
        self._recent.append(commit.ended)
        error = f"{commit.error_type}: {commit.error}" if commit.error_type else ""
        cleared = (commit.row_index,) if commit.row_index in suspects else ()
        self._counters = replace(
            self._counters,
            commits=changed.commits,
            changes=changed.counts,
            recent=tuple(self._recent),
            cleared=(*self._counters.cleared, *cleared),
            last_error=error or self._counters.last_error,
            last_error_t=commit.ended if error else self._counters.last_error_t,
        )
        self._save_counters(time.time())

    def _save_counters(self, now: float, force: bool = False) -> None:
        """Write the counters. Errors are ignored: the journal has the same facts."""
        since = time.monotonic() - self._written  # clocks are set
        if since < COUNTERS_EVERY_S and not force:
            return
        if self._anchor.is_lost():  # another run may be at this path now
            return
        self._written = time.monotonic()
        self._counters = replace(
            self._counters,
            t=now,
            synced=self._synced,
            open_rows=tuple(self._open),
            spent=self._meter.read(),
        )
        temporary = self._counters_path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(events.to_plain(self._counters)))
            temporary.replace(self._counters_path)


def raw_lines(path: Path, limit: int | None = None, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, line) from byte `start` on; stops before the first line that ends after `limit`."""
    offset = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if limit is not None and offset + len(line) > limit:
                return
            yield offset, line
            offset += len(line)


def whole_lines(path: Path, limit: int | None = None, start: int = 0) -> Iterator[bytes]:
    """The lines of `raw_lines` whose check sum fits, up to the first that has no newline yet."""
    for _, line in raw_lines(path, limit, start):
        if not line.endswith(b"\n"):
            return
        if events.is_whole(line):
            yield line


def whole_length(path: Path) -> int:
    """Bytes up to and including the last newline: what a fence counts of a journal."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - (1 << 16))
            file.seek(begin)
            place = file.read(end - begin).rfind(b"\n")
            if place >= 0:
                return begin + place + 1
            end = begin
    return 0


def durable_length(path: Path) -> int:
    """Bytes of whole lines, synced to the disk first: a dead writer may have left lines unsynced,
    and what a fence counts must survive a power cut."""
    length = whole_length(path)
    try:
        sync(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be synced: {error}") from error
    return length
