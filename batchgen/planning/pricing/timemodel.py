"""Seconds of a forward that several ranks share, from what it takes on one.

With P ranks, N tokens of width d in a forward's item, e bytes an element, B blocks and A attentions
(one a block; of those over a part of the tokens the part counts):

    forward  = (alone - launch) / P + launch + A x (all-to-all + what the ring does not hide)
    launch   = B x what starting a block's kernels takes: each rank starts all of them
    all-to-all, bytes a rank sends in one = 4 x (N/P) x d x (P-1)/P x e
    ring, bytes a rank sends in one       = 2 x N x d x (P-1)/P x e

Ulysses changes queries, keys, values and the result from tokens to heads and back: four tensors, of
each of which a rank keeps 1/P (Jacobs et al., DeepSpeed Ulysses, arXiv:2309.14509). Nothing hides
it. The ring passes keys and values on, P-1 times (Liu et al., Ring Attention, arXiv:2310.01889),
each time while the chunk before is attended to: only what takes longer than that is waited for.
Ulysses over U ranks inside a ring of R works on N/R tokens, the ring on the d/U channels that are
left to a rank (Fang and Zhao, USP, arXiv:2405.07719).

Three figures are fitted to published times of Wan on 2 to 16 GPUs, against which
`tests/unit/planning/pricing/test_published.py` holds the formulas: how much of a link's nominal
rate is left to an all-to-all, with the copies around it and the wait for the slowest rank, and to a
pass between two neighbours; and how much longer attention takes chunk by chunk, with smaller
kernels and sums in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchgen.config.schema import DeviceConfig, ModelSpec
from batchgen.families.family import family_spec
from batchgen.families.sequence import (
    AttendsApart,
    padded_heads,
    sent_around_ring,
    sent_in_all_to_all,
)
from batchgen.planning.pricing.cost import LAUNCH_S
from batchgen.records import Precision
from batchgen.request import Bucket

ALL_TO_ALL_SHARE, PASS_SHARE = 0.2, 0.5
CHUNKED = 1.2
_CHUNK_KERNELS = 0.2  # of a block: one chunk's attention and its sum
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_VELOCITY_BYTES = 4 * 64  # of a token: 2x2 latent cells of 16 channels in float32


@dataclass(frozen=True, slots=True)
class Shape:
    """One item of a forward."""

    tokens: int
    width: int
    heads: int
    blocks: int
    element: int  # bytes
    attention: float  # share of self-attention in the FLOPs
    apart: float = 0.0  # attentions beside those of blocks, as many as would see all tokens

    @property
    def attentions(self) -> float:
        return self.blocks + self.apart


@dataclass(frozen=True, slots=True)
class Wires:
    """How fast the ranks of a submission talk, in bytes per second a rank, as made."""

    link: float  # within a node
    nic: float  # between nodes
    ranks_per_node: int

    def rate(self, span: int) -> float:
        """Bytes per second, nominally, over `span` ranks that follow each other."""
        return self.link if span <= self.ranks_per_node else self.nic


def shape_of(model: ModelSpec, bucket: Bucket, precision: Precision) -> Shape:
    """What one item of a bucket is to the formulas."""
    family = family_spec(model.family)
    tokens, width, blocks = (
        family.tokens(model, bucket),
        family.width(model),
        family.layers(model),
    )
    apart = family.apart(model, bucket) if isinstance(family, AttendsApart) else ()
    pairs = blocks * tokens**2 + sum(seen**2 for seen in apart)
    attention = 4.0 * pairs * width  # FLOPs of QK^T and of its product with V
    share = min(1.0, attention / family.forward_flops(model, bucket))
    heads, more = family.heads(model), sum(apart) / tokens
    return Shape(tokens, width, heads, blocks, _BYTES[precision], share, more)


def wires_of(device: DeviceConfig, ranks_per_node: int) -> Wires:
    return Wires(1e9 * device.link_gbs, 1e9 * device.nic_gbs, ranks_per_node)


@dataclass(frozen=True, slots=True)
class SharedForward:
    """Forwards of a shape that `ulysses` x `ring` ranks share; `alone_s`: one item on one rank."""

    shape: Shape
    alone_s: float
    ulysses: int
    ring: int
    wires: Wires

    def seconds(self, items: int = 1) -> float:
        """Of one forward of so many items."""
        launch = min(self.alone_s, self.shape.blocks * LAUNCH_S)
        each = (self.alone_s - launch) / self._ranks * self._longer + self._waits_s()
        return launch * (1 + _CHUNK_KERNELS * (self.ring - 1)) + items * each

    @property
    def _ranks(self) -> int:
        return self.ulysses * self.ring

    @property
    def _heads(self) -> int:
        """With those that are padded where Ulysses does not divide them."""
        return padded_heads(self.shape.heads, self.ulysses)

    @property
    def _longer(self) -> float:
        """Compute over that of one rank: attention over padded heads, and chunk by chunk."""
        chunked = CHUNKED if self.ring > 1 else 1.0
        return 1 + self.shape.attention * (self._heads / self.shape.heads * chunked - 1)

    def _waits_s(self) -> float:
        """Communication of one item that nothing hides, over all blocks."""
        shape, element = self.shape, self.shape.element
        width = shape.width // shape.heads * self._heads
        sent = element * sent_in_all_to_all(shape.tokens, width, self.ulysses, self.ring)
        to_heads = sent / (ALL_TO_ALL_SHARE * self.wires.rate(self.ulysses))
        if self.ring == 1:
            return shape.attentions * to_heads
        passed = element * sent_around_ring(shape.tokens, width, self.ring, self.ulysses)
        pass_s = passed / (self.ring - 1) / (PASS_SHARE * self.wires.rate(self._ranks))
        attend_s = self.alone_s * shape.attention / shape.attentions / self._ranks / self.ring
        return shape.attentions * (to_heads + (self.ring - 1) * max(0.0, pass_s - attend_s))


def streamed_seconds(compute: float, blocks: Sequence[float], rate: float, prefetch: int) -> float:
    """Of a forward whose blocks come from the host at `rate` bytes per second. `blocks`: the bytes
    of each; 0: it stays. A block is copied while those from the one that streams before it on
    compute, behind the last one the first; with nothing ahead all copies are waited for. Blocks
    are taken to compute alike."""
    copies = [size / rate for size in blocks if size]
    if prefetch == 0 or not copies:
        return compute + sum(copies)
    streams = [number for number, size in enumerate(blocks) if size]
    each = compute / len(blocks)
    following = [*streams[1:], streams[0] + len(blocks)]
    computed = [each * (after - before) for before, after in zip(streams, following, strict=True)]
    return sum(map(max, computed, [*copies[1:], copies[0]]))


def exchange_seconds(shape: Shape, cfg: int, span: int, wires: Wires) -> float:
    """Of one step of one row: its velocities go to all ranks; `span`: ranks of the replica."""
    sent = (cfg - 1) / cfg * shape.tokens * _VELOCITY_BYTES
    return sent / (ALL_TO_ALL_SHARE * wires.rate(span))


def pieces_seconds(values: int, ranks: int, wires: Wires) -> float:
    """Of the float32 values of a row's frames, of which `ranks` have decoded some each, until they
    are where the row is written."""
    sent = 4 * values * (ranks - 1) / ranks
    return sent / (ALL_TO_ALL_SHARE * wires.rate(ranks)) if sent else 0.0
