"""Begins or goes on with a run: what `run`, `submit` and `resume` do before ranks start, for the
command line and for Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchgen.config.build import build
from batchgen.config.checkpoints.checkpoint import check_disk
from batchgen.config.composing.compose import Composed, compose_job
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, RunStateError, naming
from batchgen.ledger.reading.left import missing_rows
from batchgen.paths import RunPaths, as_typed
from batchgen.runner.create import create_run, note_launch
from batchgen.runner.executors import executor_for
from batchgen.runner.recover import free_the_steward, give_a_steward
from batchgen.runner.submit import Settings
from batchgen.scheduler.commands import NoScheduler, refuse_absent
from batchgen.words import counted


@dataclass(frozen=True, slots=True)
class Begun:
    """A run that was made, and what its first submission runs under."""

    run: RunPaths
    settings: Settings

    def note(self, *words: str) -> None:
        """Note the command (`words`) in the log of launches, if the job asks for one."""
        note_launch(self.run, self.settings.resolved, words)


def begin(
    job: Path, overrides: Sequence[str], *, verb: str, hash_weights: str = "sampled"
) -> Begun:
    """Check a job and make its run folder; nothing is rendered yet. ConfigError, ManifestError,
    WeightsError or SchedulerError leave nothing behind."""
    composed = compose_job(job, list(overrides))
    settings = ready_settings(composed, verb)
    with naming(inputs_of(composed.config)):
        check_tensors(composed.config)
        run = create_run(composed, hash_weights=hash_weights)
    return Begun(run, settings)


def ready_settings(composed: Composed, verb: str) -> Settings:
    """What a new run is started under. ConfigError or SchedulerError if its executor cannot."""
    settings = Settings(composed.resolved, list(composed.overrides))
    executor_for(composed.config.slurm)
    if settings.executor == "slurm":
        refuse_absent("render here with slurm=local")  # before anything is made
    if verb == "submit":
        refuse_inline(settings, "submit")
    return settings


@contextmanager
def going_on(run: RunPaths, settings: Settings, words: Sequence[str]) -> Iterator[None]:
    """Checks weights and notes the launch (`words`) before a run goes on under `settings`; in the
    end removes the draft of a new plan that was not installed."""
    try:
        config = build(JobConfig, settings.resolved)
        if settings.replan is not None:
            check_tensors(config)
        else:  # the same files, which may be asked to lie elsewhere
            check_disk(config.model, config.system)
        note_launch(run, settings.resolved, words)
        yield
    finally:
        if settings.replan is not None:
            settings.replan.plan.unlink(missing_ok=True)


def mend(run: RunPaths, *, new_settings: bool) -> str:
    """Mend what keeps the run on Slurm from going on; returns what was done, empty if nothing was.
    RunStateError if it goes on, but `new_settings` were wanted for it."""
    done = ""
    with suppress(NoScheduler):  # this machine has no Slurm to look at
        if tasks := give_a_steward(run):
            done = f"{counted(len(tasks), 'task')} found with Slurm; a steward follows now"
        elif tasks := free_the_steward(run):
            ended = f"{counted(len(tasks), 'held task')} ended"
            done = f"{ended}; the steward submits their rows anew"
    if done and new_settings:
        raise RunStateError(
            f"{done}; these have the old settings: to use new ones, "
            f"`batchgen cancel {as_typed(run.root)}` first"
        )
    return done


def with_quarantined(run: RunPaths, settings: Settings) -> np.ndarray:
    """row_index of what a resume renders, and of the quarantined rows."""
    missing = missing_rows(run, settings.replan.plan if settings.replan else None)
    return np.union1d(missing.all, missing.quarantined)


def refuse_inline(settings: Settings, verb: str) -> None:
    """ConfigError for the executor `inline`, with which nothing can go on in the background."""
    if settings.resolved["slurm"]["executor"] == "inline":
        raise ConfigError(
            f"slurm.executor: 'inline' renders in this process; {verb} needs one that outlives it: "
            "slurm.executor=local"
        )


def check_tensors(config: JobConfig) -> None:
    """Raise WeightsError unless the job's weights can be loaded."""
    if config.model.weights not in ("random", "embedded"):
        from batchgen.engine.loading.weights import check_weights  # imports torch, so only here

        check_weights(config.model)
        check_disk(config.model, config.system)


def inputs_of(config: JobConfig) -> dict[str, str | None]:
    """Key -> path of each input of a composed job; None if the value is a word such as `random`."""
    weights = config.model.weights
    return {
        "manifest": config.manifest,
        "model.weights": weights if os.path.isabs(weights) else None,
        **{f"model.files.{name}": file for name, file in config.model.files.items()},
    }
