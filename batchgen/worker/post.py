"""What a rank is given: where, what and as which of them it works."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from batchgen.caches.tables import SHIPPED, Tables
from batchgen.config.schema import JobConfig, SlurmConfig
from batchgen.config.stages import stages_of
from batchgen.engine.choose import EngineChoice, choose_engine
from batchgen.paths import RunPaths
from batchgen.pictures import stored
from batchgen.planning.store import read_loras
from batchgen.records import Attempt, Layout, RankInfo
from batchgen.runfile import read_run
from batchgen.worker.meetings.meeting import Meeting
from batchgen.worker.meetings.place import RankPlace
from batchgen.worker.texts import TextFolder

PATIENCE = 0.8  # of the watchdog's: whoever misses another rank can still say so
UNWATCHED_S = 1800.0  # patience where there is no watchdog


@dataclass(frozen=True, slots=True)
class Post:
    """One rank of one attempt."""

    root: RunPaths
    config: JobConfig
    layout: Layout | None  # None in a submission that is older than it
    attempt: Attempt
    rank: RankInfo
    place: RankPlace
    pilot: bool = False  # its rows are those of the plan's pilots

    @property
    def meeting(self) -> Meeting:
        """With the other ranks of the replica."""
        patience_s = PATIENCE * self.config.slurm.watchdog_s or UNWATCHED_S
        return Meeting(self.root.team_address(self.attempt), self.rank, self.place, patience_s)

    def choose_engine(self) -> EngineChoice:
        """The engine: torch is imported, the device is woken up."""
        return choose_engine(
            self.config.model,
            self.config.system,
            layout=self.layout,
            local_rank=self.rank.local_rank,
            host=self.rank.host,
            asked=_gpus_asked(self.config.slurm),
            ranks=self.config.slurm.ranks_per_node,
            tables=Tables(self.root.caches, SHIPPED),
            images=lambda digest: stored(self.root.input(digest), digest),
            texts=self._texts(),
            loras={n: Path(f.path) for n, f in read_loras(self.root.plan).items()},
            stages=stages_of(self.config),
        )

    def _texts(self) -> TextFolder | None:
        """All that decides a row's pixels beside the row is more than decides an encoding: the
        folder is the run's own."""
        gib = self.config.system.batch.text_store_gib
        if gib == 0:
            return None
        context = json.dumps(read_run(self.root).key_context, sort_keys=True)
        return TextFolder(self.root.root, self.root.texts, context, int(gib * 1024**3))


def _gpus_asked(slurm: SlurmConfig) -> str:
    """What the profile asks of a node, in words. Nothing if its device is the CPU: then the GPUs
    are there for the scheduler alone, as on a development cluster."""
    if slurm.device.name == "cpu":
        return ""
    if slurm.gpus_per_node:
        return f"slurm.gpus_per_node={slurm.gpus_per_node}"
    return f"slurm.gres={slurm.gres}" if slurm.gres else ""
