"""FLUX.1 dev and schnell: FluxTransformer2DModel, AutoencoderKL, CLIP and T5.

With equal seed and settings it gives what diffusers' FluxPipeline gives. Latents are drawn in the
shape of an image and then packed 2x2 to (1, tokens, channels), as the transformer takes them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families import kl_decoder
from batchgen.families.family import (
    Condition,
    Item,
    Text,
    Tokens,
    probe_request,
    told,
    told_to_each,
)
from batchgen.families.flow import dynamic_shift
from batchgen.families.flux import spec as light
from batchgen.families.schedules import flow_schedule
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import Tiling, tiled
from batchgen.numerics.guidance import classifier_free
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.pixels import to_frames
from batchgen.numerics.remembered import Remembered
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

MODULES = ("text_encoder", "text_encoder_2", "transformer", "vae")

SEQUENCE = SequencePlan(
    cuts=(
        Cut("", "hidden_states", "image", dim=1),
        Cut("", "img_ids", "image", dim=0),
        Cut("", "encoder_hidden_states", "text", dim=1),
        Cut("", "txt_ids", "text", dim=0),
    ),
    attends=(
        Attends("transformer_blocks.*.attn", ("text", "image")),
        Attends("single_transformer_blocks.*.attn", ("text", "image")),
    ),
    gather=Cut("proj_out", 0, "image", dim=1),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> Flux:
    """Make a FLUX.1 from its loaded components."""
    return tiled(Flux(spec, components, device), system.vae)


class Flux:
    """A FLUX.1 (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE
    tiling: Tiling | None = None
    signals_alike = False

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        self.spec = spec  # checked against the checkpoint when it was loaded
        self.dims = light.dims(spec)
        self.device = device
        self.max_tokens = light.max_tokens(spec)
        self.tokenizers: Any = components.get("tokenizer"), components.get("tokenizer_2")
        self.clip: Any = components.get("text_encoder")
        self.t5: Any = components.get("text_encoder_2")
        self.clip_states = Remembered(self._clip)
        self.t5_states = Remembered(self._t5)
        self.transformer: Any = components["transformer"]
        self.vae: Any = components.get("vae")
        self.modules: dict[str, nn.Module] = {n: components[n] for n in MODULES if n in components}
        self.dtype: torch.dtype = self.transformer.dtype
        self.state_dtype = self.dtype  # as in the pipeline: latents have the model's precision

    # ------------------------------------------------------------------------------------- texts
    def texts(self, request: Request) -> tuple[Text, ...]:
        """The prompt, of CLIP and of T5; with true_cfg_scale also the negative prompt."""
        prompt = told(request.prompt, request.prompt_2)
        negative = told(request.negative_prompt, request.negative_prompt_2)
        return (prompt, negative)[: light.branches(self.spec, request)]

    def tokenize(self, text: Text) -> Tokens:
        """Token ids for CLIP and for T5, each padded and cut to its maximum; `count` is T5's."""
        clip, t5 = self.tokenizers
        first, second = told_to_each(text, 2)
        count = len(t5(second, add_special_tokens=True, verbose=False).input_ids)
        inputs = tuple(
            tokenizer(
                [words], padding="max_length", max_length=most, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer, words, most in (
                (clip, first, self.dims.text_encoder.max_position_embeddings),
                (t5, second, self.max_tokens),
            )
        )
        return Tokens(inputs, count, count > self.max_tokens)

    def encode(self, tokens: Tokens) -> Condition:
        """T5's states (1, max_tokens, width) and CLIP's pooled state (1, width). No attention mask
        is used, as in the pipeline: padding is attended to."""
        clip_ids, t5_ids = tokens.inputs
        states = self.t5_states(t5_ids)
        # A tensor of this text's own: by it `engine/reuse/recall.py` knows what it keeps of a text.
        return states.view_as(states), self.clip_states(clip_ids)

    def _t5(self, ids: Tensor) -> Tensor:
        states: Tensor = self.t5(ids.to(self.device), output_hidden_states=False)[0]
        return states.to(self.dtype)

    def _clip(self, ids: Tensor) -> Tensor:
        found = self.clip(ids.to(self.device), output_hidden_states=False)
        pooled: Tensor = found.pooler_output
        return pooled.to(self.dtype)

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """Noise drawn as (1, channels, rows, columns), then packed 2x2."""
        height, width = light.cells(self.spec, request.bucket)
        channels = self.dims.transformer.in_channels // 4
        noise = seeded_noise((1, channels, 2 * height, 2 * width), request.seed)
        packed = noise.view(1, channels, height, 2, width, 2).permute(0, 2, 4, 1, 3, 5)
        return packed.reshape(1, height * width, 4 * channels).to(self.dtype)

    def schedule(self, request: Request) -> Schedule:
        scheduler = self.dims.scheduler
        mu = dynamic_shift(scheduler, light.image_tokens(self.spec, request.bucket))
        return flow_schedule(scheduler, request.sigma_shift, request.num_steps, mu)

    def group(self, request: Request) -> Hashable:
        """The bucket: all items of a forward share one input of image positions."""
        return request.bucket

    def expert(self, request: Request, timestep: float) -> str:
        return "transformer"

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep and guidance."""
        times, guidance = self._times(items)
        velocity = self.transformer(
            hidden_states=torch.cat([item.latents for item in items]),
            timestep=times,
            guidance=guidance,
            encoder_hidden_states=torch.cat([item.condition[0] for item in items]),
            pooled_projections=torch.cat([item.condition[1] for item in items]),
            txt_ids=torch.zeros(self.max_tokens, 3, device=self.device, dtype=self.dtype),
            img_ids=self._positions(items[0].request.bucket),
            return_dict=False,
        )[0]
        return list(velocity.split(1))

    def _times(self, items: Sequence[Item]) -> tuple[Tensor, Tensor | None]:
        """Timesteps, of 1, and guidances."""
        times = torch.tensor([item.timestep for item in items]).to(self.dtype)
        guidance = None
        if self.dims.transformer.guidance_embeds:
            guidance = torch.tensor([item.request.guidance_scale for item in items]).float()
            guidance = guidance.to(self.device, non_blocking=True)
        return times.to(self.device, non_blocking=True) / 1000, guidance

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations. Each block projects the embedding by itself:
        `projected` is the embedding, which holds timestep, guidance and pooled text."""
        times, guidance = self._times([item])
        scalars = [times.to(self.dtype) * 1000]
        if guidance is not None:
            scalars.append(guidance.to(self.dtype) * 1000)
        embedded: Tensor = self.transformer.time_text_embed(*scalars, item.condition[1])
        if kind != "embedded":
            return embedded
        tokens = self.transformer.x_embedder(item.latents)
        normed: Tensor = self.transformer.transformer_blocks[0].norm1(tokens, emb=embedded)[0]
        height, width = light.cells(self.spec, item.request.bucket)
        return normed.view(1, 1, height, width, -1)

    def _positions(self, bucket: Bucket) -> Tensor:
        """(image tokens, 3): 0, row, column."""
        height, width = light.cells(self.spec, bucket)
        ids = torch.zeros(height, width, 3)
        ids[..., 1] = torch.arange(height)[:, None]
        ids[..., 2] = torch.arange(width)[None, :]
        return ids.view(-1, 3).to(self.device, self.dtype, non_blocking=True)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        return classifier_free(velocities, request.true_cfg_scale)

    # ------------------------------------------------------------------------------------ decode
    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        return self._images([latents], bucket)[0]

    def decode_pack(self, latents: Sequence[Tensor], bucket: Bucket) -> list[Tensor]:
        return self._images(latents, bucket)

    def _images(self, latents: Sequence[Tensor], bucket: Bucket) -> list[Tensor]:
        height, width = light.cells(self.spec, bucket)
        rows, channels = len(latents), latents[0].shape[2] // 4
        images = torch.cat([*latents]).view(rows, height, width, channels, 2, 2)
        images = images.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, 2 * height, 2 * width)
        config = self.vae.config
        scaled = (images / config.scaling_factor) + config.shift_factor
        pixels = kl_decoder.decode(self.vae, scaled, self.tiling)
        return [to_frames(image.unsqueeze(1)) for image in pixels]

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps and guidances, and random conditions."""
        spec = self.dims.transformer
        states = seeded_noise((1, self.max_tokens, spec.joint_attention_dim), seed + 1)
        pooled = seeded_noise((1, spec.pooled_projection_dim), seed + 2)
        request = replace(probe_request(bucket), seed=seed, guidance_scale=1.0 + seed)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.dtype), pooled.to(self.device, self.dtype)),
        )
