"""The kernels of a replica: set up once, one of them chosen for each forward."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from diffusers.models.attention_dispatch import AttentionBackendName as Backend
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn

from batchgen.config.kernels import DISPATCHED, KERNELS, kernel_plan, legal_here
from batchgen.config.schema import Kernel, SystemConfig
from batchgen.engine.attention.ops import flex, sparge
from batchgen.engine.attention.radial import radial_mask
from batchgen.engine.devices.kernels import called
from batchgen.engine.parallel.dispatch import choose_through
from batchgen.engine.reuse.blocks import named
from batchgen.errors import ConfigError
from batchgen.families.family import FamilyModel, Item
from batchgen.records import Layout
from batchgen.request import Bucket

T = TypeVar("T")
# diffusers' names of what it dispatches; torch's own choice among its kernels is NATIVE
BACKENDS: dict[Kernel, Backend] = {
    "sdpa": Backend.NATIVE,
    "cudnn": Backend._NATIVE_CUDNN,
    "flash_attn": Backend.FLASH,
    "flash_attn_3": Backend._FLASH_3,
    "sage": Backend.SAGE,
}
SEEN = ("sdpa", "cudnn")  # torch's own, whose operations are seen
OURS: dict[Kernel, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"flex": flex, "sparge": sparge}


class Attention:
    """Leads attentions to a kernel. Where torch chooses for every step, nothing is led."""

    def __init__(self, system: SystemConfig, layout: Layout) -> None:
        """Raises ConfigError for a kernel that cannot run here, with those that can."""
        self.plan, self.radial = kernel_plan(system), system.radial
        self.kernel = self.plan.between  # of the forward that runs
        self.frames = 1  # of its tokens
        for name in self.plan.names:
            require(name, layout)

    def lead(
        self, family: FamilyModel, experts: Iterable[str], frames: Callable[[Bucket], int]
    ) -> None:
        """From now on the experts' attentions use the kernel that is chosen. Called once, before
        stacks are made. `frames`: of the tokens of a bucket. Raises ConfigError."""
        if self.plan.names == ("sdpa",):
            return
        radial = "radial" in self.plan.names  # others know no place: all blocks compile as one
        whole = [attends.modules for attends in family.sequence.attends if radial]
        for expert in experts:
            self._lead(family.modules[expert], whole)
        model: Any = family
        forward = model.forward

        def framed(items: Sequence[Item]) -> Any:
            self.frames = frames(items[0].request.bucket)
            return forward(items)

        model.forward = framed

    @contextmanager
    def using(self, kernel: Kernel) -> Iterator[None]:
        """Forwards inside attend with it."""
        before, self.kernel = self.kernel, kernel
        try:
            yield
        finally:
            self.kernel = before

    def around(self, block: Callable[..., T]) -> Callable[..., T]:
        """A compiled block, whose graph is of one kernel: it says itself which ran."""

        def run(*args: Any, **kwargs: Any) -> T:
            found = partial(block, *args, **kwargs)
            return found() if self.kernel in SEEN else called(self.kernel, found)

        return run

    def _lead(self, transformer: nn.Module, whole: Sequence[str]) -> None:
        """`whole`: the attentions of which the place counts, in the order of their blocks."""
        places = {
            id(module): place
            for place, module in enumerate(m for name in whole for m in named(transformer, name))
        }
        for module in transformer.modules():
            if hasattr(module, "processor"):
                choose_through(module, partial(self._attend, places.get(id(module))))

    def _attend(
        self,
        place: int | None,
        inner: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        **settings: Any,
    ) -> Tensor:
        """`place`: of the block, where it counts. Torch's own attends where there is a mask, which
        others are not told."""
        if settings.get("attn_mask") is not None and self.kernel not in SEEN:
            return inner(q, k, v, **{**settings, "backend": BACKENDS["sdpa"]})
        kernel, ours = self.kernel, OURS.get(self.kernel)
        if kernel == "radial":
            kernel, ours = "sdpa", None
            if place is not None and place >= self.radial.dense_layers:
                kernel, ours = "radial", self._radial
        if ours is not None:
            return called(kernel, partial(ours, q, k, v))
        attend = partial(inner, q, k, v, **{**settings, "backend": BACKENDS[kernel]})
        return attend() if kernel in SEEN else called(kernel, attend)

    def _radial(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        per_frame, rest = divmod(q.shape[1], self.frames)
        if rest:
            raise NotImplementedError(f"radial: {q.shape[1]} tokens in {self.frames} frames")
        return flex(q, k, v, radial_mask(self.frames, per_frame, self.radial.decay, q.device))


def require(name: Kernel, layout: Layout) -> None:
    """Raises ConfigError where a kernel cannot be loaded, or not for such a device."""
    missing = KERNELS[name].missing(layout.device, layout.precision, True)
    try:
        if name in BACKENDS and not missing:
            with attention_backend(BACKENDS[name]):  # diffusers looks for its package
                pass
        elif name == "sparge" and not missing:
            importlib.import_module(KERNELS[name].package)
    except Exception as error:  # compiled packages fail in many ways
        missing = f"cannot be loaded ({type(error).__name__}: {error})"
    if missing:
        others = (other for other in DISPATCHED if other != name)
        legal = legal_here([*others], layout.device, layout.precision, True)
        raise ConfigError(f"system.attention: {name} {missing}; legal here: {', '.join(legal)}")
