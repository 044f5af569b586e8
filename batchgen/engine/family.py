"""What a model family is to the engine, and how one is found: by the name of its file.

A family knows its models: how texts become conditions, what shape latents have, how one pack of
items goes through the transformer, how latents become pixels. The engine knows the rest: solver,
guidance, packing, ticks, windows. A module of `batchgen/engine/families` holds

    parts(spec, dtype) -> tuple[Part, ...]                    what a checkpoint consists of
    build(spec, components, device) -> Family                 loaded components -> the family

so that a new family is one file: `families/<name>.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from batchgen.config.schema import ModelSpec
from batchgen.engine import families
from batchgen.engine.solver import Schedule
from batchgen.errors import ConfigError, closest
from batchgen.records import Bucket, Request


@dataclass(frozen=True, slots=True)
class Part:
    """One folder of a checkpoint in diffusers layout."""

    name: str  # folder and component name, e.g. `transformer`
    model_class: Any  # of diffusers or transformers; None: a tokenizer
    dtype: torch.dtype  # precision it runs in
    config: dict[str, Any]  # dimensions that the ModelSpec promises (keys as in config.json)
    spec_key: str = ""  # where the ModelSpec keeps them, for messages


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A cleaned and tokenised text."""

    inputs: tuple[Tensor, ...]  # what the family's text encoder takes
    count: int  # tokens before truncation, with the end-of-text token
    truncated: bool


Condition = tuple[Tensor, ...]  # what the transformer is told of one text; a family's own business


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One branch (with or without the prompt) of one row in one forward."""

    request: Request
    latents: Tensor  # float32, first dimension 1
    timestep: float
    condition: Condition


class Family(Protocol):
    """One model, loaded. All items of one forward share bucket and `phase`."""

    modules: dict[str, nn.Module]  # movable components: `transformer`, `vae`, text encoders
    edges: tuple[nn.Module, ...]  # whose result depends on the batch (see edges.py)
    max_tokens: int  # of the text encoder

    def texts(self, request: Request) -> tuple[str, ...]:
        """The texts to encode, one per guidance branch, the prompt first."""

    def tokenize(self, text: str) -> Tokens:
        """Clean and tokenise one text as the family's diffusers pipeline does."""

    def encode(self, tokens: Tokens) -> Condition:
        """Run the text encoder(s) over one text."""

    def tokens_per_item(self, bucket: Bucket) -> int:
        """Video (or image) tokens of one item: the cost unit of packing."""

    def initial_latents(self, request: Request) -> Tensor:
        """Noise (1, ...) from the row's seed alone, float32 on the host."""

    def schedule(self, request: Request) -> Schedule:
        """Timesteps and solver coefficients of the row."""

    def phase(self, request: Request, timestep: float) -> int:
        """Items of different phases cannot share a forward (experts of a two-expert model)."""

    def guidance(self, request: Request, timestep: float) -> float:
        """Scale of classifier-free guidance at this timestep; used when there are two branches."""

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """Velocities of the items, each shaped as its latents."""

    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        """Denoised latents of one row -> uint8 (frames, height, width, 3) on the device."""

    def random_item(self, bucket: Bucket, seed: int) -> Item:
        """An item of noise with a random condition, for the device's self-test."""


class FamilyModule(Protocol):
    """A file of `families/`."""

    def parts(self, spec: ModelSpec, dtype: torch.dtype) -> tuple[Part, ...]: ...

    def build(
        self, spec: ModelSpec, components: dict[str, Any], device: torch.device
    ) -> Family: ...


def family_names() -> list[str]:
    """All families: the modules in the folder."""
    return sorted(module.name for module in pkgutil.iter_modules(families.__path__))


def family_named(name: str) -> FamilyModule:
    """The module of a family; raises ConfigError for a name that has no file."""
    legal = family_names()
    if name not in legal:
        hint = closest(name, legal)
        raise ConfigError(f"model.family: {name!r} is not one of {', '.join(legal)}{hint}")
    return cast(FamilyModule, importlib.import_module(f"{families.__name__}.{name}"))
