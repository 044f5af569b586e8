"""One rank as a process, for `planned_run`; it imports no more than a rank does.

`python tests/rank_process.py RUN SUBMISSION RANKINFO-JSON`
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from batchgen.paths import RunPaths
from batchgen.records import RankInfo
from batchgen.worker import work

BEAT_S = "TEST_RANK_BEAT_S"  # heartbeats in seconds: a rank that tells all the time how far it is


def main(root: str, submission: str, rank: str) -> None:
    if beat_s := os.environ.get(BEAT_S):
        from batchgen.ledger import journal
        from batchgen.worker import replica

        journal.COUNTERS_EVERY_S = replica.SHORTEST_BEAT_S = float(beat_s)
    work(RunPaths(Path(root)), int(submission), RankInfo(**json.loads(rank)))
    print(time.process_time(), *(m for m in ("torch", "diffusers") if m in sys.modules))


if __name__ == "__main__":
    main(*sys.argv[1:])
