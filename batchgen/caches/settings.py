"""The cache settings of a row: from what a row and its job give to what is used.

Names are trimmed and their case is ignored. Whoever gives a ratio alone means `planned`. What is
not given comes from here: half of the evaluations are saved, and as many first and last steps are
computed as the strategy wants, together at most half of the row's steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from batchgen.caches.strategy import NONE, Facts, names, strategy
from batchgen.errors import closest
from batchgen.request import Range

NO_CACHE = ("", NONE, "off", "disable", "disabled")  # ways to say it
ONLY_RATIO = "planned"  # the strategy where a ratio is all that is given
DEFAULT_RATIO = 0.5
PREFIX = "cache_"  # of the request's fields
_MOST = 1e300  # what a knob may be where its range is open


@dataclass(frozen=True, slots=True)
class Given:
    """Settings as a row or a job gives them; None: not given."""

    strategy: str | None = None
    ratio: float | None = None
    warmup: int | None = None
    cooldown: int | None = None
    params: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a row is drawn with. As they stand here: without a cache."""

    strategy: str = NONE
    ratio: float = 0.0  # share of the evaluations to be saved
    warmup: int = 0  # first steps that are computed
    cooldown: int = 0  # last ones
    params: str = ""  # native knobs, as JSON with sorted names

    @property
    def knobs(self) -> Mapping[str, float]:
        """The native knobs that are set."""
        return dict(json.loads(self.params)) if self.params else {}


NO_SETTINGS = Settings()
NAMES = tuple(field.name for field in fields(Settings))


class IllegalSetting(ValueError):
    """A setting that cannot be used: its name (without `cache_`), its value, why."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(f"{PREFIX}{name}: {value!r}: {reason}")
        self.name, self.value, self.reason = name, value, reason


def resolve(row: Given, job: Given, steps: int) -> Settings:
    """The settings of a row of so many solver steps: its own values, then the job's, then defaults.

    A row that says it has no cache takes nothing from the job, and the job's knobs are for the
    job's strategy alone. Raises IllegalSetting.
    """
    name = chosen(row, job)
    if name == NONE:
        _refuse_settings(row if row.strategy is not None else _over(row, job))
        return NO_SETTINGS
    if row.strategy is not None and name != chosen(Given(), job):
        job = replace(job, params=None)
    given, facts = _over(row, job), strategy(name).FACTS
    ratio = DEFAULT_RATIO if given.ratio is None else given.ratio
    _check("ratio", ratio, Range(0.0, 1.0))
    warmup, cooldown = _ends(given, facts, steps)
    return Settings(name, ratio, warmup, cooldown, _params(name, facts, given.params or ""))


def chosen(row: Given, job: Given) -> str:
    """The name of the strategy; IllegalSetting if there is none of that name."""
    given = _over(row, job)
    if given.strategy is None:
        return ONLY_RATIO if given.ratio else NONE
    name = given.strategy.strip().lower()
    if name in NO_CACHE:
        return NONE
    if name not in names():
        listed = ", ".join((NONE, *names()))
        reason = f"is not one of {listed}{closest(name, names())}"
        raise IllegalSetting("strategy", given.strategy, reason)
    return name


def _over(row: Given, job: Given) -> Given:
    """The row's values, the job's where it has none."""
    values = {name: getattr(row, name) for name in NAMES}
    return replace(job, **{name: value for name, value in values.items() if value is not None})


def _refuse_settings(given: Given) -> None:
    """Without a cache no setting has a use; those that ask for nothing are let pass."""
    for name in NAMES[1:]:
        if value := getattr(given, name):
            way = f"leave it null, or set cache_strategy: {', '.join(names())}"
            raise IllegalSetting(name, value, f"there is no cache without a cache_strategy; {way}")


def _ends(given: Given, facts: Facts, steps: int) -> tuple[int, int]:
    """Steps that are computed at both ends. Defaults give way, so that half of the steps are left
    to the strategy; what is given is only checked."""
    room = steps // 2
    warmup, cooldown = given.warmup, given.cooldown
    if warmup is None:
        behind = min(facts.cooldown, room // 2) if cooldown is None else cooldown
        warmup = max(0, min(facts.warmup, room - behind))
    if cooldown is None:
        cooldown = max(0, min(facts.cooldown, room - warmup))
    for name, value in (("warmup", warmup), ("cooldown", cooldown)):
        _check(name, value, Range(0))
    if warmup + cooldown >= steps and (warmup or cooldown):
        name = "warmup" if given.warmup is not None else "cooldown"
        reason = f"warm-up {warmup} + cool-down {cooldown} must be less than num_steps {steps}"
        raise IllegalSetting(name, getattr(given, name), reason)
    return warmup, cooldown


def _params(name: str, facts: Facts, text: str) -> str:
    """Knobs as JSON that is the same for the same knobs; "" for none."""
    if not text.strip():
        return ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IllegalSetting("params", text, f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise IllegalSetting("params", text, 'is not a JSON object, as in {"name": 1}')
    knobs = {knob: _knob(name, facts, knob, value) for knob, value in found.items()}
    return json.dumps(knobs, sort_keys=True, separators=(",", ":")) if knobs else ""


def _knob(name: str, facts: Facts, knob: str, value: Any) -> float:
    if knob not in facts.params:
        listed = ", ".join(facts.params) or "none"
        near = closest(knob, list(facts.params))
        reason = f"{name} has no such knob; legal: {listed}{near}"
        raise IllegalSetting("params", {knob: value}, reason)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise IllegalSetting("params", {knob: value}, f"{knob} of {name} is a number")
    _check("params", value, facts.params[knob], {knob: value})
    return int(value) if value == int(value) else float(value)


def _check(name: str, value: float, legal: Range, shown: object = None) -> None:
    if not -_MOST < value < _MOST or not legal.holds(value):  # a NaN is neither
        raise IllegalSetting(name, value if shown is None else shown, f"legal: {legal}")
