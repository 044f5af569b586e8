"""Weights where they lie in safetensors files, mapped into memory.

Nothing is read before something computes with it, a tensor in the precision that it is used in is
never copied, and the ranks of a node share the pages of a file. Tensors in another precision are
converted into memory of their own, or, for components that live on disk, each time they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from batchgen.engine.loading.checkpoint import as_loaded, meta_model, part_config
from batchgen.engine.loading.original import as_diffusers, scales_of
from batchgen.engine.loading.parts import CheckpointPart
from batchgen.engine.loading.random_weights import places_of, replace_parameter, sensitive_names
from batchgen.engine.memory.sources import left_in_file


def mapped_module(
    home: Path, part: CheckpointPart, files: Sequence[Path], *, on_disk: bool
) -> nn.Module:
    """The model of a folder that `check_part` has found whole, as its library would load it.
    `on_disk`: all stays in the files, and what stands for it in the model cannot be computed with
    (`memory.sources`)."""
    module = outline(part.model_class, part_config(home, part), part.dtype)
    found, scales = _tensors(files), dict[str, Tensor]()
    if part.original:
        names = module.state_dict().keys()
        scales = scales_of(found, names, part, files[0])
        found = as_diffusers(found, names, part, files[0])
    else:
        found = as_loaded(found, module)
    assert not (scales and on_disk), "refused when the run was made: check_disk"
    float32, places = sensitive_names(module, part.dtype), places_of(module)
    for empty, name in _wanted(module, found):
        dtype = torch.float32 if float32 & set(name.split(".")) else part.dtype
        source = found[name]
        if name in scales:
            source = source.float() * scales[name]
        dtype = dtype if source.is_floating_point() else source.dtype
        if isinstance(empty, nn.Parameter):
            new = left_in_file(source, dtype) if on_disk else nn.Parameter(source.to(dtype), False)
            replace_parameter(places[empty], new)
        else:  # a buffer: small
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = source.to(dtype, copy=True)
    return module.eval()


def outline(model_class: Any, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """The model without memory for its weights; what it computes for itself is there, in the
    precision that its library gives it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return meta_model(model_class, config)
    finally:
        torch.set_default_dtype(before)


def _tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of some files, read when they are used."""
    found: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def _wanted(module: nn.Module, found: Mapping[str, Tensor]) -> list[tuple[Tensor, str]]:
    """Each tensor that a checkpoint has to supply, with a name of it; of a tied one that which is
    found."""
    names: dict[Tensor, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(tensor, []).append(name)
    return [
        (tensor, next((name for name in each if name in found), each[0]))
        for tensor, each in names.items()
    ]
