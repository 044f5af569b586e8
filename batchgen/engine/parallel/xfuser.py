"""xfuser's USP in the place of our own all-to-all and ring: for comparison, and for its kernels.

Loaded only when it is asked for. It wants shares of one size, and keeps keys in the order of the
ranks, so joint attention to text and image is not bit-equal to one rank's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from batchgen.engine.parallel.mesh import Mesh
from batchgen.engine.parallel.shares import Joint
from batchgen.errors import ConfigError

_KEY = "system.parallel.attention_op: xfuser"


class XfuserOp:
    """See `AttentionOp`. Its bytes are not counted."""

    masks = False

    def __init__(self, mesh: Mesh) -> None:
        """Raises ConfigError with the reason where xfuser cannot be used."""
        self.usp = _load(mesh)

    def __call__(
        self,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        joint: Joint,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        counts = {joint.own(rank) for rank in range(joint.ranks)}
        if len(counts) > 1:
            raise ConfigError(
                f"{_KEY} divides only what comes out even: {sum(joint.lengths)} tokens do not over "
                f"{joint.ranks} ranks; attention_op=torch takes any number"
            )
        out: Tensor = self.usp(*(x.transpose(1, 2).contiguous() for x in (q, k, v)))
        return out.transpose(1, 2)


def _load(mesh: Mesh) -> Callable[..., Any]:
    """USP over xfuser's own groups, made beside ours in the same order of ranks."""
    try:
        from xfuser.core import distributed
        from xfuser.core.distributed import parallel_state, runtime_state
        from xfuser.model_executor.layers import usp
    except Exception as error:  # it fails in many ways where a kernel or a GPU is missing
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{_KEY} cannot be loaded here ({reason}); legal: auto, torch") from error
    degrees, backend = mesh.degrees, dist.get_backend(mesh.sequence.group)
    device = torch.cuda.current_device() if backend == "nccl" else mesh.rank
    distributed.init_distributed_environment(
        degrees.replica, mesh.rank, "", local_rank=device, backend=backend
    )
    distributed.initialize_model_parallel(
        classifier_free_guidance_degree=degrees.cfg,
        sequence_parallel_degree=degrees.sequence,
        ulysses_degree=degrees.ulysses,
        ring_degree=degrees.ring,
        backend=backend,
    )
    found = parallel_state.get_ulysses_parallel_world_size()
    if found != degrees.ulysses:
        raise ConfigError(f"{_KEY} made groups of {found} for ulysses={degrees.ulysses}")
    if not runtime_state.runtime_state_is_initialized():
        runtime_state.initialize_runtime_state()
    attention: Callable[..., Any] = usp.USP
    return attention
