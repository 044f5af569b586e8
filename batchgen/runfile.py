"""run.json: what a run is. Written by rename when the run is made or planned again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from batchgen.errors import RunStateError
from batchgen.paths import RunPaths
from batchgen.regular import damaged, read_control

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """Header of a run folder. `config` is the resolved configuration as Hydra composed it, and
    `key_context` is what enters every row key beside the request; both are plain JSON."""

    schema: int = SCHEMA
    name: str
    tag: str
    created: float  # unix seconds
    rows: int  # of the manifest
    unique_rows: int  # rows that are rendered; the others are aliases with an equal key
    plan_id: str  # sha256 of the plan file's row keys
    plan_sha256: str = ""  # of the whole plan file; empty in older runs
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
    """The header of `run`; RunStateError if there is none or it has another schema."""
    header = read_header(run.run_json)
    if header is None:
        raise RunStateError(f"{run.root} is not a run folder: it has no run.json")
    return header


def read_header(path: Path) -> RunFile | None:
    """The header in a file; None if there is no file. Keys of later versions are ignored;
    RunStateError if a key is missing or of another kind."""
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
            raise damaged(path, f"{name} is {type(value).__name__}, not {kinds[name].__name__}")
    try:
        return RunFile(**known)
    except TypeError as error:
        raise damaged(path, str(error).removeprefix("RunFile.__init__() ")) from None
