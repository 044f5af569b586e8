"""run.json: what a run is, written by rename when it is made or replanned."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from batchgen.errors import RunStateError
from batchgen.paths import RunPaths

SCHEMA = 1


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
    try:
        return read_header(run.run_json)
    except FileNotFoundError:
        raise RunStateError(f"{run.root} is not a run folder: it has no run.json") from None


def read_header(path: Path) -> RunFile:
    """The header in a file; FileNotFoundError, or RunStateError naming it if it cannot be read."""
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RunStateError(f"{path} is damaged: {error}") from None
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if schema != SCHEMA:
        raise RunStateError(f"{path}: schema {schema!r}; this version reads {SCHEMA}")
    try:
        return RunFile(**fields)
    except TypeError as error:
        raise RunStateError(f"{path} is damaged: {error}") from None
