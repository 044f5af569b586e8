"""Attention over tokens that are divided over ranks.

`TorchOp` is all-to-all inside `ulysses` (tokens for heads) and point to point around `ring`. What a
rank sends is its own tokens alone, however many: no copy is ever attended to, and no mask is needed
but the family's own. Before attention the tokens are put back into the order of one process, since
their order decides the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.ring import ring_attention
from batchgen.engine.parallel.shares import Joint
from batchgen.families.sequence import padded_heads

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # one process's own, over (1, S, H, D)


class AttentionOp(Protocol):
    """How ranks attend together."""

    masks: bool  # whether it takes a mask

    def __call__(
        self,
        attend: Attend,
        joint: Joint,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The rank's own tokens (B, own, H, D) -> what the whole gives for them. `attend`: how one
        process would do it. `mask`: which of the last tokens of all are attended to, (B, 1, 1, of
        so many); `attend` knows it."""


class TorchOp:
    """Ulysses and ring in torch.distributed alone."""

    masks = True

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def __call__(
        self,
        attend: Attend,
        joint: Joint,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See `AttentionOp`. Bit-equal to `attend` over all tokens where the ring has one rank."""
        heads = q.shape[2]
        order, back = _orders(joint, self._chunk(self.mesh.ring.place), q.device)
        whole = self._to_heads(joint, torch.stack([q, k, v]))
        if order is not None:
            whole = whole.index_select(2, order)
        if self.mesh.ring.size == 1:
            out = attend(*whole.unbind())
        else:
            chunks = [self._chunk(place) for place in range(self.mesh.ring.size)]
            lengths = [sum(joint.own(rank) for rank in chunk) for chunk in chunks]
            masks = None if mask is None else [_of_chunk(mask, joint, chunk) for chunk in chunks]
            q, k, v = whole.unbind()
            out = ring_attention(self.mesh, lengths, q, k, v, masks)
        if back is not None:
            out = out.index_select(1, back)
        return self._to_tokens(joint, out)[:, :, :heads]

    def _chunk(self, place: int) -> range:
        """The ranks of `sequence` that make up one ring place: the Ulysses groups, in order."""
        size = self.mesh.ulysses.size
        return range(place * size, (place + 1) * size)

    def _to_heads(self, joint: Joint, x: Tensor) -> Tensor:
        """(3, B, own, H, D) -> (3, B, tokens of the chunk, H / ulysses, D), rank after rank."""
        axis = self.mesh.ulysses
        if axis.size == 1:
            return x
        missing = padded_heads(x.shape[3], axis.size) - x.shape[3]
        x = F.pad(x, (0, 0, 0, missing)) if missing else x
        pieces = x.chunk(axis.size, dim=3)
        three, batch, _, heads, dim = pieces[0].shape
        shapes = [
            (three, batch, joint.own(rank), heads, dim)
            for rank in self._chunk(self.mesh.ring.place)
        ]
        return torch.cat(self.mesh.wire.exchange(axis, pieces, shapes), dim=2)

    def _to_tokens(self, joint: Joint, x: Tensor) -> Tensor:
        """(B, tokens of the chunk, H / ulysses, D), rank after rank -> (B, own, H, D)."""
        axis = self.mesh.ulysses
        if axis.size == 1:
            return x
        counts = [joint.own(rank) for rank in self._chunk(self.mesh.ring.place)]
        pieces = x.split(counts, dim=1)
        shape = pieces[axis.place].shape
        return torch.cat(self.mesh.wire.exchange(axis, pieces, [shape] * axis.size), dim=2)


def attention_op(name: Literal["auto", "torch", "xfuser"], mesh: Mesh) -> AttentionOp:
    """The op that `system.parallel.attention_op` names. Raises ConfigError where it cannot load."""
    if name != "xfuser":
        return TorchOp(mesh)
    from batchgen.engine.parallel.xfuser import XfuserOp  # slow to load, and rarely there

    return XfuserOp(mesh)


def _of_chunk(mask: Tensor, joint: Joint, ranks: range) -> Tensor:
    """Which keys of some ranks are attended to, (B, 1, 1, so many), in the order of one process."""
    whole = F.pad(mask, (sum(joint.lengths) - mask.shape[-1], 0), value=True)
    return whole.index_select(-1, _places(joint, ranks, mask.device))


@lru_cache(maxsize=64)
def _places(joint: Joint, ranks: range, device: torch.device) -> Tensor:
    return torch.tensor(sorted(joint.positions(ranks)), device=device)


@lru_cache(maxsize=64)
def _orders(
    joint: Joint, ranks: range, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Indices that bring the ranks' tokens, rank after rank, into the order of one process, and
    back. None: they are in order."""
    positions = joint.positions(ranks)
    if positions == sorted(positions):
        return None, None
    order = torch.tensor(positions, device=device).argsort()
    return order, order.argsort()
