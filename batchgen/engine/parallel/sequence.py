"""The tokens of a transformer divided over the ranks of `sequence`.

Hooks keep the rank's share of what enters, and gather what leaves; between them each rank runs the
model on its share, and only attention looks further. diffusers has such hooks, which want shares of
one size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchgen.engine.parallel.attention import AttentionOp
from batchgen.engine.parallel.cross import cross_attend
from batchgen.engine.parallel.dispatch import attend_through, cross_through
from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.shares import Joint, Share, shares
from batchgen.engine.reuse.blocks import BlockStack, named
from batchgen.errors import ConfigError
from batchgen.families.sequence import Cut, SequencePlan


class SplitSequence:
    """Divides the tokens of some transformers, of one plan, until it is told `whole`."""

    def __init__(
        self, mesh: Mesh, plan: SequencePlan, transformers: Iterable[nn.Module], op: AttentionOp
    ) -> None:
        self.mesh = mesh
        self.op = op
        self.leaves = plan.gather.stream
        self.lengths: dict[str, int] = {}  # tokens of each stream in the forward that runs
        self.divides = True
        self._undo: list[Callable[[], object]] = []
        for transformer in transformers:
            self._cut(transformer, plan)
            self._attend(transformer, plan)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Forwards inside run on this rank alone, undivided."""
        self.divides = False
        try:
            yield
        finally:
            self.divides = True

    def own(self, x: Tensor) -> Tensor:
        """Of (items, held, ...) of the stream that leaves, the rank's own tokens without copies."""
        axis, total = self.mesh.sequence, self.lengths[self.leaves]
        return x[:, : shares(total, axis.size)[axis.place].own]

    def undo(self) -> None:
        """Take everything off the transformers again."""
        for step in self._undo:
            step()

    # -------------------------------------------------------------------------------------- edges
    def _cut(self, transformer: nn.Module, plan: SequencePlan) -> None:
        for cut in plan.cuts:
            for module in _entered(transformer, cut.module):
                if isinstance(cut.tensor, str):
                    enter = self._enter(cut, _arguments(module))
                    hook = module.register_forward_pre_hook(enter, with_kwargs=True)
                else:
                    hook = module.register_forward_hook(self._leave(cut.tensor, cut, self._share))
                self._undo.append(hook.remove)
        gather, module = plan.gather, transformer.get_submodule(plan.gather.module)
        assert isinstance(gather.tensor, int)
        hook = module.register_forward_hook(self._leave(gather.tensor, gather, self._whole))
        self._undo.append(hook.remove)

    def _enter(self, cut: Cut, names: list[str]) -> Callable[..., Any]:
        assert isinstance(cut.tensor, str)
        name, at = cut.tensor, names.index(cut.tensor)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.divides:
                return None
            if name in kwargs:
                return args, kwargs | {name: self._shares(cut, kwargs[name])}
            return (*args[:at], self._shares(cut, args[at]), *args[at + 1 :]), kwargs

        return hook

    def _leave(
        self, at: int, cut: Cut, change: Callable[[Cut, Tensor], Tensor]
    ) -> Callable[..., Any]:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            if not self.divides:
                return None
            if isinstance(output, Tensor):
                return change(cut, output)
            return (*output[:at], change(cut, output[at]), *output[at + 1 :])

        return hook

    def _shares(self, cut: Cut, x: Any) -> Any:
        """What this rank holds of a stream, in one tensor or in each of several; None stays."""
        if isinstance(x, tuple):
            return tuple(self._share(cut, part) for part in x)
        return x if x is None else self._share(cut, x)

    def _share(self, cut: Cut, x: Tensor) -> Tensor:
        """The same of one tensor."""
        total = x.shape[cut.dim]
        self.lengths[cut.stream] = total
        axis = self.mesh.sequence
        share = shares(total, axis.size)[axis.place]
        if share.held == share.own:
            return x.narrow(cut.dim, share.start, share.own).contiguous()
        return x.index_select(cut.dim, _indices(share, x.device))

    def _whole(self, cut: Cut, x: Tensor) -> Tensor:
        """All tokens of a stream, from what each rank holds."""
        axis = self.mesh.sequence
        held = shares(self.lengths[cut.stream], axis.size)
        x = x.movedim(cut.dim, 0)
        longest = max(share.held for share in held)
        short = longest - x.shape[0]  # a collective wants one size
        x = torch.cat([x, x[:1].expand(short, *x.shape[1:])]) if short else x
        parts = self.mesh.wire.gather(axis, x)
        whole = torch.cat([part[: share.own] for part, share in zip(parts, held, strict=True)])
        return whole.movedim(0, cut.dim).contiguous()

    # ---------------------------------------------------------------------------------- attention
    def _attend(self, transformer: nn.Module, plan: SequencePlan) -> None:
        for attends in plan.attends:
            if attends.masked and not self.op.masks:
                raise ConfigError(
                    "system.parallel: attention with a mask does not go through xfuser; legal: "
                    "attention_op=torch"
                )
            for module in named(transformer, attends.modules):
                self._undo.append(attend_through(module, self._divided(attends.streams)))

        for crosses in plan.crosses:
            for module in named(transformer, crosses.modules):
                self._undo.append(cross_through(module, self._crossing(crosses.stream)))

    def _crossing(self, stream: str) -> Callable[..., Tensor]:
        def crossing(
            attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
        ) -> Tensor:
            if not self.divides:
                return attend(q, k, v)
            axis, total = self.mesh.sequence, self.lengths[stream]
            return cross_attend(attend, shares(total, axis.size)[axis.place], total, q, k, v)

        return crossing

    def _divided(self, streams: tuple[str, ...]) -> Callable[..., Tensor]:
        def divided(
            attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
        ) -> Tensor:
            if not self.divides:
                return attend(q, k, v)
            axis = self.mesh.sequence
            joint = Joint(tuple(self.lengths[stream] for stream in streams), axis.size)
            kept, restored = _places(joint, axis.place, q.device)
            if kept is not None:
                q, k, v = (x.index_select(1, kept) for x in (q, k, v))
            out = self.op(attend, joint, q, k, v, mask)
            return out if restored is None else _copies(out, restored)

        return divided


def _entered(transformer: nn.Module, name: str) -> list[nn.Module]:
    """The submodule; for the first block of a stack, and for all of them, the stack, since what its
    blocks add is kept of the rank's own tokens."""
    parent, _, last = name.rpartition(".")
    stack = transformer.get_submodule(parent)
    if last in ("0", "*") and isinstance(stack, BlockStack):
        return [stack]
    return [*stack.children()] if last == "*" else [transformer.get_submodule(name)]


def _arguments(module: nn.Module) -> list[str]:
    if isinstance(module, BlockStack):
        return module.names
    return [*inspect.signature(type(module).forward).parameters][1:]


def _copies(out: Tensor, restored: Tensor) -> Tensor:
    """What a rank holds, from what its own tokens came to; without any of its own, zeros."""
    if out.shape[1] == 0:
        return F.pad(out, (0, 0, 0, 0, 0, len(restored)))
    return out.index_select(1, restored)


@lru_cache(maxsize=64)
def _indices(share: Share, device: torch.device) -> Tensor:
    return _index(share.tokens, device)


def _index(places: list[int], device: torch.device) -> Tensor:
    return torch.tensor(places, dtype=torch.long, device=device)


@lru_cache(maxsize=64)
def _places(joint: Joint, rank: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Indices that leave the copies out, and that put them back; None where there are none."""
    kept, restored = joint.kept(rank), joint.restored(rank)
    if len(kept) == len(restored):
        return None, None
    return _index(kept, device), _index(restored, device)
