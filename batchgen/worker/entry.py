"""Where a rank begins: under its watchdog first, then with what takes long to import or may hang.

All that is imported here is light. `replica` and `follower` import no torch either: whatever a
broken driver does to a rank happens while its journal is open.
"""

from __future__ import annotations

from batchgen.errors import RunStateError
from batchgen.ledger.intent import config_of, read_intent
from batchgen.paths import RunPaths
from batchgen.records import Attempt, RankInfo
from batchgen.worker.meetings.address import announce
from batchgen.worker.meetings.place import place_of
from batchgen.worker.post import Post
from batchgen.worker.watchdog import Watchdog


def work(root: RunPaths, submission: int, rank: RankInfo) -> None:
    """Render this rank's part of shard `rank.task` of `submission`.

    Raises what ends the attempt (devices, weights, storage, SickNode, ReplicaFailed); rows that
    fail are recorded instead. The last line of the journal, which the leader of a replica writes,
    says how it ended: done, drained, terminated, cancelled, superseded, queue-lost, or the class of
    the error.
    """
    intent = read_intent(root, submission)
    if intent is None:
        raise RunStateError(f"{root.intent(submission)} is missing")
    config = config_of(root, intent)
    place = place_of(intent.layout, rank)
    attempt = Attempt(submission, rank.task, rank.restart, place.replica)
    if place.leads and place.size > 1:
        announce(root.team_address(attempt))
    own_process = config.slurm.executor != "inline"  # that one renders in the process of the user
    with Watchdog(config.slurm.watchdog_s, stays=own_process) as watchdog:
        if place.leads:
            from batchgen.worker.replica import work_on  # NumPy, PyArrow
        else:
            from batchgen.worker.follower import work_on

        watchdog.kick()
        work_on(Post(root, config, intent.layout, attempt, rank, place, intent.pilot), watchdog)
