"""`metrics.prom`: figures of a run in Prometheus' text format, for the textfile collector.

The ranks of a run share one file: whoever finds it old writes it anew, from the counters of all. So
it is some ten or twenty seconds old at most while a rank is at work.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Self, get_args

from batchgen.anchor import Anchor
from batchgen.durable import write_bytes_atomic
from batchgen.errors import StorageError
from batchgen.ledger.status import RunStatus, State, read_status
from batchgen.paths import RunPaths

log = logging.getLogger(__name__)
EVERY_S = 10.0
_Labels = Mapping[str, str]
_Samples = list[tuple[_Labels, float]]


class Metrics:
    """Keeps the file of a run up to date, beside a rank's work."""

    def __init__(
        self,
        run: RunPaths,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._every_s, self._clock = run, every_s, clock
        self._seen, self._since = 0, 0.0  # the file's time, and when it was first seen here
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()  # the thread may hang in a file system: nobody waits for it

    def _work(self) -> None:
        try:
            anchor = Anchor(self._run)  # nothing is written to another folder in its place
        except StorageError:  # the attempt says so
            return
        with closing(anchor):
            while not self._ended.wait(self._every_s * random.uniform(0.5, 1.5)):
                if self.is_old() and not anchor.is_lost():
                    write_metrics(self._run)

    def is_old(self) -> bool:
        """Whether no rank has written it for a while, by this machine's clock alone."""
        try:
            changed = self._run.metrics.stat().st_mtime_ns
        except OSError:
            return True
        if changed != self._seen:
            self._seen, self._since = changed, self._clock()
        return self._clock() - self._since >= self._every_s


def write_metrics(run: RunPaths) -> None:
    """Write the file as the run is now, in one piece. What goes wrong is logged: a run needs no
    metrics."""
    try:
        write_bytes_atomic(run.metrics, metrics_text(run.root.absolute().name, read_status(run)))
    except Exception as error:
        log.warning("%s is not written: %s", run.metrics, error)


def metrics_text(name: str, status: RunStatus) -> bytes:
    """The figures of the run `name` (https://prometheus.io/docs/instrumenting/exposition_formats).
    There are no times beside them: the textfile collector refuses those."""
    lines = [line for family in _families({"run": name}, status) for line in _family(*family)]
    return "".join(f"{line}\n" for line in lines).encode()


def _families(run: _Labels, status: RunStatus) -> Iterator[tuple[str, str, _Samples]]:
    """Name, help and samples of each. All are gauges: what was counted as spent may turn out to be
    less once a rank is known to be dead, which a counter must not."""
    rows = {"ok": status.ok, "failed": status.failed, "quarantined": status.quarantined}
    rows["pending"] = status.left
    lives = [attempt.life for attempt in status.attempts]
    figures: list[tuple[str, str, float | None]] = [
        ("rows_in_flight", "Rows that are being drawn.", status.running),
        ("rows_per_second", "Rows that ranks at work rendered lately.", status.rate_per_s),
        ("eta_seconds", "Predicted time to the end of the submission.", status.eta_s),
        ("attempts_running", "Attempts (replicas) at work.", status.alive),
        ("attempts_dead", "Attempts that ended without a word.", lives.count("dead")),
        ("submissions", "Submissions begun.", status.submission),
        ("device_seconds", "Device seconds of all attempts.", status.gpu_hours * 3600),
        ("updated_timestamp_seconds", "When these figures were read.", status.t),
    ]
    yield "rows", "Manifest rows by status.", [({**run, "status": w}, n) for w, n in rows.items()]
    states: _Samples = [({**run, "state": w}, w == status.state) for w in get_args(State)]
    yield "state", "1 for the state that the run is in.", states
    for name, meaning, value in figures:
        if value is not None:
            yield name, meaning, [(run, value)]


def _family(name: str, meaning: str, samples: _Samples) -> Iterator[str]:
    yield f"# HELP batchgen_{name} {meaning}"
    yield f"# TYPE batchgen_{name} gauge"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"batchgen_{name}{{{inside}}} {float(value)!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
