"""The coefficients of step caches that a run holds, and what its pilot left."""

from __future__ import annotations

import logging

from batchgen.caches.tables import Tables, read, store, user_folder
from batchgen.ledger.intent import last_render
from batchgen.paths import RunPaths
from batchgen.planning.caching import Earlier
from batchgen.planning.store import Plan, drawn_rows, read_pilots

PILOTS = "pilot-*.json"  # as `RunPaths.pilot_tables` names them
log = logging.getLogger(__name__)


def keep_tables(run: RunPaths, plan: Plan) -> None:
    """Copy what rows of the plan use into the run folder, so that it needs nobody else's. OSError
    where that cannot be written."""
    there = {entry.digest for entry in Tables(run.caches).entries}
    missing = [digest for digest in plan.cache_tables if digest not in there]
    if missing:
        usual = Tables.usual()
        store(run.caches, [usual.by_digest(digest) for digest in missing])


def pilot_is_over(run: RunPaths) -> bool:
    """Whether the run waits for a new plan, with the tables of a pilot that has ended."""
    last = last_render(run)
    if last is None or not last.pilot or not run.pilot_tables(last.number).exists():
        return False
    return bool(read_pilots(run.plan))


def earlier(run: RunPaths) -> Earlier:
    """What a new plan of the run has to go by. A run has one pilot."""
    fitted = any(run.caches.glob(PILOTS))
    return Earlier(Tables(run.caches), drawn_rows(run.plan) if fitted else (), fitted)


def as_planned(run: RunPaths) -> Earlier:
    """What another plan of the run has to go by to be the same."""
    return Earlier(Tables(run.caches), drawn_rows(run.plan), fitted=True)


def publish_tables(run: RunPaths) -> None:
    """Copy what the run's pilot left into the user's cache folder, for other runs. One that cannot
    be written ends nothing."""
    for path in sorted(run.caches.glob(PILOTS)):
        try:
            if entries := read(path):
                store(user_folder(), entries)
        except OSError as error:
            log.warning("other runs will not find the tables of this pilot: %s", error)
