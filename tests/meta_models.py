"""Packaged models without memory for their weights, and what their forwards count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from packaged_jobs import job_of
from torch.utils.flop_counter import FlopCounterMode
from transformers.initialization import no_init_weights

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.checkpoint import build_module
from batchgen.engine.loading.parts import parts


def packaged(name: str) -> ModelSpec:
    return job_of(f"model={name}").model


def on_meta(model: ModelSpec, name: str) -> Any:
    part = next(part for part in parts(model, torch.bfloat16) if part.name == name)
    with no_init_weights(), torch.device("meta"):
        return build_module(part.model_class, part.config).to(torch.bfloat16)


def flops(call: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        call()
    return int(counter.get_total_flops())


def shortened(model: ModelSpec) -> ModelSpec:
    """The same with two blocks of each kind: what one counts is that of all."""
    transformer = model.dims.transformer
    stacks = [n for n in ("num_layers", "num_single_layers") if hasattr(transformer, n)]
    transformer = replace(transformer, **dict.fromkeys(stacks, 2))
    return replace(model, dims=replace(model.dims, transformer=transformer))
