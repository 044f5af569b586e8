"""What the page is told. It is written into it as JSON; the scripts in `assets/` read these names.

Seconds of rows are device seconds; hours are hours of ranks, whatever their device is.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.ledger.fidelity import Fidelity


@dataclass(frozen=True, slots=True)
class Counts:
    """Manifest rows by status."""

    rows: int
    ok: int
    failed: int
    quarantined: int
    pending: int
    aliases: int  # of the ok rows, those that share another row's media


@dataclass(frozen=True, slots=True)
class Share:
    """A part of all hours that ranks were there."""

    name: str
    hours: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Cost:
    """Rendered rows alone: `seconds` as measured, `predicted` by the plan."""

    name: str
    rows: int
    seconds: float
    predicted: float
    encode: float
    denoise: float
    decode: float


@dataclass(frozen=True, slots=True)
class Caching:
    """Evaluations of the rows of one cache strategy and ratio."""

    strategy: str
    ratio: float
    rows: int
    total: float
    computed: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Rows by their seconds; `edges` has one more entry than `counts`."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bins of equal length over the seconds in which ranks were there: time in which none was is
    left out."""

    bin_s: float
    began: float  # unix seconds
    ended: float
    work_s: float  # of all bins together
    pauses: int  # times that nobody worked for longer than a bin
    ok: tuple[int, ...]  # rows finished in each bin
    failed: tuple[int, ...]
    ranks: tuple[float, ...]  # at work, mean over the bin


@dataclass(frozen=True, slots=True)
class Ranks:
    """Attempts from the longest to the shortest: those of the sample, column by column."""

    total: int
    tag: tuple[str, ...]
    host: tuple[str, ...]
    ended: tuple[str, ...]  # how
    rows: tuple[int, ...]
    load: tuple[float, ...]  # seconds, as are the following
    busy: tuple[float, ...]
    idle: tuple[float, ...]
    tail: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Rows that failed for what seems one reason."""

    kind: str
    message: str  # of the first of them
    rows: int
    quarantined: int  # of these rows
    first: tuple[str, ...]  # row ids
    hosts: int
    traceback: str


@dataclass(frozen=True, slots=True)
class Shortage:
    """Rows drawn on one rung of the memory ladder, on devices of one name."""

    device: str
    rung: str
    meaning: str
    rows: int
    attempts: int
    first: tuple[str, ...]  # row ids


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows on the contact sheet, column by column. All rows of a small run; of a large one an even
    sample, with those that are worth a look. `None` where a row has no such figure."""

    rows: int
    every: int  # one of so many rows is in the even sample
    id: tuple[str, ...]
    prompt: tuple[str, ...]
    tags: tuple[str, ...]
    status: tuple[str, ...]
    bucket: tuple[str, ...]
    seed: tuple[str, ...]  # text: a script would round large ones
    width: tuple[int, ...]
    height: tuple[int, ...]
    frames: tuple[int, ...]
    fps: tuple[float, ...]
    steps: tuple[int, ...]
    media: tuple[str, ...]  # relative to the page; empty: none
    seconds: tuple[float | None, ...]
    predicted: tuple[float, ...]
    score: tuple[float | None, ...]
    psnr: tuple[float | None, ...]
    ssim: tuple[float | None, ...]
    cache: tuple[str, ...]
    total: tuple[int, ...]  # evaluations
    computed: tuple[float, ...]
    restored: tuple[int, ...]  # solver steps of an attempt before
    attempt: tuple[str, ...]
    host: tuple[str, ...]
    rung: tuple[str, ...]  # of the memory ladder; empty: none
    alias_of: tuple[str, ...]
    error: tuple[str, ...]
    sampled: tuple[bool, ...]  # of the even sample


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Which run this is, how far it is, and how it was set up."""

    run: str
    tag: str
    state: str
    alive: int  # attempts at work
    made: float  # unix seconds, as is the next
    created: float
    model: str
    weights: str
    executor: str
    device: str
    layout: str
    manifest: str
    config: str  # YAML
    overrides: tuple[str, ...]
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """Where the time went."""

    unit: str  # what an hour of a rank is called
    hours: float
    seconds: float  # of all rendered rows
    predicted: float  # of the same rows
    planned: float  # of all rows, by the plan
    total: float  # evaluations, without caches, of rows that one attempt drew whole
    computed: float
    shares: tuple[Share, ...]
    buckets: tuple[Cost, ...]
    hosts: tuple[Cost, ...]
    caches: tuple[Caching, ...]
    fidelity: tuple[Fidelity, ...]
    histogram: Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All of it."""

    about: About
    counts: Counts
    money: Money
    timeline: Timeline
    ranks: Ranks
    failures: tuple[Failure, ...]
    failure_kinds: int
    shortages: tuple[Shortage, ...]
    sheet: Sheet
