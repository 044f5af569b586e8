"""Resume: the same rows under other settings, refused when finished rows would change."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchgen.config.compose import Composed, recompose
from batchgen.config.schema import JobConfig
from batchgen.errors import RunStateError
from batchgen.ledger.scan import STATUS_CODES
from batchgen.ledger.winners import winners
from batchgen.media.durable import write_json
from batchgen.paths import RunPaths
from batchgen.planning.identity import KeyContext, key_context
from batchgen.planning.plan import make_plan, read_keys
from batchgen.runfile import RunFile, read_run
from batchgen.runner.create import dump_hydra, header_of
from batchgen.runner.submit import Settings, refuse_if_alive

# Settings outside every row key: they say where and how fast, never which pixels.
NEUTRAL = (
    "tag", "name", "slurm.", "system.parallel.", "system.batch.", "system.memory.mode",
    "system.memory.vram_limit", "system.memory.prefetch", "system.memory.pin",
    "system.determinism", "system.compile.", "system.attention", "system.cache.", "carry_columns",
    "output.root_dir", "output.hydra_dump_mode", "output.enable_", "output.log_ranks",
)  # fmt: skip


def prepare_resume(run: RunPaths, overrides: list[str], *, rerender_changed: bool) -> Settings:
    """The settings of the next submission: the run's own with `overrides` on top.

    Raises RunStateError naming the settings when keys of finished rows would change, unless
    `rerender_changed`: then the run is replanned and just those rows lose their result.
    """
    refuse_if_alive(run)
    header = read_run(run)
    composed = recompose(header.config, overrides)
    composed = replace(composed, overrides=(*header.overrides, *overrides))  # for the record
    changed = changed_settings(header.config, composed.resolved)
    before = KeyContext.from_json(header.key_context)
    moved = before.differences(key_context(composed.config, before.hash_mode))
    touching = [name for name in changed if not _is_neutral(name)]
    if moved or touching:
        _replan(run, header, composed, [*moved, *touching], rerender_changed)
    return Settings(composed.resolved, list(composed.overrides))


def changed_settings(old: Any, new: Any, name: str = "") -> list[str]:
    """Dotted names of the leaves in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            leaf
            for key in keys
            for leaf in changed_settings(
                old.get(key), new.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if old == new else [name]


def _is_neutral(name: str) -> bool:
    return any(name == n or (n[-1] in "._" and name.startswith(n)) for n in NEUTRAL)


def _replan(
    run: RunPaths, header: RunFile, composed: Composed, names: list[str], rerender: bool
) -> None:
    """Plan again beside the old plan and install it if no finished row changes, or if asked to."""
    _refuse_another_manifest(composed.config, header)
    draft = run.root / ".plan.draft.parquet"
    try:
        hash_mode = KeyContext.from_json(header.key_context).hash_mode
        plan = make_plan(composed.config, draft, hash_weights=hash_mode)
        if plan.manifest_digest != header.manifest_digest:
            raise RunStateError(f"{header.manifest} is not the manifest this run was planned from")
        touched = _finished_rows_that_change(run, draft)
        if touched and not rerender:
            raise RunStateError(
                f"{touched} finished rows would change because of {', '.join(sorted(set(names)))}; "
                "resume without these, start a new run, or add --rerender-changed to render just "
                "those rows again"
            )
        os.replace(draft, run.plan)
    finally:
        draft.unlink(missing_ok=True)
    write_json(run.run_json, replace(header_of(composed, plan), created=header.created).to_json())
    dump_hydra(run, composed)


def _refuse_another_manifest(config: JobConfig, header: RunFile) -> None:
    if Path(config.manifest) != Path(header.manifest):
        raise RunStateError(f"manifest: a run keeps its manifest, {header.manifest}")
    if not Path(config.manifest).exists():
        raise RunStateError(
            f"{config.manifest} is gone: settings that are in the row key cannot be changed now"
        )


def _finished_rows_that_change(run: RunPaths, draft: Path) -> int:
    old, new = read_keys(run.plan), read_keys(draft)
    finished = winners(run).status == STATUS_CODES["ok"]
    return int((old[finished] != new[finished]).sum())
