"""The cache settings of a batch of rows, decided once for each combination of what rows give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any

import numpy as np
import pyarrow as pa

from batchgen.caches.settings import NAMES, NO_SETTINGS, PREFIX, Given, IllegalSetting, Settings
from batchgen.config.caching import CacheRules
from batchgen.planning.manifests.problems import Problems
from batchgen.request import FIELDS

RATIO_GIVEN = "ratio_given"  # beside them: whether the row itself gives its ratio
Decision = tuple[Settings, str]  # as `CacheRules.decide` makes it
NONE: Decision = (NO_SETTINGS, "")
_TYPES = {"text": pa.large_string(), "integer": pa.int64(), "number": pa.float64()}


def cache_columns(
    given: Mapping[str, pa.Array],
    steps: pa.Array,
    first_row: int,
    rules: CacheRules,
    problems: Problems,
) -> dict[str, pa.Array]:
    """The request's cache columns by name, and `RATIO_GIVEN`; none where no row of the batch has a
    cache or is refused one. `given`: the rows' own columns. Illegal rows go to `problems`."""
    own = [name for name in NAMES if _says_something(given.get(PREFIX + name))]
    if not own and rules.job == Given():
        return {}
    columns = [given[PREFIX + name] for name in own]
    first, place = combinations([*columns, steps])
    values = [column.take(pa.array(first)).to_pylist() for column in (*columns, steps)]
    found: list[Decision] = []
    for code, (*row, num_steps) in enumerate(zip(*values, strict=True)):
        wanted = dict(zip(own, row, strict=True))
        try:
            known_bad = any(starmap(_outside, wanted.items()))
            found.append(NONE if known_bad else rules.decide(Given(**wanted), num_steps))
        except IllegalSetting as error:
            rows = np.flatnonzero(place == code) + first_row
            shown = [error.value] * min(len(rows), problems.keep)
            problems.add(rows, PREFIX + error.name, shown, error.reason)
            found.append(NONE)
    planned = _as_columns(found, place)
    if planned:
        ratio = given.get(PREFIX + "ratio")
        planned[RATIO_GIVEN] = pa.repeat(False, len(steps)) if ratio is None else ratio.is_valid()
    return planned


def combinations(columns: Sequence[pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each combination of values, and the place of each row's own among them."""
    first, place = np.zeros(1, np.int64), np.zeros(len(columns[0]), np.int64)
    for column in columns:
        coded = column.dictionary_encode(null_encoding="encode")
        codes = place * len(coded.dictionary) + coded.indices.to_numpy()
        _, first, place = np.unique(codes, return_index=True, return_inverse=True)
    return first, place


def _says_something(column: pa.Array | None) -> bool:
    return column is not None and column.null_count < len(column)


def _outside(name: str, value: Any) -> bool:
    """Whether it is a number out of its range, which is reported elsewhere."""
    bounds = FIELDS[PREFIX + name].column.range
    return bounds is not None and value is not None and not bounds.holds(value)


def _as_columns(found: Sequence[Decision], place: np.ndarray) -> dict[str, pa.Array]:
    if all(decision == NONE for decision in found):
        return {}
    values = {PREFIX + name: [getattr(s, name) for s, _ in found] for name in NAMES}
    values["cache_refused"] = [refused for _, refused in found]
    return {
        name: pa.array(column, _TYPES[FIELDS[name].kind]).take(pa.array(place))
        for name, column in values.items()
    }
