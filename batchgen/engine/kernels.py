"""Which attention kernel torch runs, as seen while it runs.

`scaled_dot_product_attention` picks one by device, precision, sizes and mask. The choice is not
asked for but watched, in the first forward of each bucket: one name, or several joined by `+` where
layers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from batchgen.request import Bucket

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
    """Names of the kernels by bucket."""

    def __init__(self, device: torch.device) -> None:
        self._prefix = "sdpa-cpu" if device.type == "cpu" else "sdpa"
        self._names: dict[Bucket, str] = {}

    def name(self, bucket: Bucket) -> str:
        """What ran; empty before the first forward of the bucket."""
        return self._names.get(bucket, "")

    def run(self, bucket: Bucket, forward: Callable[[], T]) -> T:
        """A forward: watched if it is the bucket's first that comes to its end."""
        if bucket in self._names:
            return forward()
        with _Seeing() as seeing:
            result = forward()
        seen = [f"{self._prefix}-{kernel}" for kernel in sorted(seeing.kernels)]
        self._names[bucket] = "+".join(seen) or "none"
        return result


class _Seeing(TorchDispatchMode):
    """Runs every operation as it is and notes which attention kernels were among them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _OPS:
            self.kernels.add(_OPS[name])
        return func(*args, **(kwargs or {}))
