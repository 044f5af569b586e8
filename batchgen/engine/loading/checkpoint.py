"""What is in a checkpoint's files against the model: errors name the file and, if it is one, the
tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import accelerate  # type: ignore[import-untyped]
import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.initialization import no_init_weights

from batchgen.config.checkpoints.component import read_config
from batchgen.engine.loading.original import as_diffusers, looks_like
from batchgen.engine.loading.parts import CheckpointPart
from batchgen.errors import WeightsError, closest

_SHOWN = 3  # names of tensors printed in one message
_REASON = 300  # characters of a library's error

Shapes = dict[str, tuple[int, ...]]
T = TypeVar("T")


def check_part(home: Path, part: CheckpointPart, files: Iterable[Path]) -> None:
    """Raise WeightsError unless the tensors in `files` are those of the model."""
    model = _described(home / "config.json", part_config(home, part), part)
    tensors = [file for file in files if file.suffix == ".safetensors"]
    if part.original:
        _check_original(home, part, tensors, model)
    else:
        _check_tensors(home, as_loaded(tensor_shapes(tensors), model), model)


def part_config(home: Path, part: CheckpointPart) -> Mapping[str, Any]:
    """The component's config.json; of one from a file of its own it may be missing, then the
    ModelSpec describes it."""
    if part.original and not (home / "config.json").is_file():
        return part.config | part.extras
    return read_config(home)


def _check_original(home: Path, part: CheckpointPart, files: list[Path], model: nn.Module) -> None:
    """By diffusers' names: a message says what the file is, if it is of another model."""
    stored = {
        name: torch.empty(shape, device="meta") for name, (_, shape) in tensor_shapes(files).items()
    }
    found = as_diffusers(stored, model.state_dict().keys(), part, files[0])
    try:
        _check_tensors(
            home, {name: (files[0], tuple(one.shape)) for name, one in found.items()}, model
        )
    except WeightsError as error:
        raise WeightsError(f"{error}{looks_like(stored)}") from error


def check_tokenizer(home: Path, part: CheckpointPart) -> None:
    """Raise WeightsError unless the tokenizer works and the text encoder knows its tokens."""
    tokenizer, known = load_tokenizer(home), part.vocab_size
    highest = max(tokenizer.get_vocab().values())
    if highest >= known:
        raise WeightsError(
            f"{home}: has a token of number {highest}, but {part.spec_key}.vocab_size says {known}"
        )


def load_tokenizer(home: Path) -> Any:
    """The tokenizer of a folder; raises WeightsError if the library cannot make one that pads."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(home, local_files_only=True)
        ids = tokenizer("a red circle").input_ids
    except Exception as error:  # of many classes; a file at fault is the user's to mend
        reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
        raise WeightsError(f"{home}: cannot be loaded as a tokenizer: {reason}") from error
    if tokenizer.pad_token_id is None:
        raise WeightsError(
            f"{home}: the tokenizer has no pad_token; tokenizer_config.json names it"
        )
    if not ids:
        raise WeightsError(f"{home}: the tokenizer makes no tokens of a text")
    return tokenizer


def load_processor(home: Path, part: CheckpointPart) -> Any:
    """What prepares images for their encoder; WeightsError if the library cannot make it."""
    try:
        return part.model_class.from_pretrained(home, local_files_only=True)
    except Exception as error:  # as above
        reason = " ".join(str(error).split())[:_REASON] or type(error).__name__
        raise WeightsError(f"{home}: cannot be loaded: {reason}") from error


def _described(path: Path, config: Mapping[str, Any], part: CheckpointPart) -> nn.Module:
    """The model of a config.json, without memory. Costs and shapes of the plan come from the
    ModelSpec, so the two must agree."""
    try:
        model = meta_model(part.model_class, config)
    except (TypeError, ValueError) as error:
        kind = part.model_class.__name__
        raise WeightsError(f"{path}: does not describe a {kind}: {error}") from error
    _check_config(path, model.config, part.config, part.spec_key)
    return model


def _check_config(path: Path, config: Any, wanted: Mapping[str, Any], key: str) -> None:
    for name, promised in wanted.items():
        found = getattr(config, name)
        if isinstance(promised, Mapping):
            _check_config(path, found, promised, f"{key}.{name}")
        elif (list(found) if isinstance(found, tuple) else found) != promised:
            raise WeightsError(f"{path}: {name} is {found!r}, but {key}.{name} says {promised!r}")


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """File and shape of every tensor, from the files' headers alone."""
    shapes = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a dict)
                    shapes[name] = (file, tuple(opened.get_slice(name).get_shape()))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file}: cannot be read as safetensors: {error}") from error
    return shapes


def as_loaded(found: dict[str, T], model: nn.Module) -> dict[str, T]:
    """By the names that transformers gives tensors when it loads them: models whose modules have
    moved since are published, and saved, with names of before."""
    if not isinstance(model, PreTrainedModel) or found.keys() <= model.state_dict().keys():
        return found
    renamings = [
        one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)
    ]
    wanted = model.state_dict()
    return {
        rename_source_key(name, renamings, [], model.base_model_prefix, wanted)[0]: one
        for name, one in found.items()
    }


def meta_model(model_class: type, config: Mapping[str, Any]) -> nn.Module:
    """The model without memory for its parameters (buffers are real); tied weights are one."""
    # drawing initial weights that nobody keeps takes longer than all the rest
    with no_init_weights(), accelerate.init_empty_weights():
        module = build_module(model_class, config)
    if isinstance(module, PreTrainedModel):
        module.tie_weights()
    return module


def build_module(model_class: Any, config: Mapping[str, Any]) -> nn.Module:
    """A diffusers model, or a transformers one, from the content of its config.json."""
    if issubclass(model_class, ModelMixin):
        return model_class.from_config(dict(config))
    return model_class(model_class.config_class.from_dict(dict(config)))


def _check_tensors(
    home: Path, found: Mapping[str, tuple[Path, tuple[int, ...]]], model: nn.Module
) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = _missing(wanted, found, model)
    if missing:
        file = next(iter(found.values()))[0] if len({f for f, _ in found.values()}) == 1 else home
        raise WeightsError(f"{file}: missing tensor{_listed(missing, found)}")
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    extra = [n for n in found if n not in wanted and not any(re.search(p, n) for p in ignored)]
    if extra:
        raise WeightsError(f"{found[extra[0]][0]}: unexpected tensor{_listed(extra, wanted)}")
    for name, (file, shape) in found.items():
        if name in wanted and shape != wanted[name]:
            raise WeightsError(
                f"{file}: tensor {name} has shape {list(shape)}, "
                f"the model needs {list(wanted[name])}"
            )


def _missing(wanted: Shapes, found: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Wanted names that neither they nor a tied twin (the same parameter) supply."""
    twins: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twins.setdefault(id(parameter), []).append(name)
    supplied = {
        name for names in twins.values() if any(n in found for n in names) for name in names
    }
    return [name for name in wanted if name not in found and name not in supplied]


def _listed(names: list[str], others: Iterable[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'s' * (len(names) > 1)} {', '.join(names[:_SHOWN])}{more}{closest(names[0], others)}"
