"""RunPaths: the one place that knows the names inside a run folder; and how a run is called."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from batchgen.errors import UsageError
from batchgen.records import Attempt

RUNS = "outputs"  # below the current folder, where a run is looked for by its name
_JOURNAL_NAME = re.compile(r"(\d+)-r(\d+)-(\d+)\.jsonl")
_BLOCK_NAME = re.compile(r"(\d+)(?:\.\d+)?")
BLOCK_TASKS = 500  # whose files share a folder: with eight ranks, two starts of each stay below 10k
BATCH_FILES = 8000  # scripts of arrays and logs of their elements in one folder
FAN_OUT_ENTRIES = 4096  # aim for at most this many entries in one media folder (limit: 10k)


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of one run; builds names, makes nothing."""

    root: Path

    # the contract
    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def dump_config(self) -> Path:
        """Tiers, versions, commit, hardware and digests in one JSON: enough to do it again."""
        return self.root / "dump_config.json"

    @property
    def hydra(self) -> Path:
        return self.root / ".hydra"

    @property
    def plan(self) -> Path:
        return self.root / "plan.parquet"

    @property
    def next_run_json(self) -> Path:
        """run.json of a replan that is being installed: becomes run.json when its plan is there."""
        return self.root / "run.next.json"

    # submissions and their journals
    @property
    def submissions(self) -> Path:
        return self.root / "submissions"

    def submission(self, number: int) -> Path:
        return self.submissions / f"{number:04d}"

    def intent(self, number: int) -> Path:
        return self.submission(number) / "intent.json"

    def shards(self, number: int) -> Path:
        """Which rows, cut into which shards: Parquet (row_index, shard, order)."""
        return self.submission(number) / "shards.parquet"

    def jobs(self, number: int) -> Path:
        return self.submission(number) / "jobs.json"

    def cancelled(self, number: int) -> Path:
        """There while a submission is to end: its ranks look for it at every tick."""
        return self.submission(number) / "cancelled"

    def queue_address(self, attempt: Attempt) -> Path:
        block = str(attempt.task // BLOCK_TASKS)
        name = f"{attempt.task}-r{attempt.restart}.json"
        return self.submission(attempt.submission) / "queues" / block / name

    def batches(self, number: int, place: int, elements: int) -> Path:
        """Folder for the script of a submission's array number `place` and what its elements print;
        `elements`: of the longest array. Small ones share a folder."""
        together = max(1, BATCH_FILES // (1 + elements))
        return self._slurm(number) / str(place // together)

    def steward_batch(self, number: int) -> Path:
        return self._slurm(number) / "steward"

    def printed(self, number: int, name: str = "*") -> list[Path]:
        """What the jobs of a submission printed, of one job or array element or all."""
        return sorted(self._slurm(number).glob(f"*/{name}.log"))

    def _slurm(self, number: int) -> Path:
        return self.submission(number) / "slurm"

    @property
    def journals(self) -> Path:
        return self.root / "journal"

    def journal(self, attempt: Attempt) -> Path:
        name = f"{attempt.task}-r{attempt.restart}-{attempt.replica}.jsonl"
        return self.root / f"journal/{_block(attempt)}/{name}"

    def fence(self, attempt: Attempt) -> Path:
        """How many bytes of the earlier journals of its task a restarted attempt accepts."""
        name = f"{attempt.task}-r{attempt.restart}.accept.json"
        return self.journals / _block(attempt) / name

    def journal_blocks(self, submission: int | None = None) -> list[Path]:
        """Folders that hold journals and fences, of one submission or all."""
        if not self.journals.is_dir():
            return []
        found = [(_BLOCK_NAME.fullmatch(path.name), path) for path in self.journals.iterdir()]
        return sorted(
            path for match, path in found if match and submission in (None, int(match[1]))
        )

    @staticmethod
    def block_submission(block: Path) -> int:
        """The submission of a folder of journals or counters; 0 for any other folder."""
        match = _BLOCK_NAME.fullmatch(block.name)
        return int(match[1]) if match else 0

    def counters(self, attempt: Attempt) -> Path:
        name = f"{attempt.task}-r{attempt.restart}-{attempt.replica}.json"
        return self.root / f"counters/{_block(attempt)}/{name}"

    @property
    def counters_dir(self) -> Path:
        return self.root / "counters"

    def counters_files(self, since: int) -> list[Path]:
        """Counters of submission `since` and all later ones."""
        if not self.counters_dir.is_dir():
            return []
        blocks = [b for b in self.counters_dir.iterdir() if self.block_submission(b) >= since]
        return sorted(path for block in blocks for path in block.glob("*-r*-*.json"))

    @property
    def orphans(self) -> Path:
        """Where a repair puts media that no row names."""
        return self.root / "orphans"

    # what is published
    @property
    def media(self) -> Path:
        return self.root / "media"

    @property
    def catalog_rows(self) -> Path:
        return self.root / "catalog" / "rows"

    @property
    def catalog_runs(self) -> Path:
        return self.root / "catalog" / "runs.parquet"

    @property
    def time_stats(self) -> Path:
        return self.root / "time_stats.csv"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def run_log(self, attempt: Attempt) -> Path:
        return self.logs / _block(attempt) / f"run-{attempt.tag}.log"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def row_state(self, row_index: int, total_rows: int) -> Path:
        """Where a row in flight is kept between two attempts; folders as in `media/`."""
        folder = self.state / "rows" / media_fan_out(row_index, total_rows)
        return folder / f"{row_index}.safetensors"


def as_typed(run: Path) -> str:
    """RUN on a command line, for a shell: the name of a run in ./outputs, the path of another."""
    run = run.absolute()
    return shlex.quote(run.name if run.parent == Path(RUNS).absolute() else str(run))


def at_home(path: str | Path) -> Path:
    """`path` with a leading `~` or `~user` as the home folder, which shells leave alone in
    `key=~/x`. Raises UsageError where there is none."""
    if not str(path).startswith("~"):
        return Path(path)  # also ./~, which a Path forgets
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{path}: there is no home folder for {Path(path).parts[0]} (a folder of that name: "
            f"./{path})"
        ) from error


def parse_journal(path: Path) -> Attempt:
    """The attempt that writes `path`; raises ValueError for any other file."""
    match, block = _JOURNAL_NAME.fullmatch(path.name), _BLOCK_NAME.fullmatch(path.parent.name)
    if match is None or block is None:
        raise ValueError(f"{path} is not a journal")
    task, restart, replica = (int(part) for part in match.groups())
    return Attempt(int(block[1]), task, restart, replica)


def parse_counters(path: Path) -> Attempt:
    """The attempt that writes counters to `path`; raises ValueError for any other file."""
    return parse_journal(path.with_suffix(".jsonl"))


def _block(attempt: Attempt) -> str:
    """Folder of an attempt's small files: its submission's, cut by tasks where there are many."""
    block = attempt.task // BLOCK_TASKS
    return f"{attempt.submission:04d}" + (f".{block}" if block else "")


def media_fan_out(row_index: int, total_rows: int) -> str:
    """Folder (relative to `media/` or `state/rows/`) of a row: none for small runs, else two-digit
    hex levels so that no folder holds more than about FAN_OUT_ENTRIES entries."""
    folders = -(-total_rows // FAN_OUT_ENTRIES)
    if folders <= 1:
        return ""
    bucket = row_index // FAN_OUT_ENTRIES
    if folders <= 256:
        return f"{bucket:02x}"
    return f"{bucket >> 8:02x}/{bucket & 0xFF:02x}"
