"""Blocks that live on the host, or on disk, and come to the device around their forwards, a few
ahead.

The tensors of a block on the host lie one behind the other, so that a block is one copy. On the
device there is a fixed number of shelves, each as large as the largest block: no memory is
asked for while a forward runs, and a host that runs ahead of the device cannot pile blocks up.
Which blocks a forward runs is known (`caches.blocks.Blocks`), so those it leaves out are not
copied; diffusers' group offload copies in the order of the first forward, whatever later ones do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from batchgen.engine.memory.gauge import Gauge
from batchgen.engine.memory.sources import source_of

_ALIGNED = 256  # bytes, as what the device itself hands out
_LINE = 64  # bytes; the alignment of torch's own memory on a CPU


def tensors_of(module: nn.Module) -> list[Tensor]:
    """All that a module computes with."""
    return [*module.parameters(), *module.buffers()]


def _lead(tensor: Tensor) -> int:
    """Bytes behind a line at which it lies where nothing streams. Products of a CPU depend on it in
    the last bit, and weights that are mapped from a file begin anywhere."""
    source = source_of(tensor)
    if source.dtype != tensor.dtype:
        return 0  # it would be a copy in another precision
    lead = source.data_ptr() % _LINE
    return 0 if lead % tensor.element_size() else lead


class Block(ABC):
    """A block whose tensors lie one behind the other wherever it computes."""

    def __init__(
        self, block: nn.Module, *, on_cpu: bool, apart: Collection[nn.Module] = ()
    ) -> None:
        """`apart`: modules of blocks that are none of its business."""
        others = {
            id(t) for module in block.modules() if module in apart for t in tensors_of(module)
        }
        self._tensors = [tensor for tensor in tensors_of(block) if id(tensor) not in others]
        leads = [_lead(tensor) if on_cpu else 0 for tensor in self._tensors]
        sizes = [
            -(-(lead + tensor.nbytes) // _ALIGNED) * _ALIGNED
            for lead, tensor in zip(leads, self._tensors, strict=True)
        ]
        starts = [0, *accumulate(sizes)]
        self.bytes = starts.pop()
        self._offsets = [start + lead for start, lead in zip(starts, leads, strict=True)]

    def settle(self, memory: Tensor) -> None:
        """Let the block compute with what lies there, a copy of it."""
        for tensor, view in zip(self._tensors, self._views(memory), strict=True):
            tensor.data = view

    @abstractmethod
    def copy_to(self, memory: Tensor) -> None:
        """Bring its tensors from where they wait into `memory`."""

    @abstractmethod
    def go_home(self) -> None:
        """Let go of the memory in which it computed."""

    def _views(self, memory: Tensor) -> Iterator[Tensor]:
        for tensor, offset in zip(self._tensors, self._offsets, strict=True):
            part = memory[offset : offset + tensor.nbytes]
            yield part.view(tensor.dtype).view(tensor.shape)


class HostBlock(Block):
    """A block with its home in host memory, from which it is one copy; the home is this rank's
    own."""

    def __init__(
        self, block: nn.Module, *, pinned: bool, on_cpu: bool, apart: Collection[nn.Module] = ()
    ) -> None:
        super().__init__(block, on_cpu=on_cpu, apart=apart)
        self.home = torch.empty(self.bytes, dtype=torch.uint8, pin_memory=pinned)
        for tensor, view in zip(self._tensors, self._views(self.home), strict=True):
            view.copy_(tensor)
        self.settle(self.home)

    def copy_to(self, memory: Tensor) -> None:
        memory[: self.bytes].copy_(self.home, non_blocking=True)

    def go_home(self) -> None:
        self.settle(self.home)


class PlacedBlock(Block):
    """A block whose tensors stay where they lie, and are read one by one: in a file, or in memory,
    which the ranks of a node share where it is mapped from a file."""

    def __init__(
        self, block: nn.Module, *, on_cpu: bool, apart: Collection[nn.Module] = ()
    ) -> None:
        super().__init__(block, on_cpu=on_cpu, apart=apart)
        self._sources = [source_of(tensor) for tensor in self._tensors]
        self._away = [tensor.data for tensor in self._tensors]

    def copy_to(self, memory: Tensor) -> None:
        for view, source in zip(self._views(memory), self._sources, strict=True):
            view.copy_(source)

    def go_home(self) -> None:
        for tensor, nothing in zip(self._tensors, self._away, strict=True):
            tensor.data = nothing


class Shelf:
    """Room for one block on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.filled: torch.cuda.Event | None = None
        self.used: torch.cuda.Event | None = None


class Copies:
    """Copies from the host that are done when they return: the plain twin."""

    def fill(self, shelf: Shelf, block: Block) -> None:
        block.copy_to(shelf.memory)

    def await_filled(self, shelf: Shelf) -> None:
        """What follows on the current stream finds the block there."""

    def note_used(self, shelf: Shelf) -> None:
        """What was asked of the current stream until now may still read the shelf."""

    def await_all(self) -> None:
        """What follows on the current stream finds no copy on its way."""


class SideStream(Copies):
    """Copies beside the computing, on a CUDA stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)

    def fill(self, shelf: Shelf, block: Block) -> None:
        if shelf.used is not None:
            self._side.wait_event(shelf.used)
        with torch.cuda.stream(self._side):
            block.copy_to(shelf.memory)
            shelf.filled = self._side.record_event()

    def await_filled(self, shelf: Shelf) -> None:
        assert shelf.filled is not None
        torch.cuda.current_stream(self._device).wait_event(shelf.filled)

    def note_used(self, shelf: Shelf) -> None:
        shelf.used = torch.cuda.current_stream(self._device).record_event()

    def await_all(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._side)


class Feed:
    """The blocks of one component; those that `stay` are none of its business."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        stay: Collection[int],
        device: torch.device,
        gauge: Gauge,
        *,
        prefetch: int,
        pin: bool,
        on_disk: bool = False,
        apart: Collection[nn.Module] = (),
    ) -> None:
        """`prefetch`: blocks that are copied ahead; `pin`: in homes from which a device can read
        them beside its work; `on_disk`: they lie in files, and have no homes; `apart`: modules of
        blocks that do not come with them."""
        cuda, on_cpu = device.type == "cuda", device.type == "cpu"
        self._blocks: dict[int, Block] = {
            number: HostBlock(block, pinned=True, on_cpu=on_cpu, apart=apart)
            if pin and cuda and not on_disk
            else PlacedBlock(block, on_cpu=on_cpu, apart=apart)
            for number, block in enumerate(blocks)
            if number not in stay
        }
        self.modules = [block for number, block in enumerate(blocks) if number in self._blocks]
        self._device, self._gauge = device, gauge
        self._copies = SideStream(device) if cuda else Copies()
        self._ahead = 1 + prefetch
        self._free: list[Shelf] = []
        self._inside: dict[int, Shelf] = {}

    def lead(self, blocks: Sequence[nn.Module], pause: Callable[[], object]) -> None:
        """Let blocks that run one behind the other, all in each forward, come by themselves;
        `pause` is called before each comes."""
        for number, block in enumerate(blocks):
            if number in self._blocks:
                block.forward = self._led(number, block.forward, pause)

    def _led(
        self, number: int, inner: Callable[..., Any], pause: Callable[[], object]
    ) -> Callable[..., Any]:
        @wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            pause()
            with self.here(number, lambda block: True):
                return inner(*args, **kwargs)

        return forward

    def open(self) -> None:
        """Take memory of the device."""
        largest = max((block.bytes for block in self._blocks.values()), default=0)
        self._free = [
            Shelf(largest, self._device) for _ in range(min(self._ahead, len(self._blocks)))
        ]
        for shelf in self._free:
            self._gauge.add(shelf.memory.nbytes)
            self._copies.note_used(shelf)  # by whoever had that memory before

    def close(self) -> None:
        """Give it back."""
        for number in [*self._inside]:
            self._leave(number)
        self._copies.await_all()
        for shelf in self._free:
            self._gauge.add(-shelf.memory.nbytes)
        self._free = []

    @contextmanager
    def here(self, number: int, runs: Callable[[int], bool]) -> Iterator[None]:
        """Inside, the block is on the device; those that run next are then brought while it
        computes, behind the last one the first, for the next forward. `runs`: whether this forward
        runs a block."""
        following = self._next(number, runs)
        self._leave_all_but(following)
        if number in self._blocks:
            self._bring(number)
        if shelf := self._inside.get(number):
            self._copies.await_filled(shelf)
        try:
            yield
        finally:
            if shelf is not None:
                self._copies.note_used(shelf)
        for each in following:  # the device is still at work, even if the host has to read a file
            self._bring(each)

    def _next(self, number: int, runs: Callable[[int], bool]) -> list[int]:
        """As many as there are shelves."""
        running = [n for n in self._blocks if runs(n)]
        behind = [n for n in running if n >= number]
        return [*behind, *(n for n in running if n < number)][: self._ahead]

    def _leave_all_but(self, wanted: Sequence[int]) -> None:
        for number in [n for n in self._inside if n not in wanted]:
            self._leave(number)

    def _bring(self, number: int) -> None:
        if number not in self._inside:
            shelf, block = self._free.pop(), self._blocks[number]
            self._copies.fill(shelf, block)
            block.settle(shelf.memory)
            self._inside[number] = shelf
            self._gauge.streamed += block.bytes

    def _leave(self, number: int) -> None:
        block = self._blocks[number]
        block.go_home()
        self._free.append(self._inside.pop(number))
