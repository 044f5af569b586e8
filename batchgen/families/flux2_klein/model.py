"""FLUX.2 klein, base and distilled: Flux2Transformer2DModel, AutoencoderKLFlux2, Qwen3.

With equal seed and settings it gives what diffusers' Flux2KleinPipeline gives for text alone. The
negative prompt is always empty, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.flux2_klein import spec as light
from batchgen.families.image_model import StillModel, message_tokens
from batchgen.families.schedules import flow_schedule
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.numerics.guidance import classifier_free
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

SEQUENCE = SequencePlan(
    cuts=(
        Cut("", "hidden_states", "image", dim=1),
        Cut("", "img_ids", "image", dim=1),
        Cut("", "encoder_hidden_states", "text", dim=1),
        Cut("", "txt_ids", "text", dim=1),
    ),
    attends=(
        Attends("transformer_blocks.*.attn", ("text", "image")),
        Attends("single_transformer_blocks.*.attn", ("text", "image")),
    ),
    gather=Cut("proj_out", 0, "image", dim=1),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> Klein:
    """Make a FLUX.2 klein from its loaded components."""
    return tiled(Klein(spec, components, device), system.vae)


class Klein(StillModel):
    """A FLUX.2 klein (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE
    signals_alike = True

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        self.tokenizer: Any = components.get("tokenizer")
        self.text_encoder: Any = components.get("text_encoder")

    # ------------------------------------------------------------------------------------- texts
    def texts(self, request: Request) -> tuple[str, ...]:
        """The prompt; with guidance also nothing."""
        return (request.prompt, "")[: self.branches(request)]

    def tokenize(self, text: str) -> Tokens:
        return message_tokens(self.tokenizer, text, self.max_tokens, thinking=False)

    def encode(self, tokens: Tokens) -> Condition:
        """States behind some layers, side by side: (1, max_tokens, width). Padding is attended
        to."""
        ids, mask = (x.to(self.device) for x in tokens.inputs)
        found = self.text_encoder(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        layers = self.dims.text_encoder.out_layers
        states = torch.cat([found.hidden_states[layer] for layer in layers], dim=-1)
        return (states.to(self.dtype),)

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """Noise drawn as (1, channels, rows, columns) of tokens, then (1, tokens, channels)."""
        height, width = light.cells(self.spec, request.bucket)
        noise = seeded_noise((1, self.dims.transformer.in_channels, height, width), request.seed)
        return noise.flatten(2).permute(0, 2, 1).to(self.dtype)

    def schedule(self, request: Request) -> Schedule:
        tokens, steps = light.image_tokens(self.spec, request.bucket), request.num_steps
        mu = light.empirical_mu(tokens, steps)
        return flow_schedule(self.dims.scheduler, request.sigma_shift, steps, mu)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep."""
        velocity = self.transformer(
            hidden_states=torch.cat([item.latents for item in items]),
            timestep=self._times(items),
            encoder_hidden_states=torch.cat([item.condition[0] for item in items]),
            txt_ids=self._positions(1, 1, self.max_tokens),
            img_ids=self._positions(*light.cells(self.spec, items[0].request.bucket), 1),
            return_dict=False,
        )[0]
        return list(velocity.split(1))

    def _times(self, items: Sequence[Item]) -> Tensor:
        """Timesteps, of 1."""
        return self.timesteps(items).to(self.dtype) / 1000

    def _positions(self, rows: int, columns: int, words: int) -> Tensor:
        """(1, tokens, 4): 0, row, column, place in the text."""
        axes = [torch.arange(n) for n in (1, rows, columns, words)]
        return torch.cartesian_prod(*axes)[None].to(self.device, non_blocking=True)

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations."""
        transformer, times = self.transformer, self._times([item])
        embedded: Tensor = transformer.time_guidance_embed(times.to(self.dtype) * 1000, None)
        if kind == "timestep":
            return embedded
        projected: Tensor = transformer.double_stream_modulation_img(embedded)
        if kind == "projected":
            return projected
        shift, scale, _ = transformer.double_stream_modulation_img.split(projected, 2)[0]
        tokens = transformer.transformer_blocks[0].norm1(transformer.x_embedder(item.latents))
        height, width = light.cells(self.spec, item.request.bucket)
        return ((1 + scale) * tokens + shift).view(1, 1, height, width, -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        return classifier_free(velocities, request.guidance_scale)

    # ------------------------------------------------------------------------------------ decode
    def images(self, latents: Tensor, bucket: Bucket) -> list[Tensor]:
        height, width = light.cells(self.spec, bucket)
        items = len(latents)
        image = latents.permute(0, 2, 1).reshape(items, -1, height, width)
        norm, like = self.vae.bn, (1, -1, 1, 1)
        mean = norm.running_mean.view(like).to(image.device, image.dtype)
        spread = torch.sqrt(norm.running_var.view(like) + self.vae.config.batch_norm_eps)
        image = image * spread.to(image.device, image.dtype) + mean
        image = image.reshape(items, -1, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return self.drawn(image.reshape(items, -1, 2 * height, 2 * width))

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps and a random condition."""
        width = self.dims.transformer.joint_attention_dim
        states = seeded_noise((1, self.max_tokens, width), seed + 1)
        request = replace(probe_request(bucket), seed=seed)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.dtype),),
        )
