"""Which attention kernel runs, as seen while it runs.

`scaled_dot_product_attention` picks one by device, precision, sizes and mask. The choice is not
asked for but watched, in the first forward of each kind: one name, or several joined by `+` where
layers differ. Kernels that are called by name are noted when they have returned (`called`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
_OPS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash",
    "_scaled_dot_product_efficient_attention": "efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_fused_attention_overrideable": "overrideable",
    "_scaled_dot_product_attention_math": "math",
    "_safe_softmax": "math",  # what the line above is made of, and nothing else is
}


class KernelWatch:
    """Names of the kernels by kind of forward: its bucket, and the kernel asked for."""

    def __init__(self, device: torch.device) -> None:
        self._prefix = "sdpa-cpu" if device.type == "cpu" else "sdpa"
        self._names: dict[Hashable, str] = {}

    def name(self, kind: Hashable) -> str:
        """What ran; empty before the first forward of the kind."""
        return self._names.get(kind, "")

    def run(self, kind: Hashable, forward: Callable[[], T]) -> T:
        """A forward: watched if it is the first of its kind that comes to its end."""
        if kind in self._names:
            return forward()
        with _Seeing() as seeing:
            _watching.append(seeing)
            try:
                result = forward()
            finally:
                _watching.clear()
        seen = {f"{self._prefix}-{kernel}" for kernel in seeing.kernels} | seeing.called
        self._names[kind] = "+".join(sorted(seen)) or "none"
        return result


def called(name: str, attend: Callable[[], T]) -> T:
    """Attention by a kernel of that name, whatever operations it is made of. In what is compiled
    it says nothing, or each watch would be compiled for: who runs that calls this around it."""
    if torch.compiler.is_compiling() or not _watching:
        return attend()
    seeing = _watching[-1]
    before = set(seeing.kernels)
    result = attend()
    seeing.kernels = before
    seeing.called.add(name)
    return result


class _Seeing(TorchDispatchMode):
    """Runs every operation as it is and notes which attention kernels were among them."""

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # it changes nothing: inside, torch may compile

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()  # of torch's own
        self.called: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "overloadpacket", func).__name__  # flex is an operator without one
        if name in _OPS:
            self.kernels.add(_OPS[name])
        return func(*args, **(kwargs or {}))


_watching: list[_Seeing] = []  # the forward that is watched
