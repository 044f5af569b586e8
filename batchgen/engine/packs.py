"""How many items of a bucket share a forward, and how many rows a decode.

A fixed token budget, or `auto`. On a CPU auto is 1024 tokens: over eleven shapes of a Wan of width
192 and 512 and of a FLUX.1 of width 384 (`batchgen bench budget`), packs of 512 tokens take 1.05 to
1.14 times as long an item as the best size, which has 800 to 1500 tokens; more gain nothing, and
rows in flight are what a stopped worker loses. On an accelerator auto doubles the pack on the rows'
own forwards until an item gets less than 5 % cheaper; nothing is computed for the measurement
alone. Pack sizes never change pixels in strict mode: there a bucket that fails the self-test goes
one item at a time.

Rows are decoded together by the same search, on any device, within what the layout leaves room for;
strict decodes one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeVar

import torch

from batchgen.engine.contract import SelfTest
from batchgen.engine.isolation import Failed, attempt
from batchgen.families.kept import forward_tokens
from batchgen.records import MOST_DECODED, Determinism
from batchgen.request import Bucket

GAIN = 0.95  # an item must get this much cheaper for the pack to double
SAMPLES = 2  # forwards measured per size: the first one of a shape may compile or tune
# Kernels differ for products of few rows and agree from 16 on: a probe has more items than three,
# and as many as make 16 rows.
PROBE_ITEMS, PROBE_ROWS = 5, 16

T = TypeVar("T")


@dataclass(slots=True)
class _Sweep:
    """The search for a bucket's size: the candidate, its samples, and the best size before it."""

    size: int = 1
    samples: list[float] = field(default_factory=list)  # seconds per item
    best_s: float = float("inf")
    settled: bool = False

    def add(self, items: int, seconds: float, limit: int) -> None:
        if self.settled or items != self.size:
            return
        self.samples.append(seconds / items)
        if len(self.samples) < SAMPLES:
            return
        if min(self.samples) > self.best_s * GAIN:
            self.size, self.settled = max(1, self.size // 2), True
        elif self.size * 2 > limit:
            self.settled = True
        else:
            self.best_s, self.samples, self.size = min(self.samples), [], self.size * 2


class Packer:
    """Sizes of packs by bucket; built once per engine and used by its one ticking thread."""

    def __init__(
        self,
        tokens: Callable[[Bucket], int],
        device: torch.device,
        token_budget: int | Literal["auto"],
        determinism: Determinism,
        *,
        equal: Callable[[Bucket, int], bool],
        ranks: int = 1,
        few_shapes: bool = False,
    ) -> None:
        """`tokens`: of one item of a bucket. `equal`: the self-test with so many items. `ranks`:
        that divide the items of a pack; sizes are those of the forward of each. `few_shapes`: these
        are powers of two, whatever rows join and leave."""
        self.ranks = ranks
        self.few_shapes = few_shapes
        self.tokens = tokens
        self.strict = determinism == "strict"
        self.sweeps = token_budget == "auto" and device.type != "cpu"
        self.token_budget = forward_tokens(token_budget, on_cpu=device.type == "cpu")
        self.self_test: SelfTest = "not needed"
        self._equal = equal
        self._limits: dict[Bucket, int] = {}
        self._fitting: dict[Bucket, int] = {}  # of buckets that were too much
        self._sweeps: dict[Bucket, _Sweep] = {}

    @property
    def tick_tokens(self) -> int:
        """Tokens that all ranks together take in one forward each."""
        return self.token_budget * self.ranks

    def limit(self, bucket: Bucket) -> int:
        """Most items of a forward: the budget, or one where strict mode's self-test failed, and no
        more than there is room for."""
        fitting = self._fitting.get(bucket, self.token_budget)
        if bucket not in self._limits:
            most = max(1, self.token_budget // self.tokens(bucket))
            self._limits[bucket] = self._tested(bucket, min(most, fitting))
        return min(self._limits[bucket], fitting)

    def size(self, bucket: Bucket) -> int:
        """Items of the next forward of this bucket."""
        limit = self.limit(bucket)
        sweep = self._sweep(bucket)
        return limit if sweep is None else min(limit, sweep.size)

    def chunks(self, bucket: Bucket, items: Sequence[T]) -> list[Sequence[T]]:
        """Cut the items of a tick into forwards: exactly by size while the sweep wants that size
        measured, else into as few and as even ones as possible."""
        size, sweep = self.size(bucket), self._sweep(bucket)
        if self.few_shapes:
            return powers_of_two(items, size, self.ranks)
        size *= self.ranks
        if sweep is None or sweep.settled:
            return even_chunks(items, size)
        return [items[i : i + size] for i in range(0, len(items), size)]

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """(bucket, items per forward) of every bucket met so far."""
        return tuple((str(bucket), self.size(bucket)) for bucket in self._limits)

    def measuring(self, bucket: Bucket, items: int) -> bool:
        """Whether the time of a forward of this many items is wanted (it costs a wait)."""
        sweep = self._sweep(bucket)
        return sweep is not None and not sweep.settled and items == sweep.size

    def observe(self, bucket: Bucket, items: int, seconds: float) -> None:
        """Tell the sweep how long a forward took."""
        sweep = self._sweep(bucket)
        if sweep is not None:
            sweep.add(items, seconds, self.limit(bucket))

    def _sweep(self, bucket: Bucket) -> _Sweep | None:
        """The bucket's search, if there is anything to search."""
        if not self.sweeps or self.limit(bucket) == 1:
            return None
        return self._sweeps.setdefault(bucket, _Sweep())

    def shrink(self, bucket: Bucket, items: int) -> int:
        """A forward of this many items did not fit: half of them, at most, do from now on."""
        self._fitting[bucket] = max(1, min(self.limit(bucket), items // 2))
        return self._fitting[bucket]

    def allow(self, bucket: Bucket, items: int) -> None:
        """As much as did fit in an attempt before."""
        self._fitting[bucket] = min(items, self._fitting.get(bucket, items))

    def forget(self) -> None:
        """There is more room: what did not fit is tried again."""
        for bucket in self._fitting:  # found where there was less room
            self._limits.pop(bucket, None)
            self._sweeps.pop(bucket, None)
        self._fitting.clear()

    def _tested(self, bucket: Bucket, limit: int) -> int:
        if not self.strict or limit == 1:
            return limit
        items = min(limit, max(PROBE_ITEMS, -(-PROBE_ROWS // self.tokens(bucket))))
        if self.few_shapes:
            items = 1 << items.bit_length() - 1
        passed = attempt(lambda: self._equal(bucket, items))
        if isinstance(passed, Failed):
            return 1  # the model cannot run this bucket: let each of its rows say so
        if self.self_test != "failed":
            self.self_test = "passed" if passed else "failed"
        return limit if passed else 1


class DecodeSizes:
    """How many rows of a bucket are decoded together; used by the one thread that decodes."""

    def __init__(self, most: Callable[[Bucket], int]) -> None:
        """`most`: rows of a bucket that the layout allows."""
        self._most = most
        self._limits: dict[Bucket, int] = {}  # of buckets that did not fit
        self._sweeps: dict[Bucket, _Sweep] = {}

    def size(self, bucket: Bucket) -> int:
        """Rows of the next decode, if as many are there."""
        return min(self._limit(bucket), self._sweep(bucket).size)

    def observe(self, bucket: Bucket, rows: int, seconds: float) -> None:
        """Tell how long a decode took, from its begin to its end on the device."""
        self._sweep(bucket).add(rows, seconds, self._limit(bucket))

    def shrink(self, bucket: Bucket, rows: int) -> int:
        """So many rows did not fit: half of them, at most, do from now on."""
        self.allow(bucket, max(1, rows // 2))
        return self._limits[bucket]

    def allow(self, bucket: Bucket, rows: int) -> None:
        """As much as does fit."""
        self._limits[bucket] = min(rows, self._limits.get(bucket, rows))

    def forget(self) -> None:
        """There is more room: what did not fit is tried again."""
        for bucket in self._limits:
            self._sweeps.pop(bucket, None)
        self._limits.clear()

    def _limit(self, bucket: Bucket) -> int:
        return min(self._most(bucket), self._limits.get(bucket, MOST_DECODED))

    def _sweep(self, bucket: Bucket) -> _Sweep:
        return self._sweeps.setdefault(bucket, _Sweep())


def powers_of_two(items: Sequence[T], size: int, ranks: int = 1) -> list[Sequence[T]]:
    """Chunks of which each of `ranks` has a power of two of items, at most `size`, the largest
    first. Items that do not go round come last, one a rank."""
    chunks, begin = list[Sequence[T]](), 0
    while begin < len(items):
        each = max(1, min(size, (len(items) - begin) // ranks))
        count = ranks * (1 << each.bit_length() - 1)
        chunks.append(items[begin : begin + count])
        begin += count
    return chunks


def even_chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """As few chunks of at most `size` as there can be, of nearly equal length."""
    count = -(-len(items) // size)
    cuts = [len(items) * k // count for k in range(count + 1)]
    return [items[a:b] for a, b in pairwise(cuts)]
