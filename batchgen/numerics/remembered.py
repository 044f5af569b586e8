"""What a text encoder made of the texts that it read last.

A row may give its encoders different texts. Rows that differ in what one of them reads share what
the others have made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

LAST = 16  # texts of one encoder: states of T5 take 4 MB each

Made = TypeVar("Made")


class Remembered(Generic[Made]):
    """An encoder of one text at a time that does not compute again what it was told lately."""

    def __init__(self, encode: Callable[[Tensor], Made], last: int = LAST) -> None:
        self._encode, self._last = encode, last
        self._made: OrderedDict[bytes, Made] = OrderedDict()

    def __call__(self, ids: Tensor) -> Made:
        """What `encode` makes of token ids (1, tokens), which all have the same length."""
        key = ids.cpu().numpy().tobytes()
        made = self._made.pop(key, None)
        if made is None:
            made = self._encode(ids)  # texts that are read abreast come here in between
        self._made[key] = made
        if len(self._made) > self._last:
            self._made.popitem(last=False)
        return made
