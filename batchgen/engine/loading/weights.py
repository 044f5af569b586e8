"""Weights of a model: checked at the edge, loaded strictly, converted once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from batchgen.config.checkpoints.checkpoint import check_checkpoint
from batchgen.config.checkpoints.component import PICKLED
from batchgen.config.schema import ModelSpec
from batchgen.engine.contract import unheard
from batchgen.engine.loading.checkpoint import (
    check_part,
    check_tokenizer,
    load_processor,
    load_tokenizer,
)
from batchgen.engine.loading.mapped import mapped_module, outline
from batchgen.engine.loading.parts import parts
from batchgen.engine.loading.random_weights import random_component
from batchgen.errors import WeightsError
from batchgen.families.family import STAGES, Stage

DENOISE: tuple[Stage, ...] = ("denoise",)
_WRAPPERS = ("state_dict", "model", "module", "model_state", "ema")  # around the tensors in a file
_INDEX = ".bin.index.json"


def check_weights(model: ModelSpec) -> Mapping[str, Sequence[Path]]:
    """Raise WeightsError unless the model's weights can be loaded: every file is there, is
    safetensors, holds every tensor of the model in its shape and no other, and agrees with the
    dimensions of the ModelSpec; the tokenizer works. Reads no tensors, only headers. Returns the
    files of each component."""
    folder = model.weights_folder
    wanted = parts(model, torch.float32)
    if folder is None:
        return {}
    files = check_checkpoint(model)
    for part in wanted:
        if part.is_processor:
            load_processor(folder / part.name, part)
        elif part.model_class is None:
            check_tokenizer(folder / part.name, part)
        else:
            check_part(folder / part.name, part, files[part.name])
    return files


def load_components(
    model: ModelSpec,
    dtype: torch.dtype,
    moved: Callable[[], object] = unheard,
    stages: Collection[Stage] = STAGES,
    own: Mapping[str, torch.dtype] | None = None,
    on_disk: Collection[str] = (),
) -> dict[str, Any]:
    """The components of some stages on the host, in evaluation mode, checked first (all of them);
    `random` weights are made.

    `dtype` is the precision of the transformer and the text encoder, `own` that of components which
    have another; `moved` is told of each
    component."""
    files = check_weights(model)
    for logging in (transformers_logging, diffusers_logging):
        logging.disable_progress_bar()  # stderr belongs to the run's own progress
    folder = model.weights_folder
    components = {}
    for part in parts(model, dtype, stages, own):
        if folder is None:
            components[part.name] = random_component(part)
        elif part.is_processor:
            components[part.name] = load_processor(folder / part.name, part)
        elif part.model_class is None:
            components[part.name] = load_tokenizer(folder / part.name)
        else:
            components[part.name] = mapped_module(
                folder / part.name, part, files[part.name], on_disk=part.name in on_disk
            )
        moved()
    return components


def outlined(
    model: ModelSpec, dtype: torch.dtype, own: Mapping[str, torch.dtype] | None = None
) -> dict[str, nn.Module]:
    """The transformers without weights, for who asks of them no more than what they are."""
    return {
        part.name: outline(part.model_class, part.config | part.extras, part.dtype)
        for part in parts(model, dtype, DENOISE, own)
    }


# --------------------------------------------------------------------------------------- conversion
def convert_weights(src: Path, dst: Path) -> list[Path]:
    """Rewrite pickled weights as safetensors; returns the files written.

    `src` is one file (`dst` is then a file) or a checkpoint folder (`dst` is then a new folder;
    files that are not weights are copied). Pickles are read with `weights_only`, so nothing in
    them can run. Raises WeightsError for a source that is missing or holds anything but tensors,
    and for a target that exists."""
    if not src.exists():
        raise WeightsError(f"{src}: there is no such file or folder")
    if os.path.lexists(dst):
        raise WeightsError(f"{dst}: exists already; give a new name")
    if src.is_dir() and not any(path.suffix in PICKLED for path in src.rglob("*")):
        raise WeightsError(f"{src}: holds no {', '.join(PICKLED)} file to convert")
    if src.is_file() and (src.suffix not in PICKLED or dst.suffix != ".safetensors"):
        kinds = ", ".join(PICKLED)
        raise WeightsError(f"{src} -> {dst}: converts a {kinds} file to a .safetensors file")
    draft = dst.with_name(f".{dst.name}.{os.getpid()}")
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        if src.is_file():
            written = [_convert_file(src, draft)]
        else:
            files = [path for path in sorted(src.rglob("*")) if path.is_file()]
            written = [_convert_entry(src, path, draft) for path in files]
        os.replace(draft, dst)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        with suppress(OSError):
            draft.unlink()
        raise
    return [dst / path.relative_to(draft) for path in written]


def _convert_entry(src: Path, path: Path, dst: Path) -> Path:
    target = dst / path.relative_to(src)
    if path.suffix in PICKLED:
        return _convert_file(path, target.with_name(_safetensors_name(path.name)))
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(_INDEX):
        index = json.loads(path.read_text())
        names = {key: _safetensors_name(file) for key, file in index["weight_map"].items()}
        stem = _safetensors_name(path.name.removesuffix(".index.json"))
        target = target.with_name(f"{stem}.index.json")
        target.write_text(json.dumps(index | {"weight_map": names}, indent=2))
    else:
        shutil.copyfile(path, target)
    return target


def _safetensors_name(name: str) -> str:
    """`pytorch_model-1-of-2.bin` -> `model-1-of-2.safetensors`, the name that loaders look for."""
    stem = Path(name).stem
    if stem.startswith("pytorch_model"):
        stem = stem.removeprefix("pytorch_")
    return f"{stem}.safetensors"


def _convert_file(src: Path, dst: Path) -> Path:
    tensors = _read_pickled(src)
    dst.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, dst, metadata={"format": "pt"})
    except SafetensorError as error:
        raise WeightsError(f"{dst.parent}: {dst.name} cannot be written: {error}") from error
    return dst


def _read_pickled(src: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, each with memory of its own."""
    try:
        found = torch.load(src, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "cut short"
        raise WeightsError(f"{src}: cannot be read as plain tensors: {reason}") from error
    while isinstance(found, dict) and (inner := _wrapped(found)) is not None:
        found = inner
    if not isinstance(found, dict) or not found:
        raise WeightsError(f"{src}: holds {type(found).__name__}, not a state dict")
    strange = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"{src}: {', '.join(strange[:3])}: not a tensor")
    return {str(key): value.detach().clone().contiguous() for key, value in found.items()}


def _wrapped(found: dict[Any, Any]) -> dict[Any, Any] | None:
    """The state dict inside a training checkpoint, under one of the customary keys."""
    for key in _WRAPPERS:
        if isinstance(found.get(key), dict):
            return found[key]
    return None
