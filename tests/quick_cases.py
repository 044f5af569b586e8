"""Of many like cases the first are quick tests; all are run by the slow ones' targets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first_quick(values: Iterable[Any], count: int) -> list[Any]:
    """`values` for `pytest.mark.parametrize`; those behind the first `count` are marked slow.
    A tuple has the values of several arguments."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=[pytest.mark.slow] * (number >= count),
        )
        for number, value in enumerate(values)
    ]
