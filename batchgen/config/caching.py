"""Which step caches a job allows its rows, and what becomes of rows that ask for others."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.caches.settings import (
    NAMES,
    NO_SETTINGS,
    PREFIX,
    Given,
    IllegalSetting,
    Settings,
    resolve,
)
from batchgen.caches.strategies import planned
from batchgen.caches.strategy import NONE, names
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError
from batchgen.families.family import family_spec
from batchgen.request import NOISY


@dataclass(frozen=True, slots=True)
class CacheRules:
    """The job's own settings, and which strategies are allowed."""

    job: Given
    served: tuple[str, ...]  # of these, by the model
    model: str = "no model"  # its name
    enabled: bool = True
    ignore: bool = False  # a row that is refused is drawn without a cache
    solver: str = ""

    def decide(self, row: Given, steps: int) -> tuple[Settings, str]:
        """Settings of a row, and the strategy that it asked for if it has to do without.

        Raises IllegalSetting, for what is refused as well unless that is ignored.
        """
        settings = resolve(row, self.job, steps)
        reason = self._refusal(settings.strategy)
        if not reason:
            return settings, ""
        if self.ignore:
            return NO_SETTINGS, settings.strategy
        raise IllegalSetting("strategy", settings.strategy, reason)

    def _refusal(self, name: str) -> str:
        way = "or draw such rows without a cache: system.cache.on_refused=ignore"
        if name == NONE:
            return ""
        if not self.enabled:
            return f"system.cache.enabled is false; legal: {NONE}, {way}"
        if name not in self.served:
            return f"is not served by {self.model}; served: {', '.join(self.served)}, {way}"
        if name == planned.NAME and self.solver in NOISY:
            others = ", ".join(each for each in self.served if each != name)
            return (
                f"crosses gaps between steps, and system.sampler.solver={self.solver} draws noise "
                f"at each of them; legal: another solver, {others}, {way}"
            )
        return ""


def cache_rules(job: JobConfig) -> CacheRules:
    """What a job says; ConfigError if it cannot hold for a row that gives nothing itself."""
    rows, cache = job.row_defaults, job.system.cache
    rules = CacheRules(
        job=Given(**{name: getattr(rows, PREFIX + name) for name in NAMES}),
        served=family_spec(job.model.family).capabilities(job.model).cache_strategies,
        model=job.model.name,
        enabled=cache.enabled,
        ignore=cache.on_refused == "ignore",
        solver=job.system.sampler.solver or job.model.request_defaults.solver,
    )
    if rows.cache_ratio and cache.min_psnr_db is not None:
        raise ConfigError(
            f"row_defaults.cache_ratio: {rows.cache_ratio:g}: system.cache.min_psnr_db="
            f"{cache.min_psnr_db:g} chooses the ratio of rows that give none; set one of them to "
            "null (row_defaults.cache=planned asks for a cache)"
        )
    try:
        rules.decide(Given(), rows.num_steps or job.model.request_defaults.num_steps)
    except IllegalSetting as error:
        raise ConfigError(f"row_defaults.{error}") from None
    return rules


def any_cache() -> CacheRules:
    """Rules without a job: whatever exists is allowed."""
    return CacheRules(Given(), (NONE, *names()))
