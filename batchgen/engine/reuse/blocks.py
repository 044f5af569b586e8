"""The lists of blocks of a family's transformers, run as a forward is told.

Each list becomes a `BlockStack`, which its transformer calls as if it were one block; weights and
names of modules stay. What flows through the blocks is one tensor, or several, one of which leaves
them. Kept tensors are (1, tokens, width) of one item, several streams one behind the other, and no
longer than the item is alone, whatever fills it up in its pack.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, wraps
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchgen.caches.blocks import NO_BLOCKS, WHOLE, Attention, Blocks
from batchgen.engine.memory.stream import Feed
from batchgen.families.family import Component, FamilyModel, Item, family_spec
from batchgen.families.sequence import SequencePlan
from batchgen.numerics.around import surrounded

_PLACE = "_place_among_attentions"  # attribute of an attention that `Stacks` leads
Flow = tuple[Tensor, ...]  # what goes from block to block, each (items, tokens, width)


@runtime_checkable
class FillsUp(Protocol):
    """A family's model whose texts are as long as they are: in a pack those of shorter ones are
    filled up, behind all other tokens where streams are one, with what means nothing."""

    def own_tokens(self, item: Item) -> int:
        """Tokens of all streams of the item alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What one item has kept of a forward, or takes from an earlier one."""

    state: Tensor | None = None  # as it enters a block, all streams
    added: Tensor | None = None  # by some blocks, to the stream that leaves
    attention: Mapping[Attention, Tensor] = field(
        default_factory=dict
    )  # (1, modules, tokens, width)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        found = (self.state, self.added, *self.attention.values())
        return tuple(tensor for tensor in found if tensor is not None)

    @property
    def value(self) -> Any:
        """What a strategy reuses of it (`caches.strategy.BlockCache`)."""
        return self.attention or (self.state if self.added is None else self.added)


NOTHING = Kept()


class Passage:
    """One forward on its way through the blocks."""

    def __init__(
        self, blocks: Blocks, given: Sequence[Kept], drawn: int = -1, own: Sequence[int] = ()
    ) -> None:
        """`given`: what each item takes from before; empty: nothing, where nothing has to be.
        `drawn`: which of what flows leaves the blocks. `own`: tokens of each item alone, where a
        pack fills them up (`FillsUp`)."""
        self.blocks = blocks
        self.drawn = drawn
        self.given = given
        self.own = own
        self._entered: Tensor | None = None
        self._state: Tensor | None = None
        self._added: tuple[Tensor, Tensor] | None = None  # behind and in front of the blocks
        self._attended: dict[Attention, list[Tensor]] = {kind: [] for kind in blocks.attends}

    @property
    def attentive(self) -> bool:
        """Whether outputs of attentions are kept or reused, which changes what a block computes."""
        return bool(self.blocks.attends or self.blocks.reuses)

    def stand_in(self) -> Tensor | None:
        """What is added in place of all blocks, (items, tokens, width); None where some run, or an
        item has nothing."""
        added = [kept.added for kept in self.given if kept.added is not None]
        if self.blocks != NO_BLOCKS or self.own or not added or len(added) < len(self.given):
            return None
        return torch.cat(added)

    def at(self, block: int, flow: Flow) -> Flow:
        """Called in front of each block, and behind the last one that would run."""
        blocks = self.blocks
        if block == blocks.start > 0:
            flow = self._begun([k.state for k in self.given if k.state is not None], flow)
        if block == blocks.state:
            self._state = _joined(self._turned(flow))
        if block == blocks.since:
            self._entered = flow[self._place(flow)]
        if block == blocks.stop:
            flow = self.end(flow)
            if any(kept.added is not None for kept in self.given):
                parts, at = [*flow], self._place(flow)
                parts[at] = _plus(parts[at], self._again(flow))
                flow = tuple(parts)
        return flow

    def _again(self, flow: Flow) -> Tensor:
        """What blocks have added before, of all items; of one without a past nothing."""
        added = [kept.added for kept in self.given]
        if self.own and len(flow) == 1:
            added = [one if one is None else _filled(one, flow[0].shape[1]) for one in added]
        zeros = torch.zeros_like(next(one for one in added if one is not None))
        return torch.cat([zeros if one is None else one for one in added]).to(flow[-1].dtype)

    def end(self, flow: Flow) -> Flow:
        """Behind the last block that runs."""
        if self._entered is not None:
            drawn = flow[self._place(flow)]
            drawn = drawn[:, -self._entered.shape[1] :]  # behind others, where streams are one
            self._added, self._entered = (drawn, self._entered), None
        return flow

    def _place(self, flow: Flow) -> int:
        """Of the stream that is drawn, in what flows: where streams are one, it is that one."""
        return self.drawn if len(flow) > 1 else 0

    def _begun(self, states: Sequence[Tensor], flow: Flow) -> Flow:
        """What flows from kept states on, as long as what flows in front of their block."""
        lengths = [part.shape[1] for part in self._turned(flow)]
        if self.own:
            states = [_filled(one, sum(lengths)) for one in states]
        whole = torch.cat([*states]).to(flow[-1].dtype)
        return self._turned(tuple(whole.split(lengths, dim=1)))

    def _turned(self, flow: Flow) -> Flow:
        """Of two streams the one that is filled up last, so that what fills it up is behind all."""
        return flow[::-1] if self.own else flow

    def attend(
        self, kind: Attention, place: int, attend: Callable[[], Any], tokens: int, beside: int
    ) -> Any:
        """The outputs of an attention, the `place`-th of its kind: one tensor of so many tokens, or
        another with it, of the stream beside."""
        if kind in self.blocks.reuses:
            found = [kept.attention[kind][:, place] for kept in self.given]
            if self.own and kind == "self":
                found = [_filled(one, tokens + beside) for one in found]
            whole = torch.cat(found)
            if whole.shape[1] == tokens:
                return whole
            return whole[:, :tokens], whole[:, tokens:]
        found = attend()
        if kind in self._attended:
            self._attended[kind].append(_joined(found if isinstance(found, tuple) else (found,)))
        return found

    def kept(self, items: int) -> list[Kept]:
        """Of each item, in tensors of its own: a view would hold its whole pack."""
        return [
            Kept(
                state=self._of(self._state, item, items),
                added=self._change(item, items),
                attention={
                    kind: torch.stack([self._part(one, item) for one in parts], dim=1)
                    for kind, parts in self._attended.items()
                    if parts
                },
            )
            for item in range(items)
        ]

    def _of(self, pack: Tensor | None, item: int, items: int) -> Tensor | None:
        """What is an item's own of (items, ..., tokens, width)."""
        if pack is None:
            return None
        own = self._part(pack, item)
        return pack if items == 1 and own.shape == pack.shape else own.clone()

    def _change(self, item: int, items: int) -> Tensor | None:
        """What blocks have added to an item's own tokens."""
        if self._added is None:
            return None
        behind, front = (self._part(pack, item) for pack in self._added)
        return behind - front

    def _part(self, pack: Tensor, item: int) -> Tensor:
        """A view of what is an item's own."""
        own = min(pack.shape[-2], self.own[item]) if self.own else pack.shape[-2]
        return pack[item : item + 1, ..., :own, :]


class Stacks:
    """The lists of blocks of some transformers of one architecture; one forward at a time."""

    def __init__(
        self, transformers: Sequence[nn.Module], component: Component, plan: SequencePlan
    ) -> None:
        """`component` names the lists and what flows through them, `plan` the attentions."""
        self.drawn = component.drawn
        self.passage = Passage(WHOLE, ())
        for transformer in transformers:
            self._stack(transformer, component)
            self._lead(transformer, "self", [one.modules for one in plan.attends if one.reused])
            self._lead(transformer, "cross", [crosses.modules for crosses in plan.crosses])

    @contextmanager
    def told(
        self, blocks: Blocks, given: Sequence[Kept] = (), own: Sequence[int] = ()
    ) -> Iterator[Passage]:
        """Forwards inside do this with the blocks."""
        before, self.passage = self.passage, Passage(blocks, given, self.drawn, own)
        try:
            yield self.passage
        finally:
            self.passage = before

    def feed(self, transformer: nn.Module, feed: Feed) -> None:
        """Let a transformer's blocks come from there."""
        for module in transformer.modules():
            if isinstance(module, BlockStack):
                module.feed = feed

    def forward(
        self, family: FamilyModel, items: Sequence[Item], blocks: Blocks, given: Sequence[Kept]
    ) -> tuple[list[Tensor], list[Kept]]:
        """Velocities, and what each item keeps. Where blocks are left out and nothing stands in for
        them the velocities mean nothing."""
        filled = cast(FillsUp, family) if _fills_up(type(family)) else None
        own = [filled.own_tokens(item) for item in items] if filled else []
        with self.told(blocks, given, own) as passage:
            velocities = family.forward(items)
        return velocities, passage.kept(len(items))

    def _stack(self, transformer: nn.Module, component: Component) -> None:
        first = 0
        for name in component.stacks:
            stack: Any = transformer.get_submodule(name)
            stack.__class__ = BlockStack
            stack.owner, stack.flows = self, component.flows
            if name in component.joined:
                stack.flows = component.flows[-1:]
            stack.span = range(first, first + len(stack))
            stack.ends = name == component.stacks[-1]
            stack.names = _arguments(stack[0])
            first += len(stack)

    def _lead(self, transformer: nn.Module, kind: Attention, patterns: Sequence[str]) -> None:
        modules = [module for pattern in patterns for module in named(transformer, pattern)]
        for place, module in enumerate(modules):
            attention: Any = module
            if not hasattr(attention, _PLACE):
                attention.forward = _led(attention, attention.forward)
            setattr(attention, _PLACE, (self, kind, place))


class BlockStack(nn.ModuleList):
    """A list of blocks that is called as one of them; made of a ModuleList by `Stacks`."""

    owner: Stacks
    span: range  # the numbers of its blocks
    ends: bool  # whether it is the transformer's last list
    flows: tuple[str, ...]  # arguments of a block that it returns changed, in that order
    names: list[str]  # all arguments of a block
    feed: Feed | None = None  # where its blocks come from; None: they are there
    compiled: Mapping[int, Callable[..., Any]] | None = None  # by number, to run in their place

    def __iter__(self) -> Iterator[nn.Module]:
        yield self

    def __getitem__(self, index: Any) -> Any:
        """Real blocks; a list of them for a slice, since a part of a stack is none."""
        return [*self._modules.values()][index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} x {type(self[0]).__name__})"

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the last block returns."""
        values = dict(zip(self.names, (hidden_states, *args), strict=False)) | kwargs
        flow: Flow = tuple(values[name] for name in self.flows)
        passage = self.owner.passage
        compiled = None if passage.attentive else self.compiled
        for number, block in zip(self.span, self[:], strict=True):
            flow = passage.at(number, flow)
            if passage.blocks.runs(number):
                run = surrounded(block, block if compiled is None else compiled[number])
                with self._there(number):
                    found = run(**values | dict(zip(self.flows, flow, strict=True)))
                flow = found if isinstance(found, tuple) else (found,)
        if self.ends:
            flow = passage.end(flow)
        return flow if len(flow) > 1 else flow[0]

    def _there(self, number: int) -> AbstractContextManager[None]:
        """Inside, the block is on the device."""
        if self.feed is None:
            return nullcontext()
        return self.feed.here(number, self.owner.passage.blocks.runs)


def blocks_of(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of all stacks of a transformer, in the order of their numbers."""
    stacks = [module for module in transformer.modules() if isinstance(module, BlockStack)]
    return [block for stack in sorted(stacks, key=lambda s: s.span.start) for block in stack[:]]


def layers_of(encoder: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The blocks of an encoder, in the order in which they run."""
    lists = [cast(nn.ModuleList, encoder.get_submodule(name)) for name in names]
    return [block for blocks in lists for block in blocks]


def stack_blocks(family: FamilyModel, name: str, experts: Sequence[str]) -> Stacks:
    """Make stacks of the lists of blocks of a family's experts; `name` is the family's."""
    parts = {part.name: part for part in family_spec(name).COMPONENTS}
    transformers = [family.modules[expert] for expert in experts]
    return Stacks(transformers, parts[experts[0]], family.sequence)


def named(model: nn.Module, pattern: str) -> list[nn.Module]:
    """Submodules whose names fit a pattern with `*`."""
    return [module for name, module in model.named_modules() if fnmatchcase(name, pattern)]


@cache
def _fills_up(family: type) -> bool:
    """Asked once: a protocol takes as long to ask for as a small operation."""
    return issubclass(family, FillsUp)


def _arguments(block: nn.Module) -> list[str]:
    """Of its forward; what it takes beside those it does not use."""
    found = inspect.signature(type(block).forward).parameters.values()
    more = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in found if one.kind not in more][1:]


def _led(attention: nn.Module, inner: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of an attention, asked of the passage that is on its way."""

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        stacks, kind, place = getattr(attention, _PLACE)
        tokens = (args[0] if args else kwargs["hidden_states"]).shape[1]
        other = kwargs.get("encoder_hidden_states")
        beside = 0 if other is None else other.shape[1]
        return stacks.passage.attend(kind, place, lambda: inner(*args, **kwargs), tokens, beside)

    return forward


def _plus(stream: Tensor, added: Tensor) -> Tensor:
    """A stream with what was added to its last tokens: to all, where it is not one with others."""
    others = stream.shape[1] - added.shape[1]
    if not others:
        return stream + added
    return torch.cat([stream[:, :others], stream[:, others:] + added], dim=1)


def _joined(flow: Flow) -> Tensor:
    return flow[0] if len(flow) == 1 else torch.cat(flow, dim=1)


def _filled(kept: Tensor, tokens: int) -> Tensor:
    """(1, tokens, width) with zeros up to so many tokens: what fills an item up means nothing."""
    return F.pad(kept, (0, 0, 0, tokens - kept.shape[1]))
