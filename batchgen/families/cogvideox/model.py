"""CogVideoX 2b, 5b and 1.5: CogVideoXTransformer3DModel, AutoencoderKLCogVideoX, T5.

With equal seed and settings it gives what diffusers' CogVideoXPipeline gives. The pipeline runs
both branches of guidance as one forward; items are single branches here, with the bits of such a
pair. Latents have frames before channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.cogvideox import decoder
from batchgen.families.cogvideox import spec as light
from batchgen.families.cogvideox.attention import OneStreamAttention
from batchgen.families.dims import stored_dims
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.image_model import ImageModel
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.numerics.diffusion import ddim_steps, noise_levels, sde_steps
from batchgen.numerics.edges import in_batches
from batchgen.numerics.guidance import classifier_free
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.pixels import to_frames
from batchgen.numerics.solver import Schedule, StepCoefs
from batchgen.request import Bucket, Request, Solver

SEQUENCE = SequencePlan(
    cuts=(
        Cut("", "image_rotary_emb", "video", dim=0),  # cosines and sines of each token's place
        Cut("transformer_blocks.0", "hidden_states", "video", dim=1),
        Cut("transformer_blocks.0", "encoder_hidden_states", "text", dim=1),
    ),
    attends=(Attends("transformer_blocks.*.attn1", ("text", "video")),),
    gather=Cut("proj_out", 0, "video", dim=1),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> CogVideoX:
    """Make a CogVideoX from its loaded components."""
    return tiled(CogVideoX(spec, components, device), system.vae)


@lru_cache(maxsize=512)
def cog_schedule(scheduler: light.CogScheduler, solver: Solver, steps: int) -> Schedule:
    """The checkpoint's scheduler over `steps` steps."""
    kind, table = CogVideoXDPMScheduler, sde_steps
    if solver == "ddim":
        kind, table = CogVideoXDDIMScheduler, ddim_steps
    source = kind(**stored_dims(scheduler))
    source.set_timesteps(steps)
    levels = noise_levels(source)
    coefs = [StepCoefs(s, diffusion=d) for s, d in zip(levels, table(source), strict=False)]
    return Schedule(solver, source.timesteps.float(), levels, tuple(coefs))


class CogVideoX(ImageModel):
    """A CogVideoX (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE
    signals_alike = True

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        self._places = lru_cache(maxsize=32)(self._rotary)
        for block in self.transformer.transformer_blocks[:]:  # of a stack, too
            block.attn1.set_processor(OneStreamAttention())

    # ------------------------------------------------------------------------------------- texts
    def tokenize(self, text: str) -> Tokens:
        """Token ids padded and cut to `max_tokens`."""
        tokenizer = self.parts["tokenizer"]
        count = len(tokenizer(text, add_special_tokens=True, verbose=False).input_ids)
        ids = tokenizer(
            [text],
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids
        return Tokens((ids,), count, count > self.max_tokens)

    def encode(self, tokens: Tokens) -> Condition:
        """T5's states (1, max_tokens, width). No mask is used, as in the pipeline: padding is
        attended to."""
        (ids,) = tokens.inputs
        return (self.parts["text_encoder"](ids.to(self.device))[0].to(self.dtype),)

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """(1, latent frames, channels, rows, columns), with the frames that make whole tokens."""
        frames, height, width = light.latent_shape(self.spec, request.bucket)
        drawn = frames + light.added_frames(self.spec, request.bucket)
        shape = (1, drawn, self.dims.transformer.in_channels, height, width)
        return seeded_noise(shape, request.seed).to(self.dtype)

    def schedule(self, request: Request) -> Schedule:
        return cog_schedule(self.dims.scheduler, request.solver, request.num_steps)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep."""
        with in_batches([self.branches(item.request) for item in items]):
            velocity = self.transformer(
                hidden_states=torch.cat([item.latents for item in items]),
                encoder_hidden_states=torch.cat([item.condition[0] for item in items]),
                timestep=self.timesteps(items),
                image_rotary_emb=self._places(items[0].request.bucket),
                return_dict=False,
            )[0]
        return list(velocity.float().split(1))

    def _rotary(self, bucket: Bucket) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the tokens' places; None for a model that adds its places."""
        spec = self.dims.transformer
        if not spec.use_rotary_positional_embeddings:
            return None
        frames, *size = light.grid(self.spec, bucket)
        base = spec.sample_height // spec.patch_size, spec.sample_width // spec.patch_size
        where: dict[str, Any] = {"crops_coords": None, "grid_type": "slice", "max_size": base}
        if spec.patch_size_t is None:
            crops = get_resize_crop_region_for_grid(tuple(size), base[1], base[0])
            where = {"crops_coords": crops}
        cosines, sines = get_3d_rotary_pos_embed(
            embed_dim=spec.attention_head_dim,
            grid_size=tuple(size),
            temporal_size=frames,
            device=self.device,
            **where,
        )
        return cosines, sines

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations. Each block projects the embedding by itself:
        `projected` is the embedding."""
        transformer, text = self.transformer, item.condition[0]
        with in_batches([self.branches(item.request)]):
            times = transformer.time_proj(self.timesteps([item])).to(self.dtype)
            embedded: Tensor = transformer.time_embedding(times, None)
            if kind != "embedded":
                return embedded
            tokens = transformer.patch_embed(text, item.latents)
            parts = tokens[:, text.shape[1] :], tokens[:, : text.shape[1]]
            normed: Tensor = transformer.transformer_blocks[0].norm1(*parts, embedded)[0]
        return normed.view(1, *light.grid(self.spec, item.request.bucket), -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        """Guided; with use_dynamic_cfg by a scale that follows the timestep."""
        scale = request.guidance_scale
        if request.use_dynamic_cfg:
            share = (request.num_steps - timestep) / request.num_steps
            scale = 1 + scale * ((1 - math.cos(math.pi * share**5.0)) / 2)
        return classifier_free(velocities, scale)

    # ------------------------------------------------------------------------------------ decode
    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        video = latents[:, light.added_frames(self.spec, bucket) :].permute(0, 2, 1, 3, 4)
        video = 1 / self.vae.config.scaling_factor * video
        return to_frames(decoder.decode(self.vae, video, self.tiling)[0])

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps, guided or not, and a random text."""
        states = seeded_noise((1, self.max_tokens, self.dims.transformer.text_embed_dim), seed + 1)
        request = replace(probe_request(bucket), seed=seed, guidance_scale=1.0 + seed % 2)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.dtype),),
        )
