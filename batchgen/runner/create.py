"""A new run folder: planned under a hidden name, then renamed, so that none is ever half made."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgen.config.compose import Composed, write_hydra
from batchgen.ledger.leftovers import sweep_drafts
from batchgen.media.durable import write_json
from batchgen.paths import RunPaths
from batchgen.planning.plan import Plan, make_plan
from batchgen.planning.provenance import describe, package_versions
from batchgen.runfile import RunFile


def create_run(composed: Composed, *, hash_weights: str = "sampled") -> RunPaths:
    """Plan the job into `<root_dir>/<tag or name>-<time>-<id>/`.

    Raises ManifestError, ConfigError or WeightsError with nothing left behind.
    """
    config = composed.config
    root = Path(config.output.root_dir).absolute()
    name = f"{config.tag or config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    draft = RunPaths(root / f".{name}.draft")
    draft.root.mkdir(parents=True)
    sweep_drafts(root)
    try:
        plan = make_plan(config, draft.plan, hash_weights=hash_weights)
        _fill(draft, composed, plan)
        os.rename(draft.root, root / name)
    except BaseException:
        shutil.rmtree(draft.root, ignore_errors=True)
        raise
    return RunPaths(root / name)


def note_launch(run: RunPaths, resolved: Mapping[str, Any], words: Sequence[str]) -> None:
    """Append a command that starts something of `run` to `logs/launch.log`, if its configuration
    asks for that log."""
    if not resolved["output"]["enable_launch_log"]:
        return
    with (run.logs / "launch.log").open("a", encoding="utf-8") as file:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), *words, file=file)


def _fill(draft: RunPaths, composed: Composed, plan: Plan) -> None:
    for folder in (draft.media, draft.journals, draft.counters_dir, draft.submissions, draft.logs):
        folder.mkdir()
    dump_hydra(draft, composed)
    write_json(draft.dump_config, describe(composed, plan))
    write_json(draft.run_json, header_of(composed, plan).to_json())


def header_of(composed: Composed, plan: Plan) -> RunFile:
    """The content of run.json."""
    config = composed.config
    return RunFile(
        name=config.name,
        tag=config.tag,
        created=time.time(),
        rows=plan.rows,
        unique_rows=plan.unique_rows,
        plan_id=plan.plan_id,
        manifest=config.manifest,
        manifest_digest=plan.manifest_digest,
        key_context=plan.key_context.to_json(),
        config=composed.resolved,
        overrides=list(composed.overrides),
        hydra=composed.hydra,
        versions=package_versions(),
        cost_s_total=plan.cost_s_total,
    )


def dump_hydra(run: RunPaths, composed: Composed) -> None:
    """Write `.hydra/` where `output.hydra_dump_mode` wants it; `off` leaves it to run.json."""
    match composed.config.output.hydra_dump_mode:
        case "default":
            write_hydra(composed, run.hydra)
        case "video_dir":
            write_hydra(composed, run.media / ".hydra")
        case "off":
            return
