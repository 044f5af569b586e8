"""Makes a new run folder: planned under a hidden name, then renamed, so that no run is half
made."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from batchgen.config.composing.compose import Composed, write_hydra
from batchgen.config.schema import JobConfig
from batchgen.durable import write_bytes_atomic, write_json
from batchgen.errors import ConfigError, RunStateError, obstacle, plain_reason
from batchgen.ledger.intent import intents, submission_numbers
from batchgen.ledger.upkeep.leftovers import sweep_drafts
from batchgen.paths import RunPaths
from batchgen.planning.plan import Plan, make_plan
from batchgen.planning.pricing.layout import refuse_misfit
from batchgen.planning.provenance import describe, package_versions
from batchgen.regular import digest_regular
from batchgen.runfile import RunFile
from batchgen.runner.loras import judge_of
from batchgen.runner.tables import keep_tables
from batchgen.scheduler.options import check_folder

LONGEST_PATH = 4095  # bytes, on Linux
PROBE_BYTES = 4096
LONGEST_INSIDE = 250  # bytes inside a run: media of a row id of 128, with a temporary name


def create_run(
    composed: Composed,
    planned: Callable[[Path], Plan] | None = None,
    *,
    hash_weights: str = "sampled",
) -> RunPaths:
    """Plan the job into `<root_dir>/<tag or name>-<time>-<id>/`; `planned` writes a plan that is
    not made from a manifest.

    ManifestError, ConfigError or WeightsError leave nothing behind, nor any parent folder that was
    made for the run.
    """
    config = composed.config
    root, name = _place(config)
    draft = RunPaths(root / f".{name}.draft")
    sweep_drafts(root)
    made = _missing(draft.root)
    try:
        with _refusing(root):
            draft.root.mkdir(parents=True)
            if planned is None:
                judge = judge_of(config)
                plan = make_plan(
                    config, draft.plan, hash_weights=hash_weights, keep=draft, judge=judge
                )
            else:
                plan = planned(draft.plan)
            refuse_misfit(config, plan)
            _fill(draft, composed, plan)
            os.rename(draft.root, root / name)
    except BaseException:
        shutil.rmtree(draft.root, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # another run is in it by now
                folder.rmdir()
        raise
    return RunPaths(root / name)


def check_place(config: JobConfig) -> None:
    """Raise ConfigError if `create_run` could make no run here. Makes nothing."""
    root, _ = _place(config)
    there = next(each for each in (root, *root.parents) if os.path.lexists(each))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _no_run(root, f"{there} cannot be written")


def _place(config: JobConfig) -> tuple[Path, str]:
    """Parent folder and name of a new run. ConfigError if they do not suit what reads them."""
    root = Path(config.output.root_dir).absolute()
    name = f"{config.tag or config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    check_folder(config.slurm.executor, root)
    _refuse_long(root, name)
    if reason := obstacle(root) or obstacle(root / name):
        raise _no_run(root, reason)
    return root, name


def _no_run(root: Path, reason: str) -> ConfigError:
    return ConfigError(f"output.root_dir: {root}: no run can be made there: {reason}")


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents that do not exist, the innermost first."""
    return [each for each in (folder, *folder.parents) if not os.path.lexists(each)]


def _refuse_long(root: Path, name: str) -> None:
    """ConfigError if paths inside the run would be too long for the system or for other
    programs."""
    length = len(os.fsencode(root / name)) + LONGEST_INSIDE
    if length > LONGEST_PATH:
        most = LONGEST_PATH - LONGEST_INSIDE - 1 - len(os.fsencode(name))
        raise ConfigError(
            f"output.root_dir: {len(os.fsencode(root))} bytes with the folders above it; a run has "
            f"paths inside of up to {LONGEST_INSIDE} more; legal: at most {most}"
        )


@contextmanager
def _refusing(root: Path) -> Iterator[None]:
    """Turns an OSError about `root`, a path above or below it, or no path (a full disk), into an
    error about `output.root_dir`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            path = Path(os.fsdecode(error.filename))
            if not path.is_relative_to(root) and not root.is_relative_to(path):
                raise
        raise _no_run(root, obstacle(root) or plain_reason(error)) from error


def refuse_unwritable(run: RunPaths) -> None:
    """RunStateError if nothing can be written into a run that is to go on."""
    try:
        write_bytes_atomic(run.root / ".probe", bytes(PROBE_BYTES))
        (run.root / ".probe").unlink(missing_ok=True)
    except OSError as error:
        raise RunStateError(f"{run.root} cannot be written: {error.strerror}") from error


def note_launch(run: RunPaths, resolved: Mapping[str, Any], words: Sequence[str]) -> None:
    """Append the command that starts something of `run` to `logs/launch.log`, if the configuration
    asks for that log."""
    if not resolved["output"]["enable_launch_log"]:
        return
    with (run.logs / "launch.log").open("a", encoding="utf-8") as file:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), *words, file=file)


def _fill(draft: RunPaths, composed: Composed, plan: Plan) -> None:
    for folder in (draft.media, draft.journals, draft.counters_dir, draft.submissions, draft.logs):
        folder.mkdir()
    keep_tables(draft, plan)
    header = header_of(composed, plan)
    write_configuration(draft, header, composed.resolved, composed.overrides)
    write_json(draft.run_json, header.to_json())


def header_of(composed: Composed, plan: Plan) -> RunFile:
    """The content of run.json for the plan at `plan.path`."""
    config = composed.config
    plan_sha256, plan_bytes = digest_regular(plan.path)
    return RunFile(
        name=config.name,
        tag=config.tag,
        created=time.time(),
        rows=plan.rows,
        unique_rows=plan.unique_rows,
        plan_id=plan.plan_id,
        plan_sha256=plan_sha256,
        plan_bytes=plan_bytes,
        manifest=config.manifest,
        manifest_digest=plan.manifest_digest,
        key_context=plan.key_context.to_json(),
        checkpoint=plan.checkpoint,
        config=composed.resolved,
        overrides=list(composed.overrides),
        hydra=composed.hydra,
        versions=package_versions(),
        cost_s_total=plan.cost_s_total,
    )


def write_configuration(
    run: RunPaths, header: RunFile, config: Mapping[str, Any], overrides: Sequence[str]
) -> None:
    """Write what the run is from now on: `dump_config.json`, and `.hydra/` where
    `output.hydra_dump_mode` of `config` (resolved) says; with `off` only run.json has it."""
    submissions = [
        {"number": intent.number, "created": intent.created, "overrides": list(intent.overrides)}
        for intent in intents(run, submission_numbers(run))
        if intent.kind == "render"
    ]
    write_json(run.dump_config, describe(header, config, overrides, submissions))
    folders = {"default": run.hydra, "video_dir": run.media / ".hydra"}
    wanted = folders.pop(config["output"]["hydra_dump_mode"], None)
    if wanted is not None:
        write_hydra(config, overrides, header.hydra, wanted)
    for other in folders.values():  # folders of earlier settings
        shutil.rmtree(other, ignore_errors=True)
