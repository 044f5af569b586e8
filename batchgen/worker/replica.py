"""A replica's part of a shard, from its first journal line to its last: what its leader does."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchgen.config.schema import ONE_MACHINE, SlurmConfig
from batchgen.durable import make_folder
from batchgen.engine.choose import EngineChoice
from batchgen.engine.clock import Clock
from batchgen.engine.contract import Ascent, Renderer, Snapshot, Source
from batchgen.engine.ranks.team import Team
from batchgen.errors import StorageError
from batchgen.ledger.budget import Budget
from batchgen.ledger.climbs import climbs_before
from batchgen.ledger.events import AttemptHeader
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.restarts import fence_restart
from batchgen.media.note import Origin
from batchgen.media.pack import TarPack, packing
from batchgen.notices import Metrics, Notices, write_metrics
from batchgen.paths import RunPaths
from batchgen.planning.identity import KeyContext
from batchgen.planning.store import read_pilots
from batchgen.processes import ProcessId
from batchgen.records import Attempt
from batchgen.request import Request
from batchgen.runfile import RunFile, read_run
from batchgen.worker.admission import Admission
from batchgen.worker.as_planned import as_planned
from batchgen.worker.audit import Twins
from batchgen.worker.drain import Drain
from batchgen.worker.ending import Ending, last_line
from batchgen.worker.judging import Judges
from batchgen.worker.latents import DrawnRows
from batchgen.worker.meetings.meeting import leading
from batchgen.worker.pilot import PilotRenderer
from batchgen.worker.post import Post
from batchgen.worker.sink import RowPolicy, RowSink
from batchgen.worker.source import ListSource, RowStart, ShardSource, open_source
from batchgen.worker.states import RowStates, States
from batchgen.worker.watchdog import Watchdog

log = logging.getLogger(__name__)
# A heartbeat is a small file. What a rank did after its last one is unknown if it is killed, but a
# thousand ranks ask one file server; status.STALE_S is six times the longest.
BEATS_PER_S, SHORTEST_BEAT_S, LONGEST_BEAT_S = 100, 2.5, 10.0


def work_on(post: Post, watchdog: Watchdog) -> None:
    """See `entry.work`."""
    root, attempt, rank = post.root, post.attempt, post.rank
    output = post.config.output
    log_ranks = output.log_ranks if output.enable_run_log else ()
    with (
        _run_log(root, attempt, rank.rank in log_ranks),
        Drain(root, attempt) as drain,
        Notices(root, output.on_event) as notices,
    ):
        if rank.rank == 0:
            fence_restart(root, attempt)
        try:
            with Metrics(root):
                _attempt(post, drain, watchdog, notices)
        finally:
            if not isinstance(sys.exception(), StorageError):  # it may be another folder by now
                _leave(post, notices)
        drain.linger(rank.ends, post.config.slurm.signal_delay_s, watchdog.kick)


def _leave(post: Post, notices: Notices) -> None:
    """What the last rank of one machine says, where no steward comes."""
    if post.config.slurm.executor in ONE_MACHINE:
        write_metrics(post.root)
        notices.last_rank_left(post.attempt.submission, post.place.replicas)


def _attempt(post: Post, drain: Drain, watchdog: Watchdog, notices: Notices) -> None:
    """The journal is open before anything is asked of the device: an error ends it with a line,
    a hang or a crash without one, and either tells where."""
    clock = Clock()
    with (
        JournalWriter.open(post.root, _header(post), clock) as journal,
        last_line(journal, clock) as ending,
        _heartbeat(journal, drain, beat_seconds(post.config.slurm)),
        ExitStack() as stack,
    ):
        with clock.on("load"):
            meeting = leading(post.meeting, stop=drain, moved=watchdog.kick, signalled=drain.hear)
            team = stack.enter_context(meeting)
            if team is None:
                ending.reason = drain.reason
                return
            engine = post.choose_engine()
        watchdog.kick()
        journal.device(engine.device, engine.device_id)
        crew = Crew(team, drain, watchdog, clock)
        _draw_shard(post, engine, crew, journal, ending, notices)


def _draw_shard(
    post: Post,
    engine: EngineChoice,
    crew: Crew,
    journal: JournalWriter,
    ending: Ending,
    notices: Notices,
) -> None:
    """From the shard's queue to its end."""
    root, config, rank = post.root, post.config, post.rank
    run_file = read_run(root)
    policy = _policy(post, run_file)
    states = _states(post, run_file, engine)
    admission = _admission(post, states, notices)
    start, replicas = RowStart(rank.host, states), post.place.replicas
    with (
        open_source(root, post.attempt, rank, admission, start, crew.stop, replicas) as source,
        _packing(post) as pack,
    ):
        if crew.stop() or source.is_over:  # a model may take minutes to load
            journal.check_place()
            ending.reason = _reason(crew.drain, source)
            return
        with crew.clock.on("load"), as_planned(root, run_file, config, crew.kick):
            judges = Judges.of(config.output.judges)
            before = climbs_before(root, post.attempt, engine.device)
            renderer = engine.load(crew.kick, crew.team, Ascent(before, journal.climbed))
        load_s = crew.clock.read().load
        journal.phase("load", load_s)
        log.info(
            "rank %d of %d, shard of %d rows: %s on %s, loaded in %.1f s",
            rank.rank, rank.world_size, source.shard_rows.size, config.model.name, engine.device,
            load_s,
        )  # fmt: skip
        if post.pilot:
            renderer = _fitting(post, run_file, renderer)
        sink = RowSink(root, journal, policy, states, admission, judges, notices, pack)
        every = config.system.cache.audit_every
        Shift(renderer, source, sink, crew.stop, crew.moved, ending, every).draw_all()
        journal.check_place()
        ending.reason = _reason(crew.drain, source)
        log.info("ended: %s", ending.reason)


def _admission(post: Post, states: States, notices: Notices) -> Admission:
    """Which rows may be begun, by time and budget."""
    ends, limit = post.rank.ends, post.config.system.max_gpu_hours
    until = None if ends is None else ends - post.config.slurm.signal_delay_s
    tell = partial(notices.budget_reached, post.attempt.submission, limit or 0.0)
    return Admission(
        until,
        share_left=states.share_left,
        speed=post.layout.speed if post.layout else 1.0,
        budget=Budget(post.root, limit, on_reached=tell),
    )


def _fitting(post: Post, run_file: RunFile, renderer: Renderer) -> Renderer:
    """Fits strategies to the plan's pilots as the renderer draws them."""
    context = KeyContext.from_json(run_file.key_context)
    out = post.root.pilot_tables(post.attempt.submission)
    pilots = read_pilots(post.root.plan)
    return PilotRenderer(renderer, pilots, context.weights, out, context.boundary)


def _packing(post: Post) -> AbstractContextManager[TarPack | None]:
    """Where media go that have no files of their own."""
    output = post.config.output
    return packing(post.root, post.attempt, output.pack_mib) if output.pack else nullcontext()


def _states(post: Post, run_file: RunFile, engine: EngineChoice) -> States:
    root, config = post.root, post.config
    if config.decode is not None:
        return DrawnRows(Path(config.decode))
    return RowStates(root, run_file.rows, config.system.determinism, engine.device_class)


def _policy(post: Post, run_file: RunFile) -> RowPolicy:
    slurm, context = post.config.slurm, KeyContext.from_json(run_file.key_context)
    return RowPolicy(
        post.attempt,
        post.rank.host,
        run_file.rows,
        slurm.row_retries,
        Origin(context.family, context.weights),
        elsewhere=slurm.executor == "slurm",  # the others have this machine only
    )


@dataclass(frozen=True, slots=True, eq=False)
class Crew:
    """Who has to be told that this replica moves, and who says that it is to end."""

    team: Team
    drain: Drain
    watchdog: Watchdog
    clock: Clock

    def kick(self) -> None:
        """This rank moves; on any thread."""
        self.watchdog.kick()
        self.team.beat()

    def stop(self) -> bool:
        """What the engine asks at every tick: that it asks shows that it moves."""
        self.kick()
        self.team.listen()
        return self.drain()

    def moved(self) -> None:
        """What the engine tells of texts encoded and rows finished: this rank has not come to its
        tail."""
        self.kick()
        self.clock.worked()


@dataclass(frozen=True, slots=True, eq=False)
class WhereTheyWere:
    """A source whose rows go on with the seeds they were at."""

    source: Source
    sink: RowSink

    def take(self, room: int) -> list[Request]:
        return [self.sink.where_it_was(request) for request in self.source.take(room)]

    def restore(self, request: Request) -> Snapshot | None:
        return self.source.restore(request)


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """The engine at work on the rows of a source."""

    renderer: Renderer
    source: ShardSource
    sink: RowSink
    stop: Callable[[], bool]
    moved: Callable[[], object]
    ending: Ending
    audit_every: int = 0

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
        clock = self.ending.clock
        twins = Twins(WhereTheyWere(source, self.sink), self.sink, self.audit_every, clock)
        report = self.renderer.render(twins, twins, stop=self.stop, moved=self.moved, clock=clock)
        self.ending.add(report)
        twins.settle()


def _reason(drain: Drain, source: ShardSource) -> str:
    if drain():
        return drain.reason
    if source.admission.is_over:
        return "budget"
    if source.admission.declined:
        return "drained"
    return "queue-lost" if source.queue is None else "done"


def _header(post: Post) -> AttemptHeader:
    rank = post.rank
    return AttemptHeader(
        attempt=post.attempt,
        rank=rank.rank,
        world_size=rank.world_size,
        host=rank.host,
        job_id=rank.job_id,
        devices=post.place.size,
        versions=tuple(sorted(read_run(post.root).versions.items())),
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
def _run_log(root: RunPaths, attempt: Attempt, wanted: bool) -> Iterator[None]:
    """Log to `logs/` if this is one of the ranks that the job asks to hear; a log that cannot be
    written ends nothing."""
    if not wanted:
        yield
        return
    file = root.run_log(attempt)
    try:
        make_folder(file.parent, root.root)
        handler = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
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
