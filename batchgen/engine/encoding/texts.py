"""Encoded texts as bytes, for whoever keeps them beyond this process.

Each has a name that is a hash over everything that its encoding depends on, so no other text is
ever taken for it, and what is read back is what was encoded, to the bit.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from batchgen.engine.contract import KeptTexts
from batchgen.families.family import Condition, Text

_TOKENS = "tokens"  # the entry beside the tensors


@dataclass(frozen=True, slots=True, eq=False)
class StoredText:
    """A text as it was encoded."""

    condition: Condition
    count: int  # tokens before truncation
    truncated: bool


class TextStore:
    """The texts of one model on one kind of device."""

    def __init__(self, kept: KeptTexts, device: torch.device, computed: str) -> None:
        """`computed`: device and precision, on which bits depend, too."""
        self.hits = 0
        self._kept, self._device = kept, device
        self._context = f"{kept.context}\0{computed}\0".encode()

    def get(self, text: Text) -> StoredText | None:
        """None if it is not kept."""
        data = self._kept.get(self._name(text))
        if data is None:
            return None
        try:
            tensors = load(data)
        except SafetensorError:
            return None
        count, truncated = tensors.pop(_TOKENS).tolist()
        condition = tuple(tensors[str(n)].to(self._device) for n in range(len(tensors)))
        self.hits += 1
        return StoredText(condition, count, bool(truncated))

    def put(self, text: Text, found: StoredText) -> None:
        """Keep a text, if there is room."""
        tensors = {str(n): part.cpu().contiguous() for n, part in enumerate(found.condition)}
        tensors[_TOKENS] = torch.tensor([found.count, found.truncated])
        self._kept.put(self._name(text), save(tensors))

    def _name(self, text: Text) -> str:
        if not isinstance(text, str):  # no text begins with the character that no prompt may hold
            text = "\0" + json.dumps(text)
        return hashlib.sha256(self._context + text.encode()).hexdigest()
