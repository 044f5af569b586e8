"""What the models of image families have in common: one transformer, one frame."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from batchgen.config.schema import ModelSpec
from batchgen.families import kl_decoder
from batchgen.families.family import Item, Text, Tokens, family_spec
from batchgen.families.tiling import Tiling
from batchgen.numerics.pixels import to_frames
from batchgen.request import Bucket, Request


class ImageModel:
    """Base class of a `batchgen.families.family.FamilyModel`, of clips too."""

    tiling: Tiling | None = None  # into which frames are cut when they are decoded
    signals_alike = False

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        self.spec = spec  # checked against the checkpoint when it was loaded
        self.light = family_spec(spec.family)
        self.device = device
        self.max_tokens = self.light.max_tokens(spec)
        self.parts = components
        self.modules: dict[str, nn.Module] = {
            part.name: components[part.name]
            for part in self.light.COMPONENTS
            if part.kind == "model" and part.name in components
        }
        self.transformer: Any = components["transformer"]
        self.vae: Any = components.get("vae")
        self.dtype: torch.dtype = self.transformer.dtype
        self.state_dtype = self.dtype  # of latents between two steps: as in most pipelines

    def branches(self, request: Request) -> int:
        """Forwards in one step of the row."""
        return int(self.light.branches(self.spec, request))

    def texts(self, request: Request) -> tuple[Text, ...]:
        """The prompt; where the row is guided also the negative prompt."""
        return (request.prompt, request.negative_prompt)[: self.branches(request)]

    def group(self, request: Request) -> Hashable:
        return request.bucket

    def expert(self, request: Request, timestep: float) -> str:
        return "transformer"

    def timesteps(self, items: Sequence[Item]) -> Tensor:
        """Those of the items, float32 on the device."""
        times = torch.tensor([item.timestep for item in items], dtype=torch.float32)
        return times.to(self.device, non_blocking=True)


class StillModel(ImageModel):
    """One that draws single images, several of which may be decoded together."""

    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        return self.images(latents, bucket)[0]

    def decode_pack(self, latents: Sequence[Tensor], bucket: Bucket) -> list[Tensor]:
        return self.images(torch.cat([*latents]), bucket)

    def images(self, latents: Tensor, bucket: Bucket) -> list[Tensor]:
        """AutoencoderKL's of latents (items, channels, rows, columns): each uint8 (1, height,
        width, 3)."""
        config = self.vae.config
        scaled = latents.to(self.vae.dtype) / config.scaling_factor
        if config.shift_factor is not None:
            scaled = scaled + config.shift_factor
        return self.drawn(scaled)

    def drawn(self, scaled: Tensor) -> list[Tensor]:
        """`images` of what the autoencoder itself takes."""
        pixels = kl_decoder.decode(self.vae, scaled, self.tiling)
        return [to_frames(image.unsqueeze(1)) for image in pixels]


def message_tokens(tokenizer: Any, text: str, most: int, *, thinking: bool) -> Tokens:
    """Token ids and mask of a text as a message to a language model, padded and cut to `most`;
    `count` is with the template. `thinking`: whether the model may think before it answers."""
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    count = len(tokenizer(chat, verbose=False).input_ids)
    cut = tokenizer(
        [chat], padding="max_length", max_length=most, truncation=True, return_tensors="pt"
    )
    return Tokens((cut.input_ids, cut.attention_mask), count, count > most)
