"""Modules that see nothing but a timestep, or a text, are computed once and recalled after.

Their output is computed of one item, as in a pipeline that draws nothing else, and kept: by
timestep for all rows, or with a text for as long as a row in flight has it. A pack gets those of
its items stacked. So these modules run once instead of once a tick, and no pack changes their bits.

Of modules whose weights are not on the device (`Recalled.like`) whole tables are made when rows
join: each then comes once for all timesteps of their schedules. Those that see timestep, guidance
and text combined are recalled there alone, since no two steps of a row are alike.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from batchgen.caches.strategy import SignalKind
from batchgen.engine.memory.residency import Residency
from batchgen.families.family import FamilyModel, Item
from batchgen.families.recalled import TABLE_BYTES, Recalled, Sees
from batchgen.numerics.edges import batch_sizes, in_batches
from batchgen.request import NO_LORA, Loras

# Small beside what plans leave free of a card. Keys and values of a text of 512 tokens take 94 MB
# in a Wan 1.3B and 419 MB in a 14B, where to compute them again costs a thousandth of a forward.
TEXT_BYTES = 256 << 20
TIMESTEP_BYTES = 256 << 20  # 50 of a Qwen-Image take 221 MB

# Of a module, computed in a batch of so many (`edges.in_batches`), with these adapters.
Output = tuple[nn.Module, int, Loras]
# What is combined: timestep and guidance of an item; the precision of its latents, to which a
# pipeline may round the timestep; and its text, by the tensor of its states.
Combined: TypeAlias = tuple[float, float, torch.dtype, int]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Memo:
    """What is kept of one timestep, one text, or what is combined: outputs, (1, ...)."""

    text: Tensor | None = None  # held, so that no other tensor can be taken for it
    outputs: dict[Output, Tensor] = field(default_factory=dict)
    tables: set[tuple[int, Loras]] = field(default_factory=set)  # batches with all that is away
    # of a timestep what step caches look at, by kind, expert, branches of the row, and adapters
    signals: dict[tuple[SignalKind, str, int, Loras], Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        kept = {id(one): one.nbytes for one in (*self.outputs.values(), *self.signals.values())}
        return sum(kept.values())

    def clear(self) -> None:
        self.outputs.clear()
        self.tables.clear()
        self.signals.clear()


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a module is given of one item, (1, ...), and where the output is kept."""

    x: Tensor
    size: int  # of the batch in which a pipeline has it
    memo: Memo | None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A module whose weights may be away, as it computes, and the one that is given the same."""

    module: nn.Module
    plain: Callable[..., Tensor]
    like: nn.Module
    sees: Sees


@dataclass(frozen=True, slots=True)
class Ahead:
    """A row whose tables are to be made: items with its timesteps and all else that they see, and
    how many branches it has."""

    items: Sequence[Item]
    branches: int


class Recall:
    """What is recalled in the transformers of one family; one forward at a time."""

    def __init__(self, *, text_bytes: int = TEXT_BYTES) -> None:
        self.on = True  # its plain twin is without
        self.timestep_bytes = TIMESTEP_BYTES  # beyond it those of the oldest use are forgotten
        self.text_bytes = text_bytes  # beyond it no more is kept
        self._items: dict[Sees, Sequence[Memo | None]] = {}  # of the forward that runs
        self._loras = NO_LORA  # of that forward, too
        self._timesteps: OrderedDict[float, Memo] = OrderedDict()  # oldest use first
        self._texts: WeakValueDictionary[int, Memo] = WeakValueDictionary()
        self.residency: Residency | None = None  # of the weights; None: they are there
        self._tables: list[Table] = []
        self._held: WeakValueDictionary[float, Memo] = WeakValueDictionary()  # by rows, too
        self._combined: WeakValueDictionary[Combined, Memo] = WeakValueDictionary()  # by rows alone
        self._last: Sequence[Memo] = ()  # of these, the last forward's
        self._watched: dict[nn.Module, list[Given]] | None = None

    @property
    def bytes(self) -> int:
        """Kept now."""
        kept = [*self._timesteps.values(), *self._texts.values(), *self._combined.values()]
        return sum(memo.bytes for memo in kept)

    @property
    def away(self) -> bool:
        """Whether tables stand in for weights."""
        return self.residency is not None and any(
            self.residency.is_away(table.module) for table in self._tables
        )

    @property
    def sees_combined(self) -> bool:
        """Whether tables are of what is combined."""
        return any(table.sees == "combined" for table in self._tables)

    def clear(self) -> None:
        """Forget everything, as has to be when weights have changed. It is computed again."""
        for memo in [*self._held.values(), *self._combined.values()]:
            memo.clear()
        self._timesteps.clear()
        self._forget_texts()

    def free(self) -> None:
        """Memory is short: forget all that is computed again where it is."""
        if not self.away:
            self._timesteps.clear()
        self._last = ()
        self._forget_texts()

    def keep_no_texts(self) -> None:
        """Memory is short: what a text comes to is computed again, from now on."""
        self.text_bytes = 0
        self.free()

    def lead(
        self, family: FamilyModel, experts: Iterable[str], recalled: Sequence[Recalled]
    ) -> None:
        """From now on these modules are recalled in the family's forwards and signals. Called once,
        when edges are set."""
        if not recalled:
            return
        for expert in experts:
            self._lead(family.modules[expert], recalled)
        model: Any = family
        forward, signal = model.forward, model.signal
        model.forward = lambda items: self._of(items, lambda: forward(items))
        model.signal = lambda item, kind: self._signal(family, signal, item, kind)

    def tabulate(
        self, forward: Callable[[Item], object], rows: Sequence[Ahead]
    ) -> list[tuple[Memo, ...]]:
        """Make the tables of rows that join, with one set of adapters, and keep those of each as
        long as it holds what is returned. `forward`: of one of their items, which runs no blocks.
        """
        if not self.on:
            return [()] * len(rows)
        self.timestep_bytes = TABLE_BYTES
        memos = [[self._memo(item) for item in row.items] for row in rows]
        new = dict[tuple[int, int], Item]()  # by memo and branches
        for row, own in zip(rows, memos, strict=True):
            for item, memo in zip(row.items, own, strict=True):
                if (row.branches, item.request.lora) not in memo.tables:
                    new.setdefault((id(memo), row.branches), item)
        if new:
            self._make_tables(forward, [*new.values()])
        for row, own in zip(rows, memos, strict=True):
            for memo in own:
                memo.tables.add((row.branches, row.items[0].request.lora))
        return [tuple(own) for own in memos]

    def _make_tables(self, forward: Callable[[Item], object], items: Sequence[Item]) -> None:
        self._watched = {table.like: [] for table in self._tables}
        try:
            for item in items:
                forward(item)
            watched = self._watched
        finally:
            self._watched = None
        self._loras = items[0].request.lora
        for table in self._tables:
            self._outputs(table.module, table.plain, table.sees, watched[table.like])

    def weights(self, family: FamilyModel, experts: Iterable[str]) -> dict[nn.Module, str]:
        """The modules that tables can stand in for, with their components."""
        mine = {table.module for table in self._tables}
        return {
            m: expert for expert in experts for m in family.modules[expert].modules() if m in mine
        }

    def _forget_texts(self) -> None:
        for memo in self._texts.values():
            memo.clear()

    # --------------------------------------------------------------------------------------- memos
    def text(self, states: Tensor) -> Memo:
        """The memo of a text, known by the tensor of its states, the first of a condition: rows
        that have it share it. It is forgotten when nobody holds it any more."""
        memo = self._texts.get(id(states))
        if memo is None:
            memo = self._texts[id(states)] = Memo(states)
        return memo

    def _of(self, items: Sequence[Item], run: Callable[[], Any]) -> Any:
        """Run something over these items."""
        if not self.on:
            return run()
        with self._recalling(items):
            return run()

    def _signal(
        self,
        family: FamilyModel,
        signal: Callable[[Item, SignalKind], Tensor],
        item: Item,
        kind: SignalKind,
    ) -> Tensor:
        """The family's. Where no text is in them, all but `embedded` follow from the timestep, and
        their last bits from how many branches its pipeline draws at once."""
        compute = lambda: self._of([item], lambda: signal(item, kind))  # noqa: E731
        if not self.on or kind == "embedded" or not family.signals_alike:
            found: Tensor = compute()
            return found
        request = item.request
        expert, branches = family.expert(request, item.timestep), len(family.texts(request))
        kept, what = self._timestep(item.timestep).signals, (kind, expert, branches, request.lora)
        if what not in kept:
            kept[what] = compute()
        return kept[what]

    @contextmanager
    def _recalling(self, items: Sequence[Item]) -> Iterator[None]:
        self._loras, before = items[0].request.lora, self._items
        self._items = {"timestep": [self._timestep(item.timestep) for item in items]}
        texts = [self._texts.get(id(item.condition[0])) for item in items]
        if self.text_bytes and any(texts):
            self._items["text"] = texts
        if self.sees_combined and self.away:
            self._items["combined"] = self._last = [self.combined(item) for item in items]
        try:
            yield
        finally:
            self._items = before  # a signal may ask for another one

    def _memo(self, item: Item) -> Memo:
        """Where the tables of an item's step are."""
        return self.combined(item) if self.sees_combined else self._timestep(item.timestep)

    def combined(self, item: Item) -> Memo:
        """The memo of a step of a row's branch. It is forgotten when nobody holds it any more, but
        for the last forward's."""
        states, request = item.condition[0], item.request
        what = item.timestep, request.guidance_scale, item.latents.dtype, id(states)
        memo = self._combined.get(what)
        if memo is None:
            memo = self._combined[what] = Memo(states)
        return memo

    def _timestep(self, timestep: float) -> Memo:
        kept = self._timesteps
        if timestep not in kept:
            while sum(memo.bytes for memo in kept.values()) > self.timestep_bytes:
                kept.popitem(last=False)
            kept[timestep] = self._held.setdefault(timestep, Memo())
        kept.move_to_end(timestep)
        return kept[timestep]

    def _keep(self, sees: Sees, memo: Memo, what: Output, output: Tensor) -> None:
        if sees == "text":
            held = sum(text.bytes for text in self._texts.values())
            if held + output.nbytes > self.text_bytes:
                return
        memo.outputs[what] = output

    # ------------------------------------------------------------------------------------- modules
    def _lead(self, transformer: nn.Module, recalled: Sequence[Recalled]) -> None:
        transformer.register_forward_pre_hook(self._enter, with_kwargs=True)
        for one in recalled:
            for name, module in transformer.named_modules():
                if fnmatchcase(name, one.modules):
                    if one.like:
                        like = transformer.get_submodule(one.like)
                        self._tables.append(Table(module, module.forward, like, one.sees))
                    led = self._led_padded if one.padded else self._led
                    module.forward = led(module, one)

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An item of many timesteps, one for each token, is not known by its row's."""
        timestep = kwargs.get("timestep")
        if timestep is not None and timestep.ndim > 1:
            self._items.pop("timestep", None)
            self._items.pop("combined", None)

    def _led(self, module: nn.Module, one: Recalled) -> Callable[..., Tensor]:
        plain: Callable[..., Tensor] = module.forward

        @wraps(plain)
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            memos = self._items.get(one.sees)
            if memos is None or len(memos) != x.shape[0]:
                with self._there(module):
                    return plain(x, *args, **kwargs)
            sizes = batch_sizes(len(memos))
            found = self._known(module, sizes, memos)
            if found is None:
                each = enumerate(zip(sizes, memos, strict=True))
                given = [Given(x[n : n + 1], *its) for n, its in each]
                found = self._outputs(module, plain, one.sees, given, *args, **kwargs)
            return found[0] if len(found) == 1 else torch.cat(found)

        return forward

    def _led_padded(self, module: nn.Module, one: Recalled) -> Callable[..., Tensor]:
        plain: Callable[..., Tensor] = module.forward

        @wraps(plain)
        def forward(x: Tensor, mask: Tensor | None, *others: Tensor, **kwargs: Any) -> Tensor:
            memos = self._items.get(one.sees)
            if memos is None or len(memos) != x.shape[0]:
                return plain(x, mask, *others, **kwargs)
            found = []
            for item, memo in enumerate(memos):
                what = module, 1, self._loras
                output = memo.outputs.get(what) if memo else None
                if output is None:
                    own = x.shape[1] if mask is None else int(mask[item].sum())
                    alone, *rest = (part[item : item + 1, :own] for part in (x, *others))
                    output = plain(alone, None, *rest, **kwargs)
                    if memo:
                        self._keep(one.sees, memo, what, output)
                found.append(functional.pad(output, (0, 0, 0, x.shape[1] - output.shape[1])))
            return torch.cat(found)

        return forward

    def _known(
        self, module: nn.Module, sizes: Sequence[int], memos: Sequence[Memo | None]
    ) -> list[Tensor] | None:
        """Of each item, where all are kept and nobody wants to know what is given."""
        if self._watched is not None:
            return None
        found = []
        for size, memo in zip(sizes, memos, strict=True):
            output = memo.outputs.get((module, size, self._loras)) if memo else None
            if output is None:
                return None
            found.append(output)
        return found

    def _outputs(
        self,
        module: nn.Module,
        plain: Callable[..., Tensor],
        sees: Sees,
        given: Sequence[Given],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Of each item, recalled or computed."""
        if self._watched is not None and module in self._watched:
            self._watched[module] += given
        kept = [(one.memo.outputs if one.memo else {}) for one in given]
        keys = [(module, one.size, self._loras) for one in given]
        known = all(key in outputs for key, outputs in zip(keys, kept, strict=True))
        found = []
        with nullcontext() if known else self._there(module):
            for one, key, outputs in zip(given, keys, kept, strict=True):
                output = outputs.get(key)  # an item before may have had the same memo
                if output is None:
                    with in_batches([one.size]):
                        output = plain(one.x, *args, **kwargs)
                    if one.memo:
                        self._keep(sees, one.memo, key, output)
                found.append(output)
        return found

    def _there(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, the module's weights are on the device."""
        return nullcontext() if self.residency is None else self.residency.brought(module)
