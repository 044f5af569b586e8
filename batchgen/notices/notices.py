"""The events of a run, and who tells each of them once.

    started            whoever makes the submission: a command, or the steward
    row_failed         the rank that commits the failure; for a quarantined row whoever convicts it
    budget_reached     the first rank that finds the budget spent
    submission_ended   the first that finds no rank of it at work: `run`, `cancel`, the steward, the
                       next submission, or on one machine the last rank
    run_ended          `run`, `cancel` or the steward, once nothing more is submitted; on one
                       machine the last rank, if nobody waits for it

Where several processes may find the same, the one that makes the event's file in `events/` tells
it (O_EXCL); if that one dies in between, nobody does: an event is told at most once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self

from batchgen.durable import make_folder
from batchgen.errors import BatchgenError
from batchgen.ledger.budget import budget_spent, spent_hours
from batchgen.ledger.intent import last_render
from batchgen.ledger.status import RunStatus, read_status
from batchgen.ledger.submissions import maker_of
from batchgen.notices.hook import Hook
from batchgen.paths import RunPaths
from batchgen.records import Commit
from batchgen.runfile import read_run
from batchgen.words import counted

log = logging.getLogger(__name__)
P = ParamSpec("P")
_LONGEST = 2000  # characters of an error


def _harmless(
    tell: Callable[Concatenate[Notices, P], None],
) -> Callable[Concatenate[Notices, P], None]:
    """Does nothing where there is no command; what goes wrong is logged, and nothing else."""

    @wraps(tell)
    def harmless(self: Notices, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.command:
            return
        try:
            tell(self, *args, **kwargs)
        except Exception as error:
            log.warning("output.on_event: an event is not told: %s", error)

    return harmless


class Notices:
    """What one process tells of a run, to nobody if there is no command. Nothing here raises."""

    def __init__(self, run: RunPaths, command: str | None) -> None:
        self.command = command or ""
        self._run, self._hook = run, Hook(self.command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.close()

    @_harmless
    def started(self, submission: int, rows: int, shards: int) -> None:
        text = (
            f"submission {submission} starts {counted(rows, 'row')} in {counted(shards, 'shard')}"
        )
        self._tell("started", text, submission=submission, rows=rows, shards=shards)

    @_harmless
    def row_failed(self, commit: Commit) -> None:
        """A row that is committed as failed or quarantined."""
        reason = f"{commit.error_type}: {commit.error}"[:_LONGEST]
        self._tell(
            "row_failed",
            f"row {commit.row_id} {commit.status}: {reason}",
            submission=int(commit.attempt[1:].partition("t")[0]),  # of `Attempt.tag`
            row_id=commit.row_id,
            row_index=commit.row_index,
            status=commit.status,
            error_type=commit.error_type,
            error=commit.error[:_LONGEST],
            attempt=commit.attempt,
            host=commit.host,
        )

    @_harmless
    def budget_reached(self, submission: int, limit: float) -> None:
        """No further row is begun."""
        hours = spent_hours(self._run)
        text = f"{hours:.4g} of {limit:g} device hours are spent: no further row is begun"
        given = {"submission": submission, "device_hours": hours, "max_gpu_hours": limit}
        self._tell_once("budget_reached", submission, text, given)

    @_harmless
    def submission_ended(self) -> None:
        """The latest submission has no rank at work, if there is one at all."""
        if (intent := last_render(self._run)) is None:
            return
        status = read_status(self._run)
        limit = intent.config.get("system", {}).get("max_gpu_hours")
        if budget_spent(self._run, limit):
            self.budget_reached(intent.number, limit)
        text = f"submission {intent.number} ended; {_counts(status)}"
        given = {"submission": intent.number, **_figures(status)}
        self._tell_once("submission_ended", intent.number, text, given)

    @_harmless
    def run_ended(self) -> None:
        """Nothing more is submitted, until somebody resumes the run."""
        if (intent := last_render(self._run)) is None:
            return
        self.submission_ended()
        status = read_status(self._run)
        given = {"submission": intent.number, "state": status.state, **_figures(status)}
        self._tell_once("run_ended", intent.number, f"the run is over; {_counts(status)}", given)

    @_harmless
    def last_rank_left(self, submission: int, replicas: int) -> None:
        """Called by each rank of one machine as it ends: if all were there and none is, nobody else
        may be left to say so. Whoever waits for the ranks knows better whether the run goes on."""
        intent, status = last_render(self._run), read_status(self._run)
        if intent is None or intent.number != submission:  # others go on
            return
        there = [a for a in status.attempts if a.attempt.submission == submission]
        if len(there) < replicas or any(a.life == "running" for a in there):
            return
        self.submission_ended()
        maker = maker_of(self._run, submission)
        if maker is not None and maker.alive() is False:
            self.run_ended()

    def _tell_once(self, name: str, submission: int, text: str, given: dict[str, Any]) -> None:
        event = self._event(name, text, given)
        path = self._run.event(name, submission)
        make_folder(path.parent, self._run.root)
        with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            self._hook.tell(event)

    def _tell(self, name: str, text: str, **given: Any) -> None:
        self._hook.tell(self._event(name, text, given))

    def _event(self, name: str, text: str, given: dict[str, Any]) -> dict[str, Any]:
        run = self._run.root.absolute()
        head = {"event": name, "text": f"{run.name}: {text}", "run": str(run), "t": time.time()}
        return {**head, **given}


def notices_of(run: RunPaths) -> Notices:
    """With the command of the latest submission, or of the run; none where neither can be read."""
    config: dict[str, Any] = {}
    with suppress(BatchgenError, OSError):
        intent = last_render(run)
        config = intent.config if intent else read_run(run).config
    return Notices(run, config.get("output", {}).get("on_event"))


def _counts(status: RunStatus) -> str:
    bad = status.failed + status.quarantined
    return f"{status.ok} of {status.rows} rows ok, {bad} failed, {status.left} left"


def _figures(status: RunStatus) -> dict[str, Any]:
    return {
        "rows": status.rows,
        "ok": status.ok,
        "failed": status.failed,
        "quarantined": status.quarantined,
        "left": status.left,
        "device_hours": status.gpu_hours,
    }
