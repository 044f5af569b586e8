"""What is compared: every strategy that the model serves, and the twins that each has to beat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from batchgen.caches.settings import PREFIX, Given, resolve
from batchgen.caches.strategy import NONE, Facts, computed_count, strategy
from batchgen.caches.tables import Tables, row_key
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.family import family_spec
from batchgen.request import Request

UNCACHED = NONE
FEWER = "fewer steps"  # the same solver with as many steps as the others compute
OURS = "planned"


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to draw a row with a share of its evaluations.

    `ends`: warm-up and cool-down (None: the strategy's own); `knobs`: its native ones."""

    name: str
    strategy: str = NONE
    ends: tuple[int, int] | None = None
    knobs: Mapping[str, float] = field(default_factory=dict)

    @property
    def facts(self) -> Facts:
        return strategy(self.strategy).FACTS

    @property
    def tunable(self) -> bool:
        """Whether a threshold decides how much it computes."""
        return self.strategy != NONE and not self.facts.data_free


# Other settings of published strategies, so that none is judged by a default of ours.
SHORT = (1, 1)
VARIANTS = (
    Policy("taylorseer, order 2", "taylorseer", knobs={"order": 2}),
    *(
        Policy(f"{name}, short ends", name, ends=SHORT)
        for name in ("teacache", "easycache", "first_block")
    ),
)


def policies(model: ModelSpec, chosen: Sequence[str] | None = None) -> list[Policy]:
    """All that there are for the model, or those of these names; ConfigError for another name."""
    served = family_spec(model.family).capabilities(model).cache_strategies
    found = [Policy(FEWER), *(Policy(name, name) for name in served if name != NONE)]
    found += [variant for variant in VARIANTS if variant.strategy in served]
    by_name = {policy.name: policy for policy in found}
    if unknown := [name for name in chosen or () if name not in by_name]:
        legal = ", ".join(by_name)
        raise ConfigError(f"--strategies: {unknown[0]!r} is none for {model.name}; legal: {legal}")
    return found if chosen is None else [by_name[name] for name in dict.fromkeys(chosen)]


def drawn_by(policy: Policy, row: Request, ratio: float, tables: Tables, model: str) -> Request:
    """The row as the policy draws it. IllegalSetting for knobs that it does not have, and
    ConfigError where it needs coefficients that there are none of."""
    if policy.name == FEWER:
        return replace(row, num_steps=computed_count(row.num_steps, ratio))
    warmup, cooldown = policy.ends or (None, None)
    knobs = json.dumps(dict(policy.knobs)) if policy.knobs else None
    given = Given(policy.strategy, ratio, warmup, cooldown, knobs)
    settings = resolve(given, Given(), row.num_steps)
    changes = {PREFIX + name: getattr(settings, name) for name in settings.__slots__}
    return replace(row, **changes, cache_table=_table(policy, row, ratio, tables, model))


def _table(policy: Policy, row: Request, ratio: float, tables: Tables, model: str) -> str:
    """Digest of the coefficients that the row uses; "" for none."""
    needs = policy.facts.table
    if not needs or ratio == 0:
        return ""
    count = computed_count(row.num_steps, ratio)
    entry = tables.find(row_key(row, policy.strategy, model, count))
    if entry is None and needs == "needed":
        raise ConfigError(f"{policy.strategy} has no coefficients for {model}")
    return entry.digest if entry else ""
