"""What a checkpoint of a model consists of, with the classes that load it."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from batchgen.config.checkpoints.component import variant_of
from batchgen.config.schema import ModelSpec
from batchgen.families.dims import stored_dims
from batchgen.families.family import STAGES, Component, Stage, family_spec


@dataclass(frozen=True, slots=True)
class CheckpointPart:
    """One folder of a checkpoint in diffusers layout."""

    name: str  # folder and component name, e.g. `transformer`
    model_class: Any  # of diffusers or transformers; None: a tokenizer
    dtype: torch.dtype  # precision it runs in
    config: dict[str, Any]  # dimensions that the ModelSpec promises (keys as in config.json)
    extras: dict[str, Any]  # what else random weights need, beside the dimensions
    vocab_size: int  # of a text encoder or a tokenizer; 0: neither
    spec_key: str  # where the ModelSpec keeps them, for messages
    variant: str | None = None  # of its files
    is_processor: bool = False  # `model_class` prepares images for an encoder of these dimensions
    original: bool = False  # from files of its own, in its makers' layout


def parts(
    model: ModelSpec,
    dtype: torch.dtype,
    stages: Collection[Stage] = STAGES,
    own: Mapping[str, torch.dtype] | None = None,
) -> tuple[CheckpointPart, ...]:
    """The parts to load for some stages; the scheduler is made from the model's dimensions. `own`:
    precisions of components that have one of their own."""
    own = own or {}
    return tuple(
        CheckpointPart(
            name=component.name,
            model_class=None if component.kind == "tokenizer" else _class(component.loads),
            dtype=own.get(component.name, torch.float32 if component.float32 else dtype),
            config=stored_dims(getattr(model.dims, component.dims)),
            extras=getattr(model.dims, component.dims).random_extras(),
            vocab_size=getattr(getattr(model.dims, component.dims), "vocab_size", 0),
            spec_key=f"model.{component.dims}",
            is_processor=component.kind == "processor",
            variant=_variant(model, component),
            original=component.name in model.files,
        )
        for component in family_spec(model.family).COMPONENTS
        if component.kind != "scheduler" and any(map(component.works_in, stages))
    )


def _variant(model: ModelSpec, component: Component) -> str | None:
    folder = model.weights_folder
    if folder is None or component.kind != "model" or component.name in model.files:
        return None
    return variant_of(folder / component.name, component, model.variant)


def _class(path: str) -> Any:
    library, _, name = path.rpartition(".")
    return getattr(importlib.import_module(library), name)
