"""Which stages of its rows a job goes through: all, or those before or behind the latents."""

from __future__ import annotations

from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError
from batchgen.families.family import STAGES, Stage, family_spec
from batchgen.request import LATENTS


def stages_of(job: JobConfig) -> tuple[Stage, ...]:
    """In order; what a job does not go through, it neither loads nor pays."""
    if job.decode is not None:
        return ("decode",)
    return ("encode", "denoise") if job.output.format == LATENTS else STAGES


def check_stages(job: JobConfig) -> None:
    """ConfigError for a setting that looks at frames before a row is done where there are none, or
    for latents of a family that has none."""
    if job.output.format != LATENTS:
        return
    if family_spec(job.model.family).OWN_ENGINE:
        raise ConfigError(f"output.format: latents: {job.model.name} has none")
    if again := [judge.call for judge in job.output.judges if judge.policy == "retry"]:
        raise ConfigError(
            f"output.judges: {again[0]}: policy retry draws rows again for what their frames are, "
            "and with output.format=latents there are none; legal: record, fail (`decode` asks)"
        )
    cache = job.system.cache
    compared: tuple[tuple[str, object, object], ...] = (
        ("audit_every", cache.audit_every, 0),
        ("min_psnr_db", cache.min_psnr_db, None),
    )
    for name, value, legal in compared:
        if value != legal:
            raise ConfigError(
                f"system.cache.{name}: {value}: compares frames, and with output.format=latents "
                f"there are none; legal: {'null' if legal is None else legal}"
            )
