"""A new run folder: planned under a hidden name, then renamed, so that none is ever half made."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from batchgen.config.compose import Composed, write_hydra
from batchgen.ledger.intent import read_intent, submission_numbers
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
    header = header_of(composed, plan)
    write_configuration(draft, header, composed.resolved, composed.overrides)
    write_json(draft.run_json, header.to_json())


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


def write_configuration(
    run: RunPaths, header: RunFile, config: Mapping[str, Any], overrides: Sequence[str]
) -> None:
    """Say what the run is from now on: `dump_config.json`, and `.hydra/` where
    `output.hydra_dump_mode` of `config` (resolved) wants it; `off` leaves that to run.json."""
    submissions = [
        {"number": intent.number, "created": intent.created, "overrides": list(intent.overrides)}
        for intent in map(partial(read_intent, run), submission_numbers(run))
        if intent is not None and intent.kind == "render"
    ]
    write_json(run.dump_config, describe(header, config, overrides, submissions))
    folders = {"default": run.hydra, "video_dir": run.media / ".hydra"}
    wanted = folders.pop(config["output"]["hydra_dump_mode"], None)
    if wanted is not None:
        write_hydra(config, overrides, header.hydra, wanted)
    for other in folders.values():  # of settings before
        shutil.rmtree(other, ignore_errors=True)
