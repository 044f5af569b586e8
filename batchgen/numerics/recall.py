"""Modules that see nothing but a timestep, or a text, are computed once and recalled after.

Their output is computed of one item alone, as in a pipeline that draws nothing else, and kept: by
timestep for all rows, or with a text for as long as a row in flight has it. A pack gets those of
its items stacked. So these modules run once instead of once a tick, and no pack changes their bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

# Small beside what plans leave free of a card. Keys and values of a text of 512 tokens take 94 MB
# in a Wan 1.3B and 419 MB in a 14B, where to compute them again costs a thousandth of a forward.
TEXT_BYTES = 256 << 20
TIMESTEP_BYTES = 64 << 20

Sees = Literal["timestep", "text"]


@dataclass(frozen=True, slots=True)
class Recalled:
    """Modules of a transformer whose output follows from an item's timestep alone, or from its text
    alone. A forward calls each once, with nothing divided over ranks."""

    modules: str  # a name with `*` for the numbers of blocks
    sees: Sees
    behind: str = ""  # the module beside it that works for it alone: recalled along with it


@dataclass(slots=True, eq=False, weakref_slot=True)
class Memo:
    """What is kept of one timestep or one text: of each module its output, (1, ...)."""

    text: Tensor | None = None  # held, so that no other tensor can be taken for it
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(output.nbytes for output in self.outputs.values())


class Recall:
    """What is recalled in the transformers of one family; one forward at a time."""

    def __init__(self, recalled: Sequence[Recalled] = ()) -> None:
        self.recalled = tuple(recalled)
        self.on = True  # its plain twin is without
        self.timestep_bytes = TIMESTEP_BYTES  # beyond it those of the oldest use are forgotten
        self.text_bytes = TEXT_BYTES  # beyond it no more is kept
        self._items: dict[Sees, Sequence[Memo | None]] = {}  # of the forward that runs
        self._timesteps: OrderedDict[float, Memo] = OrderedDict()  # oldest use first
        self._texts: WeakValueDictionary[int, Memo] = WeakValueDictionary()

    @property
    def bytes(self) -> int:
        """Kept now."""
        return sum(memo.bytes for memo in [*self._timesteps.values(), *self._texts.values()])

    def clear(self) -> None:
        """Forget everything, as has to be when weights have changed."""
        self._timesteps.clear()
        for memo in self._texts.values():
            memo.outputs.clear()

    # --------------------------------------------------------------------------------------- memos
    @contextmanager
    def of(self, timesteps: Sequence[float], texts: Sequence[Memo | None]) -> Iterator[None]:
        """Forwards inside are of such items. None: a text that nobody comes back to."""
        if self.on:
            self._items = {"timestep": [self._timestep(timestep) for timestep in timesteps]}
            if self.text_bytes and any(texts):
                self._items["text"] = texts
        try:
            yield
        finally:
            self._items = {}

    def text(self, states: Tensor) -> Memo:
        """The memo of a text, known by the tensor of its states: rows that have it share it."""
        memo = self._texts.get(id(states))
        if memo is None:
            memo = self._texts[id(states)] = Memo(states)
        return memo

    def _timestep(self, timestep: float) -> Memo:
        kept = self._timesteps
        if timestep not in kept:
            while sum(memo.bytes for memo in kept.values()) > self.timestep_bytes:
                kept.popitem(last=False)
            kept[timestep] = Memo()
        kept.move_to_end(timestep)
        return kept[timestep]

    def _keep(self, sees: Sees, memo: Memo, module: nn.Module, output: Tensor) -> None:
        if sees == "text":
            held = sum(text.bytes for text in self._texts.values())
            if held + output.nbytes > self.text_bytes:
                return
        memo.outputs[module] = output

    # ------------------------------------------------------------------------------------- modules
    def lead(self, transformer: nn.Module) -> None:
        """From now on its modules are recalled in forwards that say `of` what. Called once, when
        edges are set."""
        modules = dict(transformer.named_modules())
        for one in self.recalled:
            for name in [name for name in modules if fnmatchcase(name, one.modules)]:
                beside = f"{name.rpartition('.')[0]}.{one.behind}"
                self._lead(modules[name], one.sees, modules[beside] if one.behind else None)

    def _lead(self, module: nn.Module, sees: Sees, before: nn.Module | None) -> None:
        plain = compute = module.forward
        if before is not None:
            first = before.forward
            before.forward = self._handing_on(first, sees)

            def compute(x: Tensor) -> Tensor:
                y: Tensor = plain(first(x))
                return y

        module.forward = self._recalling(module, sees, plain, compute)

    def _recalling(
        self,
        module: nn.Module,
        sees: Sees,
        plain: Callable[..., Tensor],
        compute: Callable[[Tensor], Tensor],
    ) -> Callable[..., Tensor]:
        @wraps(plain)
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            memos = self._items.get(sees)
            if memos is None:
                return plain(x, *args, **kwargs)
            found = []
            for item, memo in enumerate(memos):
                output = memo.outputs.get(module) if memo else None
                if output is None:
                    output = compute(x[item : item + 1])
                    if memo:
                        self._keep(sees, memo, module, output)
                found.append(output)
            return found[0] if len(found) == 1 else torch.cat(found)

        return forward

    def _handing_on(self, plain: Callable[..., Tensor], sees: Sees) -> Callable[..., Tensor]:
        """The forward of a module whose work is done by the one that is behind it."""

        @wraps(plain)
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return x if sees in self._items else plain(x, *args, **kwargs)

        return forward
