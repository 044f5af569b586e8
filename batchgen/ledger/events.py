"""The lines of a journal: typed events, and the one mapping between them and JSON.

A line is `{"kind":"...", <fields>, "crc":"<crc32 of all before it>"}` and a newline. Commit lines
begin with row_index, status and row_key, start lines with row_index and alone. Readers that need no
more match `HEAD` or `START` and do not parse the JSON; the check sum makes that safe. Any line may
have a field `spent`: what the attempt had spent when it wrote that line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
import time
import types
import typing
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from batchgen.processes import ProcessId
from batchgen.records import Attempt, Climb, Commit, EngineCounters, RankSeconds

T = TypeVar("T")
HEAD = re.compile(
    rb'\{"kind":"(commit|void)","row_index":(\d+)'
    rb',"status":"(ok|failed|quarantined|void)","row_key":"(\w*)"'
)
START = re.compile(rb'\{"kind":"start","row_index":(\d+),(?:"alone":(true|false),)?[^\n]*\}\n')
LEFT = re.compile(rb'\{"kind":"(?:saved|tried)","row_index":(\d+),')  # in flight no more
SIGNALLED = b'{"kind":"signalled",'
CLIMBED = b'{"kind":"climbed",'
DEVICE = b'{"kind":"device",'
END = b'{"kind":"end",'
_CRC = b',"crc":"'
_END_BYTES = len(_CRC) + 8 + len(b'"}\n')


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptHeader:
    """First line of a journal: which attempt writes it, where, and with which versions."""

    attempt: Attempt
    rank: int = 0
    world_size: int = 1
    host: str = ""
    job_id: str = ""
    device: str = ""  # written by older versions; `scan` fills it from the `Device` line
    device_id: str = ""  # as `device`
    devices: int = 1  # devices of this replica; it costs wall time x devices
    versions: tuple[tuple[str, str], ...] = ()
    process: ProcessId = field(default_factory=ProcessId.current)
    t: float = field(default_factory=time.time)  # unix seconds, like every `t` below


@dataclass(frozen=True, slots=True)
class Device:
    """The device of the attempt, once it is known."""

    name: str
    t: float
    id: str = ""  # tells devices of one name on a host apart; empty where there is one


@dataclass(frozen=True, slots=True)
class Start:
    """A row joins those in flight. Not synced: it only helps to tell what a dead attempt was
    doing."""

    row_index: int
    row_id: str
    t: float
    alone: bool = False  # a suspect: no other row is in flight beside it


@dataclass(frozen=True, slots=True)
class Saved:
    """The state of a row in flight was saved in the run folder; the next attempt at it goes on from
    there."""

    row_index: int
    step: int  # solver steps it has taken, over all attempts
    seconds: float  # busy seconds that this attempt has spent on it
    t: float


@dataclass(frozen=True, slots=True)
class Tried:
    """A row in flight failed, and this attempt will try it again."""

    row_index: int
    seconds: float  # busy seconds that this try cost
    error: str  # class of the error
    t: float


@dataclass(frozen=True, slots=True)
class Signalled:
    """The attempt was told to end. If it is then killed before it has ended, neither its rows nor
    its machine are to blame."""

    name: str  # SIGTERM ...
    t: float


@dataclass(frozen=True, slots=True)
class Climbed:
    """The attempt was out of device memory and climbed the memory ladder; later attempts on such a
    device start there."""

    climb: Climb
    t: float


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds of work that belong to no row: load, compile, warmup."""

    name: str
    seconds: float
    t: float


@dataclass(frozen=True, slots=True)
class Void:
    """Commits of a row in earlier submissions no longer count, because the media are damaged."""

    row_index: int
    path: str  # of the damaged media
    reason: str
    t: float
    status: str = "void"
    row_key: str = ""  # empty: commits are taken back whatever their key


@dataclass(frozen=True, slots=True, kw_only=True)
class End(EngineCounters):
    """Last line of an attempt that ended by itself, with the seconds that it measured.

    busy = encode + denoise; decoding runs behind. The seconds are those of `records.RankSeconds`,
    also after an error; the other figures cover only renders that came to their end.
    """

    reason: str  # done, stopped, error ...
    busy_s: float = 0.0
    load_s: float = 0.0
    move_s: float = 0.0
    idle_s: float = 0.0
    tail_s: float = 0.0
    lost_s: float = 0.0  # part of busy: spent on rows that have no closing line from this attempt
    encode_s: float = 0.0
    denoise_s: float = 0.0
    shared_decode_s: float = 0.0
    error: str = ""
    t: float = field(default_factory=time.time)


Told = Device | Signalled | Climbed | Phase  # of the attempt itself, not of a row
Event = AttemptHeader | Start | Saved | Tried | Commit | Void | Told | End
_KINDS: dict[str, type[Any]] = {
    "attempt": AttemptHeader,
    "device": Device,
    "start": Start,
    "saved": Saved,
    "tried": Tried,
    "signalled": Signalled,
    "climbed": Climbed,
    "phase": Phase,
    "commit": Commit,
    "void": Void,
    "end": End,
}
_NAMES = {cls: kind for kind, cls in _KINDS.items()}
_SCALARS = (int, str, bool)
_FIRST = ("row_index", "status", "row_key", "alone")


def encode_line(event: Event, spent: RankSeconds | None = None) -> bytes:
    """One line with its newline; `spent` becomes a field of it."""
    plain = _said(event) if isinstance(event, Commit) else to_plain(event)
    if spent is not None:
        plain["spent"] = {name: round(s, 4) for name, s in to_plain(spent).items() if s}
    head = {"kind": _NAMES[type(event)], **{name: plain[name] for name in _FIRST if name in plain}}
    body = json.dumps({**head, **plain}, separators=(",", ":"), allow_nan=False).encode()[:-1]
    return body + _CRC + b"%08x" % zlib.crc32(body) + b'"}\n'


def _said(value: Any) -> Any:
    """`to_plain` without fields that are null, 0 or empty by default: a commit has dozens, and what
    is absent is read as that. It spares up to half of a journal, and of the time to read it."""
    if not dataclasses.is_dataclass(value):
        return to_plain(value)
    fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return {f.name: _said(item) for f, item in fields if item or item != f.default}


def decode_line(line: bytes) -> Event:
    """The event of one line; ValueError if it is not whole or of an unknown kind."""
    if not is_whole(line):
        raise ValueError("the line is torn: its check sum does not fit")
    plain = json.loads(line)
    kind = plain.pop("kind", None)
    plain.pop("crc", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of line {kind!r}")
    event: Event = from_plain(_KINDS[kind], plain)
    return event


def is_whole(line: bytes) -> bool:
    """Whether the check sum of a line (with or without its newline) fits."""
    return sum_of(line if line.endswith(b"\n") else line + b"\n") is not None


def sum_of(line: bytes) -> int | None:
    """The check sum of a line with its newline; None if it does not fit."""
    crc = zlib.crc32(line[:-_END_BYTES])
    return crc if line.endswith(b',"crc":"%08x"}\n' % crc) else None


def time_of(line: bytes) -> float:
    """When a line was written (unix seconds); 0 if it is not whole."""
    plain = json.loads(line) if is_whole(line) else {}
    return float(plain.get("t") or plain.get("ended") or 0.0)


def spent_of(line: bytes) -> RankSeconds | None:
    """What the attempt had spent when it wrote a line; None if the line does not say."""
    plain = json.loads(line).get("spent") if is_whole(line) else None
    return None if plain is None else from_plain(RankSeconds, plain)


def to_plain(value: Any) -> Any:
    """A dataclass, tuple or scalar as JSON values. Text that UTF-8 cannot hold is escaped, and
    numbers that JSON cannot hold become null."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):  # NumPy's scalars too
        return int(value)
    return float(value) if math.isfinite(value) else None


def from_plain(cls: type[T], plain: dict[str, Any]) -> T:
    """The inverse of `to_plain`; ValueError if a value does not fit or a field without default is
    absent. Unknown keys are ignored and absent ones take their default, so that older journals can
    be read."""
    if not isinstance(plain, dict):
        raise ValueError(f"{cls.__name__}: {type(plain).__name__} where fields are expected")
    hints = _hints(cls)  # type: ignore[arg-type]
    absent = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.name not in plain and field.default is field.default_factory
    ]
    if absent:
        raise ValueError(f"{cls.__name__}: has no {', '.join(absent)}")
    try:
        known = {name: _restore(hints[name], item) for name, item in plain.items() if name in hints}
        return cls(**known)
    except (TypeError, AttributeError) as error:  # a value of another kind
        raise ValueError(f"{cls.__name__}: {error}") from error


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _restore(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        kinds = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        kind = next((kind for kind in kinds if type(value) is kind), kinds[0])
        return None if value is None else _restore(kind, value)
    if hint is float:
        return math.nan if value is None else float(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value)
    if origin is tuple:
        item, *rest = typing.get_args(hint)
        hints = [item] * len(value) if rest == [Ellipsis] else [item, *rest]
        return tuple(_restore(each, part) for each, part in zip(hints, value, strict=True))
    if origin is dict:
        key, item = typing.get_args(hint)
        return {key(name): _restore(item, part) for name, part in value.items()}
    if hint in _SCALARS and type(value) is not hint:
        raise ValueError(f"{value!r:.60} where {hint.__name__} is expected")
    return value
