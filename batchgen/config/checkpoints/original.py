"""Transformers in files of their own, as their makers publish them: `model.files` names them.

All else of the model comes from `model.weights`. What a name in such a file means, diffusers says
(`engine/loading/original.py`); here is what can be told without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from batchgen.config.checkpoints.component import (
    present,
    refuse_dead_link,
    refuse_pickled,
    shards,
)
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError, WeightsError, closest
from batchgen.families.family import family_spec

_INDEX = ".index.json"  # ends the name of what says which of several files has a tensor
# in front of the transformer's names where a program has saved it with what it had around
_PREFIXES = ("model.diffusion_model.", "model.model.", "diffusion_model.", "model.")


def check_files(model: ModelSpec) -> None:
    """Raise ConfigError for an entry of `model.files` that names no such component."""
    legal = _legal(model)
    for name, file in model.files.items():
        if name not in legal:
            served = ", ".join(legal) or "none, since diffusers reads no such file of this family"
            raise ConfigError(
                f"model.files.{name}: {model.name} does not take it from a file of its own"
                f"{closest(name, legal)}; legal: {served}"
            )
        if model.weights_folder is None:
            raise ConfigError(
                f"model.files.{name}: {file}: all else of the model comes from a folder; "
                f"legal with it: model.weights=<folder in diffusers layout>, not {model.weights}"
            )


def _legal(model: ModelSpec) -> list[str]:
    return [part.name for part in family_spec(model.family).COMPONENTS if part.original]


def original_files(key: str, file: Path) -> list[Path]:
    """The safetensors files behind an entry of `model.files`: itself, or those that it is the index
    of. `key`: the entry, for messages. Raises WeightsError."""
    refuse_dead_link(file)
    refuse_pickled([file])
    if file.is_dir() or not file.exists():
        what = "is a folder" if file.is_dir() else "is missing"
        raise WeightsError(f"{file}: {what} ({key}); legal: a .safetensors file, or its index")
    if file.name.endswith(_INDEX):
        return shards(present(file))
    if file.suffix != ".safetensors":
        raise WeightsError(f"{file}: is not a .safetensors file, nor the index of some ({key})")
    return [present(file)]


def own_names(names: Iterable[str]) -> dict[str, str]:
    """The transformer's names, without what stands in front of them -> as they are in the file. A
    file that has more to it, text encoders or an autoencoder, marks the transformer so."""
    listed = list(names)
    for prefix in _PREFIXES:
        if own := {name.removeprefix(prefix): name for name in listed if name.startswith(prefix)}:
            return own
    return {name: name for name in listed}


# ------------------------------------------------------------------------------------ quantisation
# Codes of safetensors for what a weight may be stored in; of buffers, whole numbers too.
_STORED = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "BOOL")
# Parts of names of what stored weights are to be multiplied with, or of how they are packed.
_SCALES = {
    "scale_weight", "weight_scale", "weight_scale_2", "scale_input", "input_scale", "scaled_fp8",
    "comfy_quant", "quant_state", "absmax", "quant_map", "SCB", "qweight", "qzeros", "wscales",
}  # fmt: skip


# Of these, in a file of a transformer: one number that a weight in 8 bits is multiplied with; what
# says no more than that; and what products in 8 bits would need, of which none is made here.
_SCALES_OF_WEIGHTS = ("scale_weight", "weight_scale")
_MARKS = ("scaled_fp8", "comfy_quant")
_SCALES_OF_INPUTS = ("scale_input", "input_scale")
_8_BITS = ("F8_E4M3", "F8_E5M2")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def scaled_weight(name: str) -> str | None:
    """The weight that a tensor of this name is the scale of; None: it is no scale of a weight."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.weight" if leaf in _SCALES_OF_WEIGHTS else None


def is_beside(name: str) -> bool:
    """Whether a tensor of this name says how others are stored, and is none of the model's."""
    leaf = name.rpartition(".")[2]
    return leaf in (*_SCALES_OF_WEIGHTS, *_MARKS, *_SCALES_OF_INPUTS)


def check_original(file: Path, kinds: Mapping[str, str]) -> None:
    """Raise WeightsError unless each tensor of a transformer's file holds its values as they are
    meant, or is in 8 bits with one scale for all of it, as ComfyUI writes them
    (https://github.com/comfyanonymous/ComfyUI/blob/master/QUANTIZATION.md). `kinds`: name -> type
    in the file's header."""
    own = own_names(kinds)
    beside = {name: stored for name, stored in own.items() if is_beside(name)}
    refuse_quantised(file, {name: kinds[own[name]] for name in own if name not in beside})
    if beside:
        _check_beside(file, beside, {name: kinds[stored] for name, stored in own.items()})


def _check_beside(file: Path, beside: Mapping[str, str], kinds: Mapping[str, str]) -> None:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        for name, stored in beside.items():
            weight = scaled_weight(name)
            if weight is not None and kinds.get(weight) not in _8_BITS:
                raise _quantised(file, name, f"{weight} is {kinds.get(weight, 'not there')}")
            shape = opened.get_slice(stored).get_shape()
            if weight is not None and (shape not in ([], [1]) or kinds[name] == "U8"):
                raise _quantised(file, name, f"it is {kinds[name]} of shape {shape}")
            if name.endswith("comfy_quant") and (odd := _odd(opened.get_tensor(stored))):
                raise _quantised(file, name, odd)


def _odd(told: Any) -> str:
    """What is unknown of a mark, the bytes of a JSON text; "": nothing."""
    try:
        content = json.loads(bytes(told))
        said = {**content}
    except (ValueError, TypeError):
        return "it is no JSON"
    said.pop("full_precision_matrix_mult", None)  # how products are made, not what weights are
    return "" if said.pop("format", None) in _FORMATS and not said else f"it says {content}"


def _quantised(file: Path, name: str, why: str) -> WeightsError:
    return WeightsError(f"{file}: has {name}: {why}, which is not served; {_LEGAL}")


def refuse_quantised(file: Path, kinds: Mapping[str, str]) -> None:
    """Raise WeightsError unless each tensor holds its values as they are meant: floating point, in
    8 bits too, without scales beside it. `kinds`: name -> type in the file's header."""
    for name, kind in kinds.items():
        if scale := _SCALES.intersection(name.split(".")):
            raise WeightsError(
                f"{file}: has {name}: its weights are quantised, with {scale.pop()} beside them, "
                f"which is not served; {_LEGAL}"
            )
        if kind not in _STORED:
            raise WeightsError(f"{file}: {name} is stored as {kind}: not served; {_LEGAL}")


_LEGAL = (
    "legal: a file in bfloat16, float16, float32 or float8, in model.files also float8 with one "
    "scale for each weight (the transformer is kept in 8 bits with system.memory.store_dtype=fp8)"
)
