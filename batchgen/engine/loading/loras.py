"""LoRA files read by diffusers' own converters, and held against the transformers they are for.

Everything that a file says is drawn with, or it is refused by name: factors for a text encoder,
factors of modules that the model does not have or of other sizes, and what diffusers leaves out.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.checkpoint import meta_model
from batchgen.engine.loading.parts import parts
from batchgen.errors import closest
from batchgen.families.family import family_spec
from batchgen.loras import EXPERTS, NoLora

_SHOWN = 3  # names in one message
_REASON = 300  # characters of a library's error
_FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias")
_ENCODERS = ("text_encoder", "lora_te", "text_model", "conditioner")


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What a file holds for one transformer, in the names of diffusers without its own in front."""

    tensors: Mapping[str, Tensor]
    alphas: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None


class LoraJudge:
    """Says of files whether a model can be drawn with them; raises NoLora if not."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model
        self._transformers: dict[str, nn.Module] = {}  # without memory, made when they are needed

    def __call__(self, path: Path, expert: str) -> None:
        """`expert` as in `Lora`."""
        experts = experts_of(self._model)
        if not self._transformers:
            self._transformers = _without_memory(self._model, experts)
        for name, factors in read_lora(self._model.family, path, expert, experts).items():
            check_factors(factors, self._transformers[name])


def experts_of(model: ModelSpec) -> tuple[str, ...]:
    """The transformers of a model, in the order in which a row meets them."""
    parts = family_spec(model.family).COMPONENTS
    return tuple(part.name for part in parts if part.kind == "model" and part.stage == "denoise")


def read_lora(family: str, path: Path, expert: str, experts: Iterable[str]) -> dict[str, Factors]:
    """What a file holds for each transformer of a family; `expert` is the one that a row says it is
    for. NoLora, with the reason, for what cannot be drawn with."""
    _refuse_unread(path)
    whole = _converted(family_spec(family).PIPELINE, path)
    named = {name: _of(whole, name) for name in EXPERTS}
    found = {name: factors for name, factors in named.items() if factors.tensors}
    others = [key for key in whole.tensors if key.partition(".")[0] not in EXPERTS]
    if others:
        raise NoLora(f"holds {_listed(others)}: {_whose(others)}")
    return _placed(found, expert, tuple(experts))


def check_factors(factors: Factors, transformer: nn.Module) -> None:
    """NoLora unless every tensor is a factor of a module of the transformer, in its size."""
    modules = {name: m for name, m in transformer.named_modules() if ".base_layer" not in name}
    odd = [key for key in factors.tensors if not key.endswith(_FACTORS)]
    if odd:
        raise NoLora(f"holds {_listed(odd)}: no factor of a LoRA")
    strange = [key for key in factors.tensors if _module(key) not in modules]
    if strange:
        near = closest(_module(strange[0]), modules)
        raise NoLora(f"holds {_listed(strange)}: the model has no such module{near}")
    for key, tensor in factors.tensors.items():
        _check_factor(key, tensor, modules[_module(key)])
    alone = [key for key in factors.tensors if not _twins(key) <= factors.tensors.keys()]
    if alone:
        raise NoLora(f"holds {_listed(alone)} without the other factor")
    for key, down in factors.tensors.items():
        if key.endswith(_FACTORS[0]):
            _check_rank(key, down, factors.tensors[_module(key) + _FACTORS[1]])


def _check_factor(key: str, tensor: Tensor, module: nn.Module) -> None:
    """NoLora unless the tensor can stand beside the module's weight."""
    weight: Any = getattr(module, "weight", None)
    if weight is None or weight.ndim < 2:
        raise NoLora(f"holds {key}: {_module(key)} is not a Linear or a convolution")
    if not tensor.is_floating_point():
        raise NoLora(f"holds {key} in {str(tensor.dtype)[6:]}; legal: floating point")
    axis = 1 if key.endswith(_FACTORS[0]) else 0
    dims = 1 if key.endswith(_FACTORS[2]) else weight.ndim
    if tensor.ndim != dims or tensor.shape[axis] != weight.shape[axis]:
        raise NoLora(
            f"holds {key} of shape {list(tensor.shape)}, but {_module(key)}.weight has "
            f"{list(weight.shape)}"
        )


def _check_rank(key: str, down: Tensor, up: Tensor) -> None:
    """NoLora unless both factors of a module have one rank."""
    if down.shape[0] != up.shape[1] or not down.shape[0]:
        raise NoLora(
            f"holds {key} of shape {list(down.shape)}, but the other factor has {list(up.shape)}; "
            "legal: one rank, 1 or more"
        )


# ------------------------------------------------------------------------------------------- files
def _refuse_unread(path: Path) -> None:
    """What diffusers' converters would leave out without a word."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [*file.keys()]
            norms = [n for n in names if n.endswith((".diff", ".diff_b")) and "norm" in n]
            lost = [name for name in norms if torch.any(file.get_tensor(name))]
    except (SafetensorError, OSError) as error:
        raise NoLora(f"cannot be read as safetensors: {error}") from error
    dora = [name for name in names if "dora_scale" in name or "lora_magnitude" in name]
    lokr = [name for name in names if ".lokr_" in name or ".hada_" in name]
    for kind, found in (("DoRA", dora), ("LyCORIS", lokr), ("changes of norms", lost)):
        if found:
            raise NoLora(f"holds {_listed(found)}: {kind}; legal: LoRA alone")


def _converted(pipeline: str, path: Path) -> Factors:
    """All of a file, in diffusers' names. Where the pipeline reads none but its transformer takes
    some, those are the only names: the reader of another one leaves them as they are."""
    known = getattr(diffusers, pipeline)
    convert = getattr(known, "lora_state_dict", diffusers.CogVideoXPipeline.lora_state_dict)
    asked = {"return_lora_metadata": True, "use_safetensors": True, "local_files_only": True}
    scales = "return_alphas" in inspect.signature(convert).parameters
    try:
        found = convert(str(path), **asked, **({"return_alphas": True} if scales else {}))
    except Exception as error:  # of many classes: converters take names apart
        reason = " ".join(str(error).split())[:_REASON]
        raise NoLora(
            f"has names that diffusers cannot read: {type(error).__name__}: {reason}"
        ) from error
    tensors, alphas, metadata = found if scales else (found[0], None, found[1])
    return Factors(tensors, alphas or {}, metadata)


def _of(whole: Factors, expert: str) -> Factors:
    """What is in it for one transformer."""
    prefix = f"{expert}."

    def own(named: Mapping[str, Any]) -> dict[str, Any]:
        return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}

    metadata = own(whole.metadata) if whole.metadata else None
    return Factors(own(whole.tensors), own(whole.alphas), metadata or None)


def _placed(found: dict[str, Factors], expert: str, experts: tuple[str, ...]) -> dict[str, Factors]:
    """By the transformer that they are for: of two a row or the file has to say which."""
    both = ", ".join(f"{name}:PATH" for name in experts)
    if strange := [name for name in found if name not in experts]:
        raise NoLora(f"is for {strange[0]}, which the model has not; it has {', '.join(experts)}")
    if expert and expert not in experts:
        raise NoLora(f"is meant for {expert}, which the model has not; legal: PATH or {both}")
    if len(experts) == 1 or (len(found) > 1 and not expert):
        return found
    if len(found) > 1:
        raise NoLora(f"says itself what is for {' and '.join(found)}; legal: PATH alone")
    if not expert:
        raise NoLora(f"does not say for which of the model's two experts it is; legal: {both}")
    [factors] = found.values()
    return {expert: factors}


def _whose(names: list[str]) -> str:
    if any(name.startswith(_ENCODERS) for name in names):
        return "factors of a text encoder, which are not drawn with; legal: of a transformer alone"
    return "nothing of the model; legal: factors of its transformer"


def _module(key: str) -> str:
    """The module that a tensor is a factor of."""
    for ending in _FACTORS:
        if key.endswith(ending):
            return key.removesuffix(ending)
    return key


def _twins(key: str) -> set[str]:
    """What a module needs of a file."""
    return {_module(key) + ending for ending in _FACTORS[:2]}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _without_memory(model: ModelSpec, experts: Collection[str]) -> dict[str, nn.Module]:
    """The transformers of a model, for the names and shapes of their modules."""
    return {
        part.name: meta_model(part.model_class, part.config | part.extras)
        for part in parts(model, torch.float32)
        if part.name in experts
    }
