"""Fitted and published numbers of strategies: where they lie, and which of them serve a row.

A file of entries is a JSON list that is never changed; folders of such files are read in order:
the run's own, the user's cache folder, and `tables/`, which is shipped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from batchgen.durable import write_bytes_atomic
from batchgen.errors import ConfigError, reason_of
from batchgen.request import Bucket

SHIPPED = Path(__file__).with_suffix("")
PACKAGED = "tiny-wan"  # the model to which shipped ones were fitted here
_PLAIN = (str, int, float, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What an entry was made for: None serves every row. That of a row (`row_key`) leaves nothing
    out."""

    strategy: str
    model: str  # name of a preset, or the weights digest of a user's own fit
    solver: str | None = None
    sigma_shift: float | None = None
    num_steps: int | None = None
    bucket: str | None = None  # for models whose schedule depends on the size
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    true_cfg_scale: float | None = None
    use_dynamic_cfg: int | None = None
    guidance_rescale: float | None = None
    boundary: float | None = None  # where the second of two experts takes over
    pixels: int | None = None  # of a frame; of rows alone
    computed: int | None = None  # steps that are computed
    branches: int | None = None  # of a step
    # lowest and highest guidance of either expert that a fit without an exact one serves; the same
    # of true_cfg_scale, of guidance_rescale, and of the pixels of a frame
    guidance_range: tuple[float, float] | None = None
    true_cfg_range: tuple[float, float] | None = None
    rescale_range: tuple[float, float] | None = None
    pixels_range: tuple[float, float] | None = None

    def serves(self, row: Key) -> bool:
        """Whether an entry of this key is legal for a row of that key."""
        for name, scales in RANGES.items():
            if (span := getattr(self, name)) is not None:
                values = [getattr(row, scale) for scale in scales]
                if not all(v is not None and span[0] <= v <= span[1] for v in values):
                    return False
        return all(mine is None or mine == getattr(row, name) for name, mine in self._exact())

    @property
    def given(self) -> int:
        """How many fields say something: of two entries that serve a row, the one that says more
        is nearer to it."""
        return sum(value is not None for _, value in self._exact())

    def _exact(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self) if f.name not in RANGES]


# What makes one velocity of those of the branches: a fit for one value of each, or for a range.
SCALES = (
    "guidance_scale",
    "guidance_scale_2",
    "true_cfg_scale",
    "use_dynamic_cfg",
    "guidance_rescale",
)
RANGES = {
    "guidance_range": ("guidance_scale", "guidance_scale_2"),
    "true_cfg_range": ("true_cfg_scale",),
    "rescale_range": ("guidance_rescale",),
    "pixels_range": ("pixels",),
}


class Sampling(Protocol):
    """What a table may depend on beside model and strategy: of a row, or of all rows alike."""

    @property
    def solver(self) -> str: ...
    @property
    def sigma_shift(self) -> float: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def bucket(self) -> Bucket: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def guidance_scale_2(self) -> float | None: ...
    @property
    def true_cfg_scale(self) -> float: ...
    @property
    def use_dynamic_cfg(self) -> int: ...
    @property
    def guidance_rescale(self) -> float: ...


def row_key(
    row: Sampling,
    strategy: str,
    model: str,
    computed: int | None = None,
    branches: int | None = None,
    boundary: float | None = None,
) -> Key:
    """By which a row looks for its table; `computed`: its steps that are, for planned ones."""
    first, second = row.guidance_scale, row.guidance_scale_2
    return Key(
        strategy=strategy,
        model=model,
        solver=row.solver,
        sigma_shift=row.sigma_shift,
        num_steps=row.num_steps,
        bucket=str(row.bucket),
        guidance_scale=first,
        guidance_scale_2=first if second is None else second,
        true_cfg_scale=row.true_cfg_scale,
        use_dynamic_cfg=row.use_dynamic_cfg,
        guidance_rescale=row.guidance_rescale,
        boundary=boundary,
        pixels=row.bucket.width * row.bucket.height,
        computed=computed,
        branches=branches,
    )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One table. What `content` holds is between the strategy and who fitted it."""

    key: Key
    content: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the sha256 of key and content, as rows name it in `cache_table`."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, Any]:
        """Of the key only what is given."""
        given = {name: value for name, value in asdict(self.key).items() if value is not None}
        return {"key": given, "content": dict(self.content)}


class Tables:
    """The entries of some folders, the first folder's first."""

    def __init__(self, *folders: Path) -> None:
        """Reads every file there is; a folder that is not there holds none. ConfigError for one
        that is damaged, naming it."""
        self.entries = tuple(entry for folder in folders for entry in _entries(folder))
        self._by_digest = {entry.digest: entry for entry in reversed(self.entries)}

    @classmethod
    def usual(cls, *before: Path) -> Tables:
        """Those of the folders `before` (a run's own), then the user's, then the shipped ones."""
        return cls(*before, user_folder(), SHIPPED)

    def find(self, *keys: Key, having: str = "") -> Entry | None:
        """The nearest entry that serves the first of these keys that any serves, of those whose
        content has `having`. One row has more than one key where its model goes by name and by
        digest."""
        return next(self.serving(*keys, having=having), None)

    def serving(self, *keys: Key, having: str = "") -> Iterator[Entry]:
        """All of them, the nearest first."""
        entries = [entry for entry in self.entries if not having or having in entry.content]
        for key in keys:
            legal = [entry for entry in entries if entry.key.serves(key)]
            yield from sorted(legal, key=lambda entry: -entry.key.given)  # equals in their order

    def by_digest(self, digest: str) -> Entry:
        """ConfigError where no folder has it."""
        if digest not in self._by_digest:
            raise ConfigError(
                f"cache_table: no table {digest!r} in the run's folder, in {user_folder()} or "
                "among those that are shipped (plan again, or calibrate again)"
            )
        return self._by_digest[digest]


@cache
def shipped() -> Tables:
    """The shipped ones alone."""
    return Tables(SHIPPED)


@cache
def published() -> frozenset[str]:
    """Digests of the shipped ones that a strategy's authors published, and nobody fitted here:
    those of models that are not in the package."""
    entries = shipped().entries
    return frozenset(entry.digest for entry in entries if entry.key.model != PACKAGED)


def user_folder() -> Path:
    """Where a user's own fits are kept; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "batchgen" / "caches"


def store(folder: Path, entries: Sequence[Entry]) -> Path:
    """Write the entries as one file, named by what is in it, into a folder that is made if need be.
    OSError where it cannot be written; an equal file is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    data = dump(entries)
    first = entries[0].key
    name = f"{first.strategy}.{first.model[:32]}.{hashlib.sha256(data).hexdigest()[:16]}.json"
    if not (folder / name).exists():
        write_bytes_atomic(folder / name, data)
    return folder / name


def dump(entries: Iterable[Entry]) -> bytes:
    """The text of a file: one line an entry."""
    lines = [
        json.dumps(entry.as_json(), separators=(",", ":"), allow_nan=False) for entry in entries
    ]
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


# ----------------------------------------------------------------------------------------- reading
def _entries(folder: Path) -> Sequence[Entry]:
    return _packaged(folder) if folder == SHIPPED else _read_folder(folder)


@cache
def _packaged(folder: Path) -> Sequence[Entry]:
    """Files of the package do not change while it runs."""
    return _read_folder(folder)


def _read_folder(folder: Path) -> list[Entry]:
    """Newest file first, so that a fit made again is preferred to the one before."""
    files = [(-path.stat().st_mtime_ns, path.name, path) for path in folder.glob("[!.]*.json")]
    return [entry for _, _, path in sorted(files) for entry in read(path)]


def read(path: Path) -> list[Entry]:
    """The entries of a file; ConfigError, naming it, for anything else."""
    try:
        return [_entry(value) for value in json.loads(path.read_bytes())]
    except OSError as error:
        raise ConfigError(f"a table of caches cannot be read: {reason_of(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a table of caches ({error!r}); delete it, or calibrate again"
        ) from error


def _entry(value: Any) -> Entry:
    if set(value) != {"key", "content"} or not isinstance(value["content"], dict):
        raise ValueError("an entry has a key and a content")
    given = dict(value["key"])
    for name in RANGES:
        if name in given:
            low, high = given[name]
            given[name] = (float(low), float(high))
    if not all(isinstance(v, _PLAIN) for n, v in given.items() if n not in RANGES):
        raise ValueError("a key holds texts and numbers")
    return Entry(key=Key(**given), content=value["content"])
