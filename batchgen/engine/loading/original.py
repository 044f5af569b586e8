"""Transformers from files in their makers' layout, read by diffusers' own converters.

A converter renames tensors, cuts some in parts and swaps two halves of one. Here it works on the
tensors as they lie in the file: what it makes of them are views, so that they are read when they
are used, as those of a folder in diffusers layout are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_model, single_file_utils
from torch import Tensor
from torch.overrides import TorchFunctionMode

from batchgen.config.checkpoints.original import is_beside, own_names, scaled_weight
from batchgen.engine.loading.parts import CheckpointPart
from batchgen.errors import WeightsError

_REASON = 300  # characters of a library's error
_UNKNOWN = "v1"  # what diffusers says of every layout that it does not know
# What the converter of diffusers does not know: published -> in the model
_NOT_RENAMED = {"img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed"}


def as_diffusers(
    tensors: Mapping[str, Tensor], wanted: Collection[str], part: CheckpointPart, file: Path
) -> dict[str, Tensor]:
    """The transformer's tensors in a file, by the names that diffusers' model gives them. `wanted`:
    these names; a file that has them already is taken as it is.

    Tensors on the meta device give the shapes. WeightsError for what the converter cannot read."""
    own = _own(tensors)
    if own.keys() <= set(wanted) or own.keys() >= set(wanted):
        return own
    left = dict(own)  # the converter takes out what it has read
    try:
        with _Views(part.config):
            found = dict(_converter(part.model_class)(checkpoint=left, config=dict(part.config)))
    except Exception as error:  # of many classes: it takes names and tensors apart
        what = f"has no tensor {error}" if isinstance(error, KeyError) else _reason(error)
        raise WeightsError(
            f"{file}: {what}, so it is no {part.model_class.__name__}{looks_like(tensors)}"
        ) from error
    unread = [name for name in left if name not in found]
    for name in unread:  # so that whoever compares names finds it
        found[_NOT_RENAMED.get(name, name)] = left[name]
    return {_NOT_RENAMED.get(name, name): tensor for name, tensor in found.items()}


def scales_of(
    tensors: Mapping[str, Tensor], wanted: Collection[str], part: CheckpointPart, file: Path
) -> dict[str, Tensor]:
    """What weights in 8 bits are to be multiplied with, by the names of diffusers' model, float32:
    of one number, or where the converter joins weights of a shape that spreads over the weight's.
    For arguments and errors see `as_diffusers`."""
    own, names = _own(tensors), own_names(tensors)
    scales = {
        weight: tensors[stored].float().reshape(())
        for name, stored in names.items()
        if (weight := scaled_weight(name)) in own
    }
    if not scales:
        return {}
    one = torch.ones(())
    # as large as the weights, without memory: cut and renamed as those are
    spread = {name: scales.get(name, one).expand(tensor.shape) for name, tensor in own.items()}
    found = as_diffusers(spread, wanted, part, file)
    small = {name: _narrow(scale) for name, scale in found.items()}
    return {name: scale for name, scale in small.items() if not bool((scale == 1).all())}


def _narrow(spread: Tensor) -> Tensor:
    """One of each that lies in the same place."""
    return spread[tuple(slice(None) if step else slice(1) for step in spread.stride())]


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The transformer's, by its own names."""
    names = own_names(tensors)
    return {name: tensors[stored] for name, stored in names.items() if not is_beside(name)}


def looks_like(tensors: Mapping[str, Tensor]) -> str:
    """What diffusers takes a file for, as the end of a message."""
    try:
        own = {name: tensors[stored] for name, stored in own_names(tensors).items()}
        kind = single_file_utils.infer_diffusers_model_type({**tensors, **own})
    except Exception:  # it looks at tensors that it expects
        kind = _UNKNOWN
    known = kind != _UNKNOWN
    return f"; diffusers takes the file for {kind}" if known else "; diffusers knows no such file"


def _converter(model_class: Any) -> Callable[..., Mapping[str, Tensor]]:
    """diffusers' own mapping of published names for a class of model."""
    name = single_file_model._get_single_file_loadable_mapping_class(model_class)
    converter: Callable[..., Mapping[str, Tensor]] = single_file_model.SINGLE_FILE_LOADABLE_CLASSES[
        name
    ]["checkpoint_mapping_fn"]
    return converter


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:_REASON]
    return f"cannot be read ({type(error).__name__}: {text})"


class _Views(TorchFunctionMode):
    """While converters run: a part of a tensor stays a view of it, and is as wide as the model.

    They copy each part by joining it to nothing, and have the width of the published models written
    in, 3072, where the first layer of a block of one stream is cut into query, key, value and the
    rest."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._width = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.cat and len(args[0]) == 1:
            return args[0][0]
        if func is torch.split and len(args[1]) == 4:
            qkv = [self._width] * 3
            return func(args[0], [*qkv, args[0].shape[0] - sum(qkv)], **given)
        return func(*args, **given)
