"""Where diffusers' attention processors are led to an op or a kernel of ours.

This leans on what diffusers does not promise: a processor calls `dispatch_attention_fn` of its own
module and passes on its `_parallel_config` and `_attention_backend`. One that does not is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from batchgen.errors import ConfigError

# what one process would do, its three tensors, and which of the last keys are attended to,
# (items, 1, 1, of so many), or all -> attention
Divided = Callable[[Callable[..., Tensor], Tensor, Tensor, Tensor, Tensor | None], Tensor]
# diffusers' own dispatch, the three tensors, and what else the processor passes on -> attention
Chosen = Callable[..., Tensor]
_NAME = "dispatch_attention_fn"
_crossing: list[Divided] = []  # of the attention to other streams that is running


def attend_through(attention: nn.Module, divided: Divided) -> Callable[[], None]:
    """Let an attention module's processor call `divided(attend, q, k, v, mask)`, where `attend` is
    what it would have called, on (B, S, H, D), with its mask. The function returned takes it
    back."""
    processor = _routed(attention)
    before, processor._parallel_config = processor._parallel_config, _Handed(divided)
    return lambda: setattr(processor, "_parallel_config", before)


def cross_through(attention: nn.Module, divided: Divided) -> Callable[[], None]:
    """The same for attention to other streams, where a processor passes no configuration."""
    _routed(attention)
    enter = attention.register_forward_pre_hook(lambda *_: _crossing.append(divided))
    leave = attention.register_forward_hook(lambda *_: _crossing.clear(), always_call=True)

    def undo() -> None:
        enter.remove()
        leave.remove()

    return undo


def choose_through(attention: nn.Module, chosen: Chosen) -> None:
    """Let an attention module's processor call `chosen(inner, q, k, v, **settings)` on each whole
    (B, S, H, D) that it attends over; `inner` is diffusers' dispatch. Raises ConfigError."""
    processor: Any = getattr(attention, "processor", None)
    module = sys.modules.get(type(processor).__module__)
    if not hasattr(processor, "_attention_backend") or not hasattr(module, _NAME):
        raise ConfigError(
            f"system.attention: {type(processor).__name__} of this diffusers does not let its "
            "kernel be chosen; legal: auto, sdpa"
        )
    _route(module)
    processor._attention_backend = _Kernel(chosen)


def _routed(attention: nn.Module) -> Any:
    """The processor of an attention module, which leads here from now on."""
    processor: Any = getattr(attention, "processor", None)
    module = sys.modules.get(type(processor).__module__)
    if not hasattr(processor, "_parallel_config") or not hasattr(module, _NAME):
        raise ConfigError(
            f"system.parallel: {type(processor).__name__} of this diffusers does not let attention "
            "be divided; legal: ulysses=1, ring=1"
        )
    _route(module)
    return processor


class _Handed:
    """What a processor passes on as its parallel configuration."""

    def __init__(self, divided: Divided) -> None:
        self.divided = divided


class _Kernel:
    """What a processor passes on as its backend."""

    def __init__(self, chosen: Chosen) -> None:
        self.chosen = chosen


def _route(module: Any) -> None:
    """Once a module; whoever passes neither gets diffusers' own."""
    inner = getattr(module, _NAME)
    if getattr(inner, "_routes_divided_attention", False):
        return

    def routed(
        query: Tensor, key: Tensor, value: Tensor, *, parallel_config: Any = None, **settings: Any
    ) -> Tensor:
        divided, attend = _crossing[-1] if _crossing else None, inner
        if isinstance(parallel_config, _Handed):
            divided, parallel_config = parallel_config.divided, None
        if isinstance(kernel := settings.get("backend"), _Kernel):
            attend, settings = partial(kernel.chosen, inner), {**settings, "backend": None}
        if divided is None:
            y: Tensor = attend(query, key, value, parallel_config=parallel_config, **settings)
            return y
        mask = settings.get("attn_mask")
        if mask is not None and mask.shape[-2] != 1:
            raise NotImplementedError("attention with a mask for each query is not divided")
        return divided(lambda q, k, v: attend(q, k, v, **settings), query, key, value, mask)

    routed._routes_divided_attention = True  # type: ignore[attr-defined]
    setattr(module, _NAME, routed)
