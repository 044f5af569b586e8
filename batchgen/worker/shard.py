"""One rank's part of a shard, from its first journal line to its last."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from batchgen.config.schema import JobConfig, OutputConfig, SlurmConfig
from batchgen.durable import make_folder
from batchgen.engine.choose import EngineChoice, choose_engine
from batchgen.engine.clock import Clock
from batchgen.engine.contract import Renderer, Source
from batchgen.errors import StorageError
from batchgen.ledger.events import AttemptHeader
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.restarts import accept_restart
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Layout, RankInfo
from batchgen.runfile import read_run
from batchgen.worker.admission import Admission
from batchgen.worker.as_planned import as_planned
from batchgen.worker.drain import Drain
from batchgen.worker.ending import Ending, last_line
from batchgen.worker.sink import Judge, RowPolicy, RowSink
from batchgen.worker.source import ListSource, RowStart, ShardSource, open_source
from batchgen.worker.states import RowStates
from batchgen.worker.watchdog import Watchdog

log = logging.getLogger(__name__)
# A heartbeat is a small file. What a rank did after its last one is unknown if it is killed, but a
# thousand ranks ask one file server; status.STALE_S is six times the longest.
BEATS_PER_S, SHORTEST_BEAT_S, LONGEST_BEAT_S = 100, 2.5, 10.0


def work_on(
    root: RunPaths,
    config: JobConfig,
    layout: Layout | None,
    attempt: Attempt,
    rank: RankInfo,
    watchdog: Watchdog,
) -> None:
    """See `entry.work`; `layout` is None in a submission that is older than it."""
    with _run_log(root, config.output, attempt), Drain(root, attempt) as drain:
        if rank.rank == 0:
            accept_restart(root, attempt)
        _attempt(root, config, layout, attempt, rank, drain, watchdog)
        drain.linger(rank.ends, config.slurm.signal_delay_s, watchdog.kick)


def _attempt(
    root: RunPaths,
    config: JobConfig,
    layout: Layout | None,
    attempt: Attempt,
    rank: RankInfo,
    drain: Drain,
    watchdog: Watchdog,
) -> None:
    """The journal is open before anything is asked of the device: an error ends it with a line,
    a hang or a crash without one, and either tells where."""
    run_file, slurm = read_run(root), config.slurm
    until = None if rank.ends is None else rank.ends - slurm.signal_delay_s
    elsewhere = slurm.executor == "slurm"  # the others have this machine only
    policy = RowPolicy(attempt, rank.host, run_file.rows, slurm.row_retries, elsewhere)
    stop, clock = _stop(drain, watchdog), Clock()
    with (
        JournalWriter.open(root, _header(attempt, rank, run_file.versions), clock) as journal,
        last_line(journal, clock) as ending,
        _heartbeat(journal, drain, beat_seconds(slurm)),
    ):
        with clock.on("load"):
            engine = _choose(config, layout, rank)
        watchdog.kick()
        journal.device(engine.device, engine.device_id)
        states = RowStates(root, run_file.rows, config.system.determinism, engine.device_class)
        admission = Admission(until, share_left=states.share_left)
        start = RowStart(rank.host, states)
        with open_source(root, attempt, rank, admission, start, stop) as source:
            if stop() or source.is_over:  # a model may take minutes to load
                journal.check_place()
                ending.reason = _reason(drain, source)
                return
            with clock.on("load"), as_planned(root, run_file, config, watchdog.kick):
                renderer = engine.load(watchdog.kick)
            load_s = clock.read().load
            journal.phase("load", load_s)
            log.info(
                "rank %d of %d, shard of %d rows: %s on %s, loaded in %.1f s",
                rank.rank, rank.world_size, source.portion.size, config.model.name, engine.device,
                load_s,
            )  # fmt: skip
            sink = RowSink(root, journal, policy, states, admission, _judge(config))
            shift = Shift(renderer, source, sink, stop, _moved(clock, watchdog), ending)
            shift.draw_all()
            journal.check_place()
            ending.reason = _reason(drain, source)
            log.info("ended: %s", ending.reason)


def _choose(config: JobConfig, layout: Layout | None, rank: RankInfo) -> EngineChoice:
    """The engine: torch is imported, the device is woken up."""
    return choose_engine(
        config.model,
        config.system,
        layout=layout,
        local_rank=rank.local_rank,
        host=rank.host,
        asked=_gpus_asked(config.slurm),
        ranks=config.slurm.ranks_per_node,
    )


def _gpus_asked(slurm: SlurmConfig) -> str:
    """What the profile asks of a node, in words. Nothing if its device is the CPU: then the GPUs
    are there for the scheduler alone, as on a development cluster."""
    if slurm.device.name == "cpu":
        return ""
    if slurm.gpus_per_node:
        return f"slurm.gpus_per_node={slurm.gpus_per_node}"
    return f"slurm.gres={slurm.gres}" if slurm.gres else ""


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """The engine at work on the rows of a source."""

    renderer: Renderer
    source: ShardSource
    sink: RowSink
    stop: Callable[[], bool]
    moved: Callable[[], object]
    ending: Ending

    def draw_all(self) -> None:
        """The shard's rows, then its suspects, one at a time and while nobody else has any."""
        self._draw(self.source)
        while self.source.held_back and not self.stop():
            self._draw(self.source)
        self.sink.alone = True
        while not self.stop():
            suspect = self.source.take_alone()
            if suspect is None:
                return
            self._draw(ListSource([suspect], self.source.start))

    def _draw(self, source: Source) -> None:
        """Rows that failed are tried again behind the others."""
        self._render(source)
        while not self.stop() and (again := self.sink.to_retry()):
            self._render(self.source.again(again))

    def _render(self, source: Source) -> None:
        report = self.renderer.render(
            source, self.sink, stop=self.stop, moved=self.moved, clock=self.ending.clock
        )
        self.ending.add(report)


def _stop(drain: Drain, watchdog: Watchdog) -> Callable[[], bool]:
    """What the engine asks at every tick: that it asks shows that it moves."""

    def stop() -> bool:
        watchdog.kick()
        return drain()

    return stop


def _moved(clock: Clock, watchdog: Watchdog) -> Callable[[], object]:
    """What the engine tells of texts encoded and rows finished: this rank has not come to its
    tail."""

    def moved() -> None:
        watchdog.kick()
        clock.worked()

    return moved


def _reason(drain: Drain, source: ShardSource) -> str:
    if drain():
        return drain.reason
    if source.admission.declined:
        return "drained"
    return "queue-lost" if source.tickets is None else "done"


def _header(attempt: Attempt, rank: RankInfo, versions: dict[str, str]) -> AttemptHeader:
    return AttemptHeader(
        attempt=attempt,
        rank=rank.rank,
        world_size=rank.world_size,
        host=rank.host,
        job_id=rank.job_id,
        versions=tuple(sorted(versions.items())),
        process=ProcessId.current(rank.host),
    )


def beat_seconds(slurm: SlurmConfig) -> float:
    """Seconds between two heartbeats of a rank, by how many may be at work."""
    ranks = min(slurm.nodes, slurm.array_parallelism) * slurm.ranks_per_node
    return min(LONGEST_BEAT_S, max(SHORTEST_BEAT_S, ranks / BEATS_PER_S))


@contextmanager
def _heartbeat(journal: JournalWriter, drain: Drain, every_s: float) -> Iterator[None]:
    """Say now and then that this rank is at work: another machine cannot look at the process. Say
    at once that it was told to end, since it may be killed before it can."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            if name := drain.signal_within(every_s):
                with suppress(StorageError):  # whoever writes next says so
                    journal.signalled(name)
            journal.beat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        drain.wake()
        thread.join()


@contextmanager
def _run_log(root: RunPaths, output: OutputConfig, attempt: Attempt) -> Iterator[None]:
    """Log to `logs/` for the ranks that the job asks to hear; a log that cannot be written ends
    nothing."""
    if not output.enable_run_log or attempt.replica not in output.log_ranks:
        yield
        return
    file = root.run_log(attempt)
    try:
        make_folder(file.parent, root.root)
        handler = logging.FileHandler(file)
    except OSError as error:
        log.warning("there is no log of this rank: %s", error)
        yield
        return
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("batchgen")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def _judge(config: JobConfig) -> Judge | None:
    """The embedded model's clips are judged from their pixels; others have no judge."""
    if config.model.weights != "embedded":
        return None
    from batchgen.tiny.score import score

    def judge(frames: np.ndarray, prompt: str) -> float | None:
        try:
            verdict = score(frames, prompt)
        except Exception:  # an opinion on a row must not cost the row
            log.exception("no score for %r", prompt)
            return None
        return None if verdict is None else verdict.fraction

    return judge
