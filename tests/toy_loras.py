"""Random LoRA files for small models, and diffusers' pipelines with them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from batchgen.loras import Lora, parse, written
from batchgen.request import Loras, Request

RANK = 4


def linears(transformer: nn.Module) -> list[str]:
    """Names of all Linears, in blocks and outside: some see a timestep or a text alone."""
    return [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]


def factors(
    transformer: nn.Module, names: Iterable[str], seed: int, prefix: str = "transformer"
) -> dict[str, Tensor]:
    """Random factors, in the names of diffusers, that change what the modules compute by a lot."""
    draw, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name in names:
        outputs, inputs = transformer.get_submodule(name).weight.shape[:2]  # type: ignore[union-attr,misc]
        down = torch.randn(RANK, inputs, generator=draw) / inputs**0.5
        found[f"{prefix}.{name}.lora_A.weight"] = down
        found[f"{prefix}.{name}.lora_B.weight"] = torch.randn(outputs, RANK, generator=draw) / 4
    return found


def save_lora(
    path: Path, transformer: nn.Module, *, seed: int = 0, every: int = 1, but: str = ""
) -> Path:
    """A file with factors of every so many-th Linear, but for one."""
    names = [name for name in linears(transformer)[::every] if name != but]
    save_file(factors(transformer, names, seed), path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_planned(text: str) -> Loras:
    """A set as a request has it."""
    return Loras(written([replace(one, file=digest(Path(one.file))) for one in parse(text)]))


def files_of(*texts: str) -> dict[str, Path]:
    """What the engine is told of these sets."""
    found = [lora for text in texts for lora in parse(text)]
    return {replace(one, file=digest(Path(one.file))).name: Path(one.file) for one in found}


def put_on(pipeline: Any, row: Request, files: dict[str, Path]) -> None:
    """Let a pipeline draw with the adapters of a row, as its users do it: unfused."""
    loras = parse(row.lora)
    if not hasattr(pipeline, "load_lora_weights"):  # its transformer takes some by itself
        return _put_on_transformer(pipeline.transformer, loras, files)
    known = {name for names in pipeline.get_list_adapters().values() for name in names}
    for lora in loras:
        if lora.name not in known:
            second = {"load_into_transformer_2": True} if lora.expert == "transformer_2" else {}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                pipeline.load_lora_weights(str(files[lora.name]), adapter_name=lora.name, **second)
    if loras:
        pipeline.enable_lora()
        pipeline.set_adapters([one.name for one in loras], [one.strength for one in loras])
    elif known:
        pipeline.disable_lora()
    return None


def _put_on_transformer(transformer: Any, loras: Sequence[Lora], files: dict[str, Path]) -> None:
    known = {*getattr(transformer, "peft_config", {})}
    for lora in (one for one in loras if one.name not in known):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            transformer.load_lora_adapter(
                load_file(files[lora.name]),
                adapter_name=lora.name,
                low_cpu_mem_usage=True,  # as pipelines do: a copy's place decides the last bits
            )
    if loras:
        transformer.enable_adapters()
        transformer.set_adapters([one.name for one in loras], [one.strength for one in loras])
    elif known:
        transformer.disable_adapters()
