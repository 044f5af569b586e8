"""A rank that follows the leader of its replica: no queue, no journal, no media."""

from __future__ import annotations

import logging

from batchgen.runfile import read_run
from batchgen.worker.as_planned import as_planned
from batchgen.worker.drain import Drain
from batchgen.worker.meetings.meeting import following
from batchgen.worker.post import Post
from batchgen.worker.watchdog import Watchdog

log = logging.getLogger(__name__)


def work_on(post: Post, watchdog: Watchdog) -> None:
    """See `entry.work`. What goes wrong here is in the leader's journal: it is told, or misses this
    rank. A signal is the leader's to answer too."""
    root, config, rank = post.root, post.config, post.rank
    with Drain(root, post.attempt) as drain:
        with following(post.meeting, moved=watchdog.kick, signalled=lambda: drain.signal) as team:

            def moved() -> None:
                watchdog.kick()
                team.beat()

            engine = post.choose_engine()
            moved()
            with as_planned(root, read_run(root), config, moved):
                follow = engine.follow(moved, team)
            log.info("rank %d follows", rank.rank)
            follow()
        drain.linger(rank.ends, config.slurm.signal_delay_s, watchdog.kick)
