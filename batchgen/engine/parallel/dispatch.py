"""Where diffusers' attention processors are led to an op of ours.

This leans on what diffusers does not promise: a processor calls `dispatch_attention_fn` of its own
module and passes on its `_parallel_config`. A processor that does not is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from batchgen.errors import ConfigError

Divided = Callable[[Callable[..., Tensor], Tensor, Tensor, Tensor], Tensor]
_NAME = "dispatch_attention_fn"
_crossing: list[Divided] = []  # of the attention to other streams that is running


def attend_through(attention: nn.Module, divided: Divided) -> Callable[[], None]:
    """Let an attention module's processor call `divided(attend, q, k, v)`, where `attend` is what
    it would have called, on (B, S, H, D). The function returned takes it back."""
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


def _route(module: Any) -> None:
    """Once a module; whoever passes no `_Handed` gets diffusers' own."""
    inner = getattr(module, _NAME)
    if getattr(inner, "_routes_divided_attention", False):
        return

    def routed(
        query: Tensor, key: Tensor, value: Tensor, *, parallel_config: Any = None, **settings: Any
    ) -> Tensor:
        divided = _crossing[-1] if _crossing else None
        if isinstance(parallel_config, _Handed):
            divided = parallel_config.divided
        if divided is None:
            y: Tensor = inner(query, key, value, parallel_config=parallel_config, **settings)
            return y
        mask = settings.get("attn_mask")
        if mask is not None and mask.shape[-2] != 1:
            raise NotImplementedError("attention with a mask for each query is not divided")
        return divided(lambda q, k, v: inner(q, k, v, **settings), query, key, value)

    routed._routes_divided_attention = True  # type: ignore[attr-defined]
    setattr(module, _NAME, routed)
