"""Resume: the same rows under other settings, refused if finished rows would change."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from batchgen.config.composing.compose import Composed, recompose, stored_settings
from batchgen.config.schema import JobConfig
from batchgen.durable import sync_folder, write_json
from batchgen.errors import RunStateError
from batchgen.failpoints import failpoint
from batchgen.ledger.budget import budget_spent
from batchgen.ledger.intent import refuse_lost_intent
from batchgen.ledger.reading.left import survey
from batchgen.ledger.reading.plan_rows import read_plan_rows
from batchgen.ledger.reading.scan import STATUS_CODES
from batchgen.ledger.status import read_status
from batchgen.ledger.upkeep.leftovers import sweep
from batchgen.paths import RunPaths, as_typed
from batchgen.planfile import check_plan, is_next_plan
from batchgen.planning.identity import KeyContext, key_context
from batchgen.planning.plan import make_plan
from batchgen.runfile import RunFile, read_run
from batchgen.runner.create import header_of
from batchgen.runner.jobs import last_submission, refuse_if_alive
from batchgen.runner.loras import judge_of
from batchgen.runner.submit import Replan, Settings
from batchgen.runner.tables import earlier, keep_tables, pilot_is_over, publish_tables

PILOT = "what the pilot found"  # of the reasons for a new plan
# Settings that are in no row key: they decide where and how fast, never the pixels.
NEUTRAL = (
    "tag", "name", "slurm.", "system.parallel.", "system.batch.", "system.memory.mode",
    "system.memory.vram_limit", "system.memory.prefetch", "system.memory.pin",
    "system.determinism", "system.max_gpu_hours", "system.compile.", "system.attention",
    "system.radial.",
    "system.cache.audit_every", "carry_columns", "output.root_dir", "output.hydra_dump_mode",
    "output.enable_", "output.log_ranks", "output.on_event", "output.pack", "output.pack_mib",
)  # fmt: skip


def prepare_resume(run: RunPaths, overrides: list[str], *, rerender_changed: bool) -> Settings:
    """The settings of the next submission: the run's own, with `overrides` on top.

    RunStateError naming the settings if keys of finished rows would change, unless
    `rerender_changed`: then the run is planned again and just those rows lose their result.
    """
    last = last_submission(run)
    refuse_lost_intent(run)
    refuse_if_alive(run)
    sweep(run)
    finish_replan(run)
    header = read_run(run)
    composed = recompose(header.config, overrides, header.hydra)
    composed = replace(composed, overrides=(*header.overrides, *overrides))  # for the record
    _refuse_spent(run, composed.config.system.max_gpu_hours)
    changed = changed_settings(stored_settings(header.config), composed.resolved)
    before = KeyContext.from_json(header.key_context)
    moved = before.differences(key_context(composed.config, before.hash_mode))
    touching = [name for name in changed if not _is_neutral(name)]
    replan = None
    over = [PILOT] if pilot_is_over(run) else []
    if moved or touching or over:
        replan = make_replan(run, header, composed, [*over, *moved, *touching], rerender_changed)
    return Settings(composed.resolved, list(composed.overrides), last, replan)


def _refuse_spent(run: RunPaths, limit: float | None) -> None:
    """RunStateError if rows are left and the run has spent what it may."""
    if (spent := budget_spent(run, limit)) and (status := read_status(run)).ok < status.rows:
        raise RunStateError(f"{run.root}: {spent}")


def changed_settings(old: Any, new: Any, name: str = "") -> list[str]:
    """Dotted names of the leaves in which two nested configurations differ."""
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


def replan_after_pilot(run: RunPaths, config: dict[str, Any]) -> Replan:
    """A plan under `config` (resolved) with the tables that the run's pilot left. RunStateError or
    ManifestError if the manifest is not any more what it was."""
    header = read_run(run)
    composed = recompose(config, [], header.hydra)
    composed = replace(composed, overrides=tuple(header.overrides))
    return make_replan(run, header, composed, [PILOT], rerender=False)


def make_replan(
    run: RunPaths, header: RunFile, composed: Composed, names: list[str], rerender: bool
) -> Replan:
    """Plan again beside the old plan. RunStateError if a finished row would change, unless
    `rerender`. The draft is the caller's."""
    _refuse_decoding(run, header, composed.config, names)
    publish_tables(run)  # first of all: what was measured is worth something whatever comes now
    _refuse_another_manifest(composed.config, header)
    check_plan(run, header)
    draft = run.root / f".plan-{os.getpid()}.parquet"
    try:
        hash_mode = KeyContext.from_json(header.key_context).hash_mode
        plan = make_plan(
            composed.config,
            draft,
            hash_weights=hash_mode,
            earlier=earlier(run),
            keep=run,
            judge=judge_of(composed.config),
        )
        if plan.manifest_digest != header.manifest_digest:
            raise RunStateError(f"{header.manifest} is not the manifest this run was planned from")
        touched = _finished_rows_that_change(run, draft)
        if touched and not rerender:
            raise RunStateError(
                f"{touched} finished rows would change because of {', '.join(sorted(set(names)))}; "
                "resume without these, start a new run, or add --rerender-changed to render just "
                "those rows again"
            )
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    new = replace(header_of(composed, plan), created=header.created)

    def install() -> None:
        keep_tables(run, plan)
        write_json(run.next_run_json, new.to_json())
        failpoint("replan.before_plan")
        os.replace(draft, run.plan)
        failpoint("replan.after_plan")
        write_json(run.run_json, new.to_json())  # no rename: another resume may be mending this
        run.next_run_json.unlink(missing_ok=True)

    return Replan(draft, install, tuple(sorted(set(names))))


def finish_replan(run: RunPaths) -> None:
    """Make plan and run.json agree after a crash between writing the two: the plan decides.
    RunStateError if neither header belongs to it."""
    if not run.next_run_json.exists():
        return
    if is_next_plan(run):
        os.replace(run.next_run_json, run.run_json)
    else:
        check_plan(run, read_run(run))
        run.next_run_json.unlink(missing_ok=True)
    sync_folder(run.root)


def _refuse_decoding(run: RunPaths, header: RunFile, job: JobConfig, names: list[str]) -> None:
    """RunStateError for a run that decodes, whose rows are in no manifest."""
    if job.decode is None and header.config.get("decode") is None:
        return
    source = header.config.get("decode") or job.decode
    raise RunStateError(
        f"{run.root}: {', '.join(names)} cannot be changed in a run that decodes; start another: "
        f"`batchgen decode {as_typed(Path(str(source)))} ...`"
    )


def _refuse_another_manifest(config: JobConfig, header: RunFile) -> None:
    if Path(config.manifest) != Path(header.manifest):
        raise RunStateError(f"manifest: a run keeps its manifest, {header.manifest}")
    if not Path(config.manifest).exists():
        raise RunStateError(
            f"{config.manifest} is gone: settings that are in the row key cannot be changed now"
        )


def _finished_rows_that_change(run: RunPaths, draft: Path) -> int:
    found, new = survey(run), read_plan_rows(draft)
    changed = found.plan.key != new.key
    return int((changed & (found.status == STATUS_CODES["ok"])).sum())
