"""Stable Diffusion 3 and 3.5: SD3Transformer2DModel, AutoencoderKL, two CLIPs and T5.

With equal seed and settings it gives what diffusers' StableDiffusion3Pipeline gives. That runs both
branches of a guided row as one forward, whose bits differ from those of a branch alone; edges see
each item as in such a batch. From a width of 512 on the output projections of the pipeline's batch
take another way on a CPU in float32: latents are then within 1e-5 of its.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
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
from batchgen.families.image_model import StillModel
from batchgen.families.schedules import flow_schedule
from batchgen.families.sd3 import spec as light
from batchgen.families.sd3.attention import JointAttention
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.numerics.edges import in_batches
from batchgen.numerics.guidance import classifier_free
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.remembered import Remembered
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

SEQUENCE = SequencePlan(
    cuts=(
        Cut("transformer_blocks.0", "hidden_states", "image", dim=1),
        Cut("transformer_blocks.0", "encoder_hidden_states", "text", dim=1),
    ),
    attends=(
        Attends("transformer_blocks.*.attn", ("image", "text")),
        Attends("transformer_blocks.*.attn2", ("image",), reused=False),
    ),
    gather=Cut("proj_out", 0, "image", dim=1),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> Sd3:
    """Make a Stable Diffusion 3 from its loaded components."""
    return tiled(Sd3(spec, components, device), system.vae)


class Sd3(StillModel):
    """A Stable Diffusion 3 (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        self.tokenizers: Any = [components.get(f"tokenizer{n}") for n in ("", "_2", "_3")]
        self.clips: Any = components.get("text_encoder"), components.get("text_encoder_2")
        self.t5: Any = components.get("text_encoder_3")
        self.clip_states = [Remembered(partial(self._clip, clip)) for clip in self.clips]
        self.t5_states = Remembered(self._t5)
        for block in self.transformer.transformer_blocks[:]:  # of a stack, too
            for attention in filter(None, (block.attn, block.attn2)):
                attention.set_processor(JointAttention())

    # ------------------------------------------------------------------------------------- texts
    def texts(self, request: Request) -> tuple[Text, ...]:
        """The prompt, of both CLIPs and T5; where the row is guided also the negative prompt."""
        negative = (request.negative_prompt, request.negative_prompt_2, request.negative_prompt_3)
        prompt = told(request.prompt, request.prompt_2, request.prompt_3)
        return (prompt, told(*negative))[: self.branches(request)]

    def tokenize(self, text: Text) -> Tokens:
        """Token ids for both CLIPs and T5, each padded and cut to its maximum; `count` is T5's."""
        clip = self.dims.text_encoder.max_position_embeddings
        each = told_to_each(text, 3)
        count = len(self.tokenizers[2](each[2], add_special_tokens=True, verbose=False).input_ids)
        inputs = tuple(
            tokenizer(
                [words], padding="max_length", max_length=most, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer, words, most in zip(
                self.tokenizers, each, (clip, clip, self.max_tokens), strict=True
            )
        )
        return Tokens(inputs, count, count > self.max_tokens)

    def encode(self, tokens: Tokens) -> Condition:
        """The CLIPs' states side by side, filled with zeros to T5's width, then T5's behind them:
        (1, tokens, width); and the CLIPs' pooled states, (1, width). Padding is attended to."""
        *clip_ids, t5_ids = tokens.inputs
        found = [read(ids) for read, ids in zip(self.clip_states, clip_ids, strict=True)]
        states = torch.cat([states for states, _ in found], dim=-1)
        pooled = torch.cat([pooled for _, pooled in found], dim=-1)
        long = self.t5_states(t5_ids)
        states = F.pad(states, (0, long.shape[-1] - states.shape[-1]))
        joint = torch.cat([states, long], dim=-2)
        return joint.to(self.dtype), pooled.to(self.dtype)

    def _clip(self, clip: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States and pooled state."""
        found = clip(ids.to(self.device), output_hidden_states=True)
        return found.hidden_states[-2], found[0]

    def _t5(self, ids: Tensor) -> Tensor:
        states: Tensor = self.t5(ids.to(self.device))[0]
        return states

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """Noise (1, channels, rows, columns)."""
        height, width = (self.dims.transformer.patch_size * n for n in self._cells(request.bucket))
        shape = (1, self.dims.transformer.in_channels, height, width)
        return seeded_noise(shape, request.seed).to(self.dtype)

    def _cells(self, bucket: Bucket) -> tuple[int, int]:
        return light.cells(self.spec, bucket)

    def schedule(self, request: Request) -> Schedule:
        scheduler, mu = self.dims.scheduler, None
        if scheduler.use_dynamic_shifting:
            mu = dynamic_shift(scheduler, light.image_tokens(self.spec, request.bucket))
        return flow_schedule(scheduler, request.sigma_shift, request.num_steps, mu, own_sigmas=True)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep."""
        with in_batches([self.branches(item.request) for item in items]):
            velocity = self.transformer(
                hidden_states=torch.cat([item.latents for item in items]),
                timestep=self.timesteps(items),
                encoder_hidden_states=torch.cat([item.condition[0] for item in items]),
                pooled_projections=torch.cat([item.condition[1] for item in items]),
                return_dict=False,
            )[0]
        return list(velocity.split(1))

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations. Each block projects the embedding by itself:
        `projected` is the embedding, which holds timestep and pooled text."""
        with in_batches([self.branches(item.request)]):
            times = self.timesteps([item])
            embedded: Tensor = self.transformer.time_text_embed(times, item.condition[1])
            if kind != "embedded":
                return embedded
            tokens = self.transformer.pos_embed(item.latents).contiguous()
            norm = self.transformer.transformer_blocks[0].norm1
            normed: Tensor = norm(tokens, emb=embedded)[0]
        return normed.view(1, 1, *self._cells(item.request.bucket), -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        return classifier_free(velocities, request.guidance_scale)

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps, with and without guidance, and random conditions."""
        spec = self.dims.transformer
        tokens = light.text_tokens(self.spec)
        states = seeded_noise((1, tokens, spec.joint_attention_dim), seed + 1)
        pooled = seeded_noise((1, spec.pooled_projection_dim), seed + 2)
        request = replace(probe_request(bucket), seed=seed, guidance_scale=1.0 + seed % 2)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.dtype), pooled.to(self.device, self.dtype)),
        )
