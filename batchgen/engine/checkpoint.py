"""Reading checkpoint folders strictly: every error names the file and, if it is one, the tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from batchgen.engine.parts import Part
from batchgen.errors import WeightsError, closest

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
_SHOWN = 3  # names of tensors printed in one message
_STEMS = ("diffusion_pytorch_model", "model")
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")

Shapes = dict[str, tuple[int, ...]]


def check_folder(folder: Path) -> None:
    """Raise WeightsError unless `folder` can be a checkpoint in diffusers layout."""
    if folder.is_file():
        refuse_pickled([folder])
        raise WeightsError(f"{folder}: is a file; give the folder in diffusers layout")
    if not folder.is_dir():
        raise WeightsError(f"{folder}: there is no such folder (model.weights)")


def refuse_pickled(files: Iterable[Path]) -> None:
    """Raise WeightsError for the first pickled file among `files`: loading it could run code."""
    for file in files:
        if file.suffix in PICKLED:
            target = file.with_suffix(".safetensors")
            raise WeightsError(
                f"{file}: pickled weights are not loaded (they can run code); convert them once: "
                f"batchgen weights convert {file} {target}"
            )


def check_part(folder: Path, part: Part) -> None:
    """Raise WeightsError unless the part's files are there and fit the model."""
    home = folder / part.name
    if not home.is_dir():
        refuse_pickled(sorted(folder.iterdir()))
        raise WeightsError(f"{home}: there is no such folder; the model needs {part.name}")
    if part.model_class is None:
        _check_tokenizer(home)
        return
    config = read_config(home)
    model = _described(home / "config.json", config, part)
    _check_tensors(home, tensor_shapes(weight_files(home)), model)


def _check_tokenizer(home: Path) -> None:
    if not any((home / name).is_file() for name in _TOKENIZER_FILES):
        raise WeightsError(
            f"{home}: has no tokenizer; one of {', '.join(_TOKENIZER_FILES)} is needed"
        )


def read_config(home: Path) -> dict[str, Any]:
    """The part's config.json; raises WeightsError if it is missing or not a JSON object."""
    path = home / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: is not a JSON object")
    return config


def _described(path: Path, config: Mapping[str, Any], part: Part) -> nn.Module:
    """The model of a config.json, without memory. Costs and shapes of the plan come from the
    ModelSpec, so the two must agree."""
    kind = config.get("_class_name", part.model_class.__name__)
    if kind != part.model_class.__name__:
        raise WeightsError(f"{path}: is a {kind}, the model needs {part.model_class.__name__}")
    try:
        model = meta_model(part.model_class, config)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: does not describe a {kind}: {error}") from error
    for key, promised in part.config.items():
        found = getattr(model.config, key)
        if (list(found) if isinstance(found, tuple) else found) != promised:
            raise WeightsError(
                f"{path}: {key} is {found!r}, but {part.spec_key}.{key} says {promised!r}"
            )
    return model


def weight_files(home: Path) -> list[Path]:
    """The part's safetensors files, from its index where there is one.

    Raises WeightsError for missing files, and for pickled ones with the converting command."""
    for stem in _STEMS:
        index = home / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _shards(index)
        single = home / f"{stem}.safetensors"
        if single.is_file():
            return [single]
    refuse_pickled(sorted(home.iterdir()))
    names = " or ".join(f"{stem}.safetensors" for stem in _STEMS)
    raise WeightsError(f"{home}: has no weights; {names} (or an index) is needed")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{index}: has no readable weight_map: {error}") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(f"{index.parent / missing[0]}: is missing (named by {index.name})")
    return [index.parent / name for name in names]


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


def meta_model(model_class: type, config: Mapping[str, Any]) -> nn.Module:
    """The model without memory for its parameters (buffers are real); tied weights are one."""
    with accelerate.init_empty_weights():
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
