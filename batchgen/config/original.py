"""Transformers in files of their own, as their makers publish them: `model.files` names them.

All else of the model comes from `model.weights`. What a name in such a file means, diffusers says
(`engine/loading/original.py`); here is what can be told without torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from batchgen.config.component import (
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
    "legal: a file in bfloat16, float16, float32 or float8 without scales (the transformer is kept "
    "in 8 bits with system.memory.store_dtype=fp8)"
)
