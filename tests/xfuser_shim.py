"""For tests alone: lets xfuser, which knows GPUs only, load on a CPU and talk over gloo.

`install` comes before any import of xfuser. A stub stands in for triton, the platform says gloo,
and a CPU op that gives a log-sum-exp takes the place of its efficient attention.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers  # noqa: F401  (must not see the stub)
import torch
import transformers  # noqa: F401
from toy_split import Seen, divided_case

from batchgen.engine.parallel.mesh import Mesh
from batchgen.request import Bucket


class _Anything(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else self


def _stub_triton() -> None:
    triton, language = _Anything("triton"), _Anything("triton.language")
    triton.language = language  # type: ignore[attr-defined]
    sys.modules |= {"triton": triton, "triton.language": language}


def _speak_gloo() -> None:
    """`xfuser.envs` decides while `xfuser` is imported: set it before, under a bare package."""
    bare = ModuleType("xfuser")
    bare.__path__ = [*importlib.util.find_spec("xfuser").submodule_search_locations]  # type: ignore[union-attr,misc]
    sys.modules["xfuser"] = bare
    envs = importlib.import_module("xfuser.envs")
    envs.get_device_version = lambda: None
    envs.get_torch_distributed_backend = lambda: "gloo"
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True
    del sys.modules["xfuser"]


def install() -> None:
    _stub_triton()
    _speak_gloo()
    from xfuser.core.distributed import runtime_state
    from xfuser.core.distributed.attention_backend import (
        AttentionBackendType,
        register_attention_function,
    )
    from xfuser.model_executor.layers import usp

    usp.PROCESS_GROUP = importlib.import_module("yunchang.globals").PROCESS_GROUP

    @register_attention_function(AttentionBackendType.SDPA_EFFICIENT)
    def _cpu(
        q: Any, k: Any, v: Any, dropout_p: float, is_causal: bool, attention_kwargs: Any = None
    ) -> Any:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attend(q, k, v, dropout_p, is_causal)

    runtime_state._RUNTIME = SimpleNamespace(
        attention_backend=AttentionBackendType.SDPA_EFFICIENT,
        fp8_comms=None,
        runtime_config=SimpleNamespace(use_spargeattn_head_balance=False),
    )


def divided_by_xfuser(mesh: Mesh, name: str, bucket: Bucket, items: int) -> list[Seen]:
    """A pack by xfuser's USP, in a process that plays a rank."""
    install()
    try:
        return divided_case(mesh, name, bucket, items, "xfuser")
    finally:
        parallel_state = importlib.import_module("xfuser.core.distributed.parallel_state")
        parallel_state.destroy_model_parallel()
        parallel_state._WORLD = None
