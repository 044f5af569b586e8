"""Random weights: any model at its real size without a checkpoint, for planning and benchmarks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers import decoders as token_decoders
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from batchgen.engine.loading.checkpoint import meta_model
from batchgen.engine.loading.parts import CheckpointPart

RANDOM_STD = 0.02  # small: activations stay finite at any depth
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<model>"
Place = tuple[nn.Module, str]  # a module and the name of a parameter of its own
BLOCK = 1 << 20  # values drawn per tensor, then repeated: billions would take minutes


def random_component(part: CheckpointPart) -> Any:
    """The part's tokenizer or model; the same for the same part, on every machine."""
    if part.is_processor:
        side = part.config["image_size"]
        return part.model_class(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
    if part.model_class is None:
        tokenizer = byte_tokenizer(part.vocab_size)
        tokenizer.chat_template = CHAT
        return tokenizer
    return random_module(part)


def random_module(part: CheckpointPart) -> nn.Module:
    """The part with random weights that depend on its name and dimensions alone. Parameters are
    made one by one in the precision they run in, so a model of real size needs no second copy."""
    assert part.model_class is not None
    module = meta_model(part.model_class, part.config | part.extras)
    sensitive = sensitive_names(module, part.dtype)
    places = places_of(module)
    for name, empty in dict(module.named_parameters()).items():
        keeps = any(key in name.split(".") for key in sensitive)
        tensor = torch.empty(empty.shape, dtype=torch.float32 if keeps else part.dtype)
        _fill(tensor, name, seed=zlib.crc32(f"{part.name}.{name}".encode()))
        replace_parameter(places[empty], nn.Parameter(tensor, requires_grad=False))
    return module.eval()


def sensitive_names(module: Any, dtype: torch.dtype) -> set[str]:
    """Names of submodules that stay in float32, as the libraries' own loading decides:
    transformers' plain list is for float16 alone, diffusers' is for any lower precision."""
    names = set(module._keep_in_fp32_modules or ())
    if isinstance(module, PreTrainedModel):
        strict = set(module._keep_in_fp32_modules_strict or ())
        names = names | strict if dtype == torch.float16 else strict
    return names


def _fill(tensor: torch.Tensor, name: str, seed: int) -> None:
    """Norm scales are one, biases zero, all else small noise."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "bias":
        tensor.zero_()
    elif leaf == "gamma" or (leaf == "weight" and tensor.ndim == 1):
        tensor.fill_(1.0)
    else:
        generator = torch.Generator().manual_seed(seed)
        block = torch.empty(min(BLOCK, tensor.numel())).normal_(
            0.0, RANDOM_STD, generator=generator
        )
        flat = tensor.view(-1)
        for begin in range(0, len(flat), len(block)):
            flat[begin : begin + len(block)] = block[: len(flat) - begin]


def places_of(module: nn.Module) -> dict[nn.Parameter, list[Place]]:
    """Where each parameter is used: a tied one in several places."""
    places: dict[nn.Parameter, list[Place]] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((owner, name))
    return places


def replace_parameter(places: Iterable[Place], new: nn.Parameter) -> None:
    """Put `new` wherever another was used."""
    for owner, name in places:
        owner._parameters[name] = new


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer that takes any unicode text without a vocabulary file: one token per UTF-8 byte
    after pad = 0, end = 1, unknown = 2; bytes beyond a small vocabulary are unknown."""
    pad, end, unknown = "<pad>", "</s>", "<unk>"
    alphabet = [pad, end, unknown, *sorted(pre_tokenizers.ByteLevel.alphabet())][:vocab_size]
    ids = {token: i for i, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token=unknown
    )
