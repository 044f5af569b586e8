"""The nouns that travel: frozen and light (standard library only)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, get_args

from batchgen.request import Bucket, Request

if TYPE_CHECKING:
    import numpy as np

Status = Literal["ok", "failed", "quarantined", "pending"]
Determinism = Literal["strict", "throughput"]
MemoryMode = Literal["resident", "model", "stream", "disk"]
# What a replica takes to when its device is out of memory, in this order: what is merely kept is
# let go; fewer items share a forward, or rows a decode; components are there for their stage alone;
# their blocks stream.
Rung = Literal["free", "smaller", "model", "stream"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
Precision = Literal["bfloat16", "float16", "float32"]
# Rows that are decoded together, at most, and their pixels, all frames counted: a device that has
# so many at work gains nothing by more.
MOST_DECODED, DECODE_PIXELS = 8, 2**21
_DEGREES = ("dp", "cfg", "ulysses", "ring")
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def rows_decoded(pixels: int, bucket: Bucket) -> int:
    """Most rows of a shape that so many pixels allow to be decoded together."""
    row = bucket.width * bucket.height * bucket.num_frames
    return max(1, min(MOST_DECODED, pixels // row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the ranks of a submission and their memory are used: decided when it is made, obeyed by
    every rank. The degrees multiply to nodes x ranks_per_node."""

    nodes: int = 1
    ranks_per_node: int = 1
    dp: int = 1  # replicas, each with rows of its own
    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    # resident: all components stay; model: those of one stage at a time; stream: the same, and
    # blocks come from the host one by one; disk: from the checkpoint's files
    memory: MemoryMode
    places: str = ""  # components that live otherwise: `text_encoder=model vae=resident`
    resident_blocks: int = 0  # of a transformer, that stay all the same, in mode `stream`
    precision: Precision  # that components run in, but for those that always run in float32
    attention: str  # kernel, as far as it is known before anything runs
    device: str  # of the profile that it was decided for; `cpu` is none with memory of its own
    decode_pixels: int = 0  # of rows that are decoded together, all frames; 0: one by one
    kept_gib: float = 0.0  # of all rows in flight, between two steps; 0: as many as ticks take
    vram_gib: float = 0.0  # predicted peak of one rank with one item per forward
    fits: bool = True
    speed: float = 1.0  # predicted, of a replica against one rank of it with all resident
    slower: float = 1.0  # predicted, times the seconds of a row with all resident
    reason: str = ""

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def ranks_of_a_replica(self) -> int:
        """That draw each row together."""
        return self.cfg * self.ulysses * self.ring

    @property
    def nodes_together(self) -> int:
        """Nodes that a replica spans: one job has them all, and as many replicas as fit."""
        return -(-self.ranks_of_a_replica // self.ranks_per_node)

    @property
    def groups(self) -> int:
        """Groups of as many nodes as a replica spans; each works on a shard of its own."""
        return max(1, self.nodes // self.nodes_together)

    @property
    def replicas_together(self) -> int:
        """Replicas of one job: they draw the rows of its shard."""
        return max(1, self.nodes_together * self.ranks_per_node // self.ranks_of_a_replica)

    def __str__(self) -> str:
        """Short, for tables: `dp2 resident bf16`."""
        degrees = [(name, getattr(self, name)) for name in _DEGREES]
        parts = [f"{name}{degree}" for name, degree in degrees if degree > 1 or name == "dp"]
        return " ".join([*parts, self.memory, _SHORT[self.precision]])


def ranks_named(layout: str) -> int:
    """Ranks that drew a row together, by the short name of their layout; 1 if there is none."""
    found = re.findall(r"\b(?:cfg|ulysses|ring)(\d+)", layout)
    return math.prod(map(int, found))


def is_streamed(layout: str) -> bool:
    """Whether blocks came from the host or from disk, by the short name of a layout."""
    return not {"stream", "disk"}.isdisjoint(layout.split())


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """Seconds of one row by stage. Shared work is divided among its rows, so that all rows add up
    to the busy time; `queue` is waiting, not busy time."""

    queue: float = 0.0
    encode: float = 0.0
    denoise: float = 0.0
    decode: float = 0.0
    d2h: float = 0.0
    write: float = 0.0
    judge: float = 0.0


@dataclass(frozen=True, slots=True)
class Audit:
    """A row that was also drawn without its cache: how far the two are apart, and what it took."""

    psnr: float | None = None  # dB, of the row's frames against the others; None: there are none
    ssim: float | None = None
    busy: float = 0.0  # seconds of encoding and denoising without the cache
    seconds: float = 0.0  # the same with decoding and comparing
    steps: float = 0.0  # evaluations computed without the cache


@dataclass(frozen=True, slots=True)
class RowStats:
    """What was measured while one row was drawn."""

    stages: StageSeconds = field(default_factory=StageSeconds)
    steps_total: int = 0  # transformer evaluations over both branches without a cache
    steps_computed: float = 0.0  # evaluations really computed; fractions for partial caches
    steps_computed_cond: float = 0.0  # of these, of the branch of the prompt
    steps_computed_uncond: float = 0.0  # and of the other one
    cache_bytes: int = 0  # that the row's step cache held at most
    cache_restarts: int = 0  # times it began anew without what it had remembered
    steps_restored: int = 0  # solver steps taken by an earlier attempt that saved the row
    step_p50_s: float = 0.0
    step_p95_s: float = 0.0
    batch_size_mean: float = 0.0  # items per forward, mean over the row's forwards
    peak_mem_gib: float | None = None  # device memory; None on a CPU
    host_rss_gib: float = 0.0  # resident set of the process, the largest so far
    memory_rung: str = ""  # the highest `Rung` that its replica was on by then; empty: none
    prompt_tokens: int = 0
    prompt_truncated: bool = False
    negative_prompt_tokens: int = 0  # 0 without guidance: the text is then not read
    negative_prompt_truncated: bool = False
    determinism: Determinism = "throughput"
    attention_kernel: str = ""
    device: str = ""
    audit: Audit | None = None

    @property
    def busy(self) -> float:
        """Seconds of encoding and denoising, those of the audit included."""
        return self.stages.encode + self.stages.denoise + (self.audit.busy if self.audit else 0.0)


@dataclass(frozen=True, slots=True)
class RankSeconds:
    """Seconds that the rendering thread of a rank has spent since it began. One of them runs at any
    moment; decoding and writing run behind, but for decodes that all ranks of a replica share. A
    rank that follows spends as its leader does, which alone writes it down."""

    load: float = 0.0  # until it could render
    move: float = 0.0  # moving components to the device and back
    encode: float = 0.0
    denoise: float = 0.0
    shared_decode: float = 0.0  # decoding with the other ranks of the replica
    idle: float = 0.0  # waiting for rows, the writer, other ranks or a decode, before further work
    tail: float = 0.0  # waiting after the last work (or since it could render)
    open: float = 0.0  # part of encode and denoise: on rows without a closing line

    @property
    def busy(self) -> float:
        return self.encode + self.denoise

    @property
    def waiting(self) -> float:
        return self.idle + self.tail

    @property
    def wall(self) -> float:
        """All of it, whatever was done to the clock meanwhile; 0 where nothing was measured."""
        return self.load + self.move + self.busy + self.shared_decode + self.waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounters:
    """What an engine counts while it renders. The end line of a journal and the catalog take their
    fields from this class."""

    forwards: int = 0
    items: int = 0  # branches of rows over all forwards
    unique_texts_encoded: int = 0
    text_encoder_calls: int = 0
    texts_from_disk: int = 0  # that another rank, or an attempt before, had encoded
    component_moves: int = 0  # onto the device
    expert_swaps: int = 0  # those that replaced one expert by another between two steps
    device_syncs: int = 0  # explicit waits for the device; on a CPU they cost nothing
    windows: int = 0
    streamed_gib: float = 0.0  # of blocks that were copied onto the device for their forwards
    peak_weights_gib: float = 0.0  # most weights on the device at once, whatever is its memory
    compiles: int = 0  # graphs of blocks
    recompiles: int = 0  # of them, for shapes that had been compiled before
    decode_s: float = 0.0  # with the copy to the host; behind the ticks unless serial
    peak_mem_gib: float | None = None  # of the device; None on a CPU
    host_rss_gib: float = 0.0
    memory_rung: str = ""  # the highest `Rung` that was climbed to; empty: none
    self_test: str = ""  # packs keep bits: passed, failed, not needed
    split_test: str = ""  # and so do forwards over several ranks


_PEAKS = ("host_rss_gib", "peak_weights_gib")
_WORDS = ("memory_rung", "self_test", "split_test")


def add_counters(runs: Iterable[EngineCounters]) -> EngineCounters:
    """Counters of several renders by one engine: sums, but the highest peaks and rung, and the
    first self-tests."""
    parts = list(runs)
    if not parts:
        return EngineCounters()
    sums = {
        spec.name: sum(getattr(part, spec.name) for part in parts)
        for spec in fields(EngineCounters)
        if spec.name not in (*_PEAKS, *_WORDS, "peak_mem_gib")
    }
    return EngineCounters(
        **sums,
        peak_mem_gib=max((p.peak_mem_gib for p in parts if p.peak_mem_gib), default=None),
        **{name: max(getattr(part, name) for part in parts) for name in _PEAKS},
        memory_rung=parts[-1].memory_rung,  # none is climbed down
        self_test=parts[0].self_test,
        split_test=parts[0].split_test,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """A finished row on the host: `frames` is uint8 (frames, height, width, 3); of one that is not
    decoded the latents (1, ...), float32, float16, or uint16 with the bits of bfloat16."""

    request: Request
    frames: np.ndarray
    stats: RowStats


@dataclass(frozen=True, slots=True)
class Media:
    """A media file (or folder, for format `frames`) that is durable under its final name."""

    path: str  # relative to the run folder, '/' separated; of a member `FILE.tar::MEMBER`
    sha256: str
    bytes: int
    # sha256 of the uint8 frames before encoding, or of latents: the evidence of pixels
    frames_sha256: str
    num_frames: int
    offset: int = 0  # where a member begins in its tar


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One start of one replica of one task of one submission: the single writer of one journal."""

    submission: int
    task: int
    restart: int
    replica: int

    @property
    def tag(self) -> str:
        """Short name inside media names and the catalog, e.g. `s1t3r0p2`."""
        return f"s{self.submission}t{self.task}r{self.restart}p{self.replica}"


@dataclass(frozen=True, slots=True)
class Climb:
    """A replica was out of its device's memory, and takes to this from now on."""

    rung: Rung
    stage: str  # load, encode, denoise or decode: what it was at
    bucket: str = ""  # on rung `smaller`: for these rows
    items: int = 0  # there: of a forward, or rows of a decode, at most

    def above(self, rung: str) -> str:
        """The higher of its rung and another, or none."""
        return max(self.rung, rung, key=("", *RUNGS).index)


@dataclass(frozen=True, slots=True)
class Metric:
    """What a judge says of a row."""

    column: str
    text: str  # a number: `inf` too, which JSON cannot hold as one


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a row in one attempt: the journal line that publishes or fails it."""

    row_index: int
    row_id: str
    row_key: str
    status: Status  # ok or failed or quarantined
    attempt: str  # Attempt.tag
    shard: int
    host: str
    started: float  # unix seconds
    ended: float  # unix seconds
    tries: int = 1
    media: Media | None = None
    stats: RowStats | None = None
    seed: int | None = None  # that it was drawn with; None: the plan's
    metrics: tuple[Metric, ...] = ()
    judge_notes: str = ""  # of judges without a number, or that reject the row
    error_type: str = ""
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class RankInfo:
    """This process's place among the processes of its task."""

    rank: int
    world_size: int
    local_rank: int
    task: int  # array index = shard number inside the submission
    restart: int
    host: str
    job_id: str = ""
    address: str = "127.0.0.1"  # of rank 0: where the other ranks of the task reach it
    ends: float | None = None  # unix seconds of the task's wall-time limit; None = unknown
