"""RunPaths: the one place that knows the names inside a run folder; also how a run is named on a
command line."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from batchgen.errors import UsageError
from batchgen.records import Attempt

RUNS = "outputs"  # folder below the current one in which runs are found by name
_JOURNAL_NAME = re.compile(r"(\d+)-r(\d+)-(\d+)\.jsonl")
_BLOCK_NAME = re.compile(r"(\d+)(?:\.\d+)?")
BLOCK_TASKS = 500  # tasks whose files share a folder: two starts with eight ranks stay below 10k
BATCH_FILES = 8000  # most scripts and logs of array elements in one folder
FAN_OUT_ENTRIES = 4096  # aim for at most this many entries in one media folder (limit: 10k)


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths inside one run folder; builds names and makes nothing."""

    root: Path

    # the contract
    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def dump_config(self) -> Path:
        """Tiers, versions, commit, hardware and digests in one JSON: enough to repeat the run."""
        return self.root / "dump_config.json"

    @property
    def hydra(self) -> Path:
        return self.root / ".hydra"

    @property
    def plan(self) -> Path:
        return self.root / "plan.parquet"

    @property
    def next_run_json(self) -> Path:
        """The new run.json of a replan that is being installed; renamed to run.json once the new
        plan is in place."""
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
        """The rows of a submission and their shards: Parquet (row_index, shard, order, alone)."""
        return self.submission(number) / "shards.parquet"

    def jobs(self, number: int) -> Path:
        return self.submission(number) / "jobs.json"

    def cancelled(self, number: int) -> Path:
        """A file that exists once a submission is to end; its ranks look for it at every tick."""
        return self.submission(number) / "cancelled"

    def queue_address(self, attempt: Attempt) -> Path:
        block = str(attempt.task // BLOCK_TASKS)
        name = f"{attempt.task}-r{attempt.restart}.json"
        return self.submission(attempt.submission) / "queues" / block / name

    def team_address(self, attempt: Attempt) -> Path:
        """Where the leader of a replica says that it listens."""
        queue = self.queue_address(attempt)
        return queue.with_name(f"{queue.stem}-{attempt.replica}.json")

    def batches(self, number: int, place: int, elements: int) -> Path:
        """Folder for the script of array number `place` of a submission, and for what its elements
        print. `elements` is the number of the longest array: small arrays share a folder."""
        together = max(1, BATCH_FILES // (1 + elements))
        return self._slurm(number) / str(place // together)

    def steward_batch(self, number: int) -> Path:
        return self._slurm(number) / "steward"

    def printed(self, number: int, name: str = "*") -> list[Path]:
        """Files with what the jobs of a submission printed: of all, or of one job or array
        element."""
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
        """The fence of a restarted task: how many bytes of its earlier journals count."""
        name = f"{attempt.task}-r{attempt.restart}.accept.json"
        return self.journals / _block(attempt) / name

    def journal_blocks(self, submission: int | None = None) -> list[Path]:
        """Folders with journals and fences, of one submission or of all."""
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

    @property
    def spent(self) -> Path:
        """The sum of device hours that ranks of a run with a budget share."""
        return self.root / "counters" / "spent.json"

    def counters_files(self, since: int) -> list[Path]:
        """Counters of submission `since` and all later ones."""
        if not self.counters_dir.is_dir():
            return []
        blocks = [b for b in self.counters_dir.iterdir() if self.block_submission(b) >= since]
        return sorted(path for block in blocks for path in block.glob("*-r*-*.json"))

    def event(self, name: str, submission: int) -> Path:
        """An event that several processes may find; whoever makes the file has told it."""
        return self.root / "events" / f"{submission:04d}-{name}.json"

    @property
    def metrics(self) -> Path:
        """Figures of the run, as Prometheus reads them."""
        return self.root / "metrics.prom"

    @property
    def orphans(self) -> Path:
        """Where a repair moves damaged files and media that no row names."""
        return self.root / "orphans"

    # coefficients of step caches
    @property
    def caches(self) -> Path:
        """Tables that rows of this run use, so that it needs nobody else's."""
        return self.root / "caches"

    def pilot_tables(self, number: int) -> Path:
        """What the pilot of submission `number` found; once it is there, the pilot is over."""
        return self.caches / f"pilot-{number:04d}.json"

    # images of rows
    @property
    def inputs(self) -> Path:
        """Images that rows are given, under their digests, so that the run needs nobody else's."""
        return self.root / "inputs"

    def input(self, digest: str) -> Path:
        return self.inputs / digest[:2] / digest

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
    def catalog_fidelity(self) -> Path:
        return self.root / "catalog" / "fidelity.json"

    def kept_rows(self, part: str) -> Path:
        """What a part of the catalog was made from."""
        return self.root / "catalog/scans/rows" / Path(part).with_suffix(".npz")

    def kept_scan(self, journal: Path) -> Path:
        """What was found in a journal that has ended."""
        return self.root / "catalog/scans" / journal.relative_to(self.journals).with_suffix(".npz")

    @property
    def time_stats(self) -> Path:
        return self.root / "time_stats.csv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def report_media(self) -> Path:
        """Copies of media that a report shows and that are in tars."""
        return self.root / "report_media"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def run_log(self, attempt: Attempt) -> Path:
        return self.logs / _block(attempt) / f"run-{attempt.tag}.log"

    @property
    def texts(self) -> Path:
        """Encoded texts, each a file named by a hash."""
        return self.root / "texts"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def row_state(self, row_index: int, total_rows: int) -> Path:
        """Folder for the state of a row in flight between two attempts; subfolders are as in
        `media/`."""
        folder = self.state / "rows" / media_fan_out(row_index, total_rows)
        return folder / f"{row_index}.safetensors"


def as_typed(run: Path) -> str:
    """A run as typed for RUN, quoted for a shell: its name if it is in ./outputs, else its path."""
    run = run.absolute()
    return shlex.quote(run.name if run.parent == Path(RUNS).absolute() else str(run))


def at_home(path: str | Path) -> Path:
    """`path` with a leading `~` or `~user` replaced by the home folder, which shells do not do in
    `key=~/x`. UsageError if there is no such home."""
    if not str(path).startswith("~"):
        return Path(path)  # a leading ./~ as well, since a Path drops the ./
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{path}: there is no home folder for {Path(path).parts[0]} (a folder of that name: "
            f"./{path})"
        ) from error


def parse_journal(path: Path) -> Attempt:
    """The attempt that writes the journal `path`; ValueError for any other file."""
    match, block = _JOURNAL_NAME.fullmatch(path.name), _BLOCK_NAME.fullmatch(path.parent.name)
    if match is None or block is None:
        raise ValueError(f"{path} is not a journal")
    task, restart, replica = (int(part) for part in match.groups())
    return Attempt(int(block[1]), task, restart, replica)


def parse_counters(path: Path) -> Attempt:
    """The attempt that writes the counters `path`; ValueError for any other file."""
    return parse_journal(path.with_suffix(".jsonl"))


def _block(attempt: Attempt) -> str:
    """Name of the folder of an attempt's small files: one for each submission and BLOCK_TASKS
    tasks."""
    block = attempt.task // BLOCK_TASKS
    return f"{attempt.submission:04d}" + (f".{block}" if block else "")


def media_fan_out(row_index: int, total_rows: int) -> str:
    """Folder of a row, relative to `media/` or `state/rows/`: none in small runs, else two-digit
    hex levels, so that no folder has more than about FAN_OUT_ENTRIES entries."""
    folders = -(-total_rows // FAN_OUT_ENTRIES)
    if folders <= 1:
        return ""
    bucket = row_index // FAN_OUT_ENTRIES
    if folders <= 256:
        return f"{bucket:02x}"
    return f"{bucket >> 8:02x}/{bucket & 0xFF:02x}"
