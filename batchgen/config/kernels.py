"""Attention kernels by name: which are exact, what each needs, and which one attends at a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from batchgen.config.schema import Kernel as Name
from batchgen.config.schema import SystemConfig


@dataclass(frozen=True, slots=True)
class Kernel:
    """What is known of a kernel without running it."""

    exact: bool = True  # computes the same function, to rounding
    package: str = ""  # that has to be installed beside torch
    cuda: bool = False
    half: bool = False  # takes bfloat16 and float16 alone

    def missing(self, device: str, dtype: str, installed: bool) -> str:
        """Why it cannot run on such a device; empty if it can. `installed`: whether packages of
        this interpreter are those that count."""
        if self.cuda and device == "cpu":
            return "needs a CUDA device"
        if self.half and dtype == "float32":
            return "takes bfloat16 or float16 alone"
        if self.package and installed and find_spec(self.package) is None:
            return f"is not installed (python package {self.package})"
        return ""


KERNELS: dict[Name, Kernel] = {
    "sdpa": Kernel(),
    "cudnn": Kernel(cuda=True, half=True),
    "flash_attn": Kernel(package="flash_attn", cuda=True, half=True),
    "flash_attn_3": Kernel(package="flash_attn_interface", cuda=True, half=True),
    "sage": Kernel(exact=False, package="sageattention", cuda=True, half=True),
    "sparge": Kernel(exact=False, package="spas_sage_attn", cuda=True, half=True),
    "flex": Kernel(),
    "radial": Kernel(exact=False),
}
# What families serve whose attentions all go through diffusers' dispatch. Where those over all
# tokens have a mask, in some packs or always, only those that take one.
MASKED = ("auto", "sdpa", "cudnn")
DISPATCHED = ("auto", *(name for name in KERNELS if name != "radial"))


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """The kernel of each solver step: `base` in the first and last ones, `between` in the others.
    Where both are one, every step has it."""

    base: Name
    between: Name
    first: int = 0
    last: int = 0

    def at(self, step: int, steps: int) -> Name:
        """`step` of so many, from 0."""
        ends = step < self.first or step >= steps - self.last
        return self.base if ends else self.between

    @property
    def names(self) -> tuple[Name, ...]:
        return (self.base,) if self.base == self.between else (self.base, self.between)

    def __str__(self) -> str:
        return "/".join(self.names)


def kernel_plan(system: SystemConfig) -> KernelPlan:
    """What a job asks for; `auto` is torch's own choice, which is exact."""
    base: Name = "sdpa" if system.attention == "auto" else system.attention
    schedule = system.attention_schedule
    if base == "radial":  # sparse from some step on
        return KernelPlan("sdpa", "radial", first=system.radial.dense_steps)
    if schedule.between is not None:
        return KernelPlan(base, schedule.between, schedule.first, schedule.last)
    return KernelPlan(base, base)


def in_key(system: SystemConfig) -> str:
    """What of it changes pixels, for row keys: `exact` if nothing does."""
    plan = kernel_plan(system)
    lossy = ["exact" if KERNELS[name].exact else name for name in (plan.base, plan.between)]
    if lossy == ["exact", "exact"]:
        return "exact"
    told = lossy[0] if plan.base == plan.between else f"{'..'.join(lossy)} {plan.first} {plan.last}"
    if "radial" in plan.names:
        told += f" dense_layers={system.radial.dense_layers} decay={system.radial.decay:g}"
    return told


def legal_here(names: Sequence[str], device: str, dtype: str, installed: bool) -> tuple[str, ...]:
    """Those that can run on such a device."""
    return tuple(
        name for name in names if name == "auto" or not _of(name).missing(device, dtype, installed)
    )


def _of(name: str) -> Kernel:
    return next(kernel for key, kernel in KERNELS.items() if key == name)
