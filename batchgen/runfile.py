"""run.json: what a run is, written by rename when it is made or replanned."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from batchgen.errors import RunStateError
from batchgen.paths import RunPaths

SCHEMA = 1


class Damaged(RunStateError):
    """A file of a run that is not as it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """Header of a run folder. `config` is the resolved configuration as Hydra composed it and
    `key_context` what enters every row key beside the request, both as plain JSON."""

    schema: int = SCHEMA
    name: str
    tag: str
    created: float  # unix seconds
    rows: int  # of the manifest
    unique_rows: int  # rendered; the others are aliases with an equal key
    plan_id: str  # sha256 of the plan file's row keys
    plan_sha256: str = ""  # of the whole file; empty in runs that are older than it
    plan_bytes: int = 0
    manifest: str
    manifest_digest: str
    key_context: dict[str, Any]
    checkpoint: dict[str, str] = field(default_factory=dict)  # file of the weights -> digest
    config: dict[str, Any]
    overrides: list[str]
    hydra: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    cost_s_total: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_run(run: RunPaths) -> RunFile:
    """The header of `run`; raises RunStateError when there is none or it is of another schema."""
    header = read_header(run.run_json)
    if header is None:
        raise RunStateError(f"{run.root} is not a run folder: it has no run.json")
    return header


def read_header(path: Path) -> RunFile | None:
    """The header in a file, if there is one. Keys of later versions are ignored; RunStateError if
    one is missing or of another kind."""
    fields = read_control(path)
    if fields is None:
        return None
    if fields.get("schema") != SCHEMA:
        raise RunStateError(f"{path}: schema {fields.get('schema')!r}; this version reads {SCHEMA}")
    kinds = {name: get_origin(hint) or hint for name, hint in get_type_hints(RunFile).items()}
    known = {name: value for name, value in fields.items() if name in kinds}
    for name, value in known.items():
        wanted = (int, float) if kinds[name] is float else kinds[name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise _damaged(path, f"{name} is {type(value).__name__}, not {kinds[name].__name__}")
    try:
        return RunFile(**known)
    except TypeError as error:
        raise _damaged(path, str(error).removeprefix("RunFile.__init__() ")) from None


def read_control(path: Path) -> dict[str, Any] | None:
    """The JSON object in a small file of a run folder; None if there is no such file. RunStateError
    with path and reason if it cannot be read or is damaged."""
    try:
        if not path.is_file() and path.exists():  # a pipe would be waited for
            raise _damaged(path, "it is not a file")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunStateError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _damaged(path, str(error) or "it is too large") from None
    if not isinstance(found, dict):
        raise _damaged(path, f"it holds {type(found).__name__}, not an object")
    return found


def _damaged(path: Path, reason: str) -> Damaged:
    return Damaged(f"{path} is damaged: {reason}")
