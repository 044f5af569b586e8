"""HunyuanVideo: HunyuanVideoTransformer3DModel, AutoencoderKLHunyuanVideo, Llama and CLIP.

With equal seed and settings it gives what diffusers' HunyuanVideoPipeline gives. Texts are padded
to one length and masked, at the end of what is attended to: texts of any lengths share a forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from torch import Tensor

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.hunyuan_video import decoder
from batchgen.families.hunyuan_video import spec as light
from batchgen.families.image_model import ImageModel
from batchgen.families.schedules import falling_schedule
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.numerics.guidance import classifier_free
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.pixels import to_frames
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

TEMPLATE = DEFAULT_PROMPT_TEMPLATE["template"]
LAYER = -3  # of Llama's hidden states
SEQUENCE = SequencePlan(
    cuts=(
        Cut("transformer_blocks.0", "hidden_states", "video", dim=1),
        Cut("transformer_blocks.0", "encoder_hidden_states", "text", dim=1),
        Cut("rope", 0, "video", dim=0),  # cosines, then sines, of each token's place
        Cut("rope", 1, "video", dim=0),
    ),
    attends=(
        Attends("transformer_blocks.*.attn", ("video", "text"), masked=True),
        Attends("single_transformer_blocks.*.attn", ("video", "text"), masked=True),
    ),
    gather=Cut("proj_out", 0, "video", dim=1),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> HunyuanVideo:
    """Make a HunyuanVideo from its loaded components."""
    return tiled(HunyuanVideo(spec, components, device), system.vae)


class HunyuanVideo(ImageModel):
    """A HunyuanVideo (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)

    # ------------------------------------------------------------------------------------- texts
    def tokenize(self, text: str) -> Tokens:
        """Token ids for Llama, of the text in its template, with their mask; and for CLIP. `count`
        is Llama's, without what stands before the text."""
        before, whole = self.dims.text_encoder.template_tokens, TEMPLATE.format(text)
        llama, clip = self.parts["tokenizer"], self.parts["tokenizer_2"]
        count = len(llama(whole, verbose=False).input_ids) - before
        fixed = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        first = llama([whole], max_length=self.max_tokens + before, **fixed)
        longest = self.dims.text_encoder_2.max_position_embeddings
        second = clip([text], max_length=longest, **fixed)
        inputs = first.input_ids, first.attention_mask, second.input_ids
        return Tokens(inputs, count, count > self.max_tokens)

    def encode(self, tokens: Tokens) -> Condition:
        """Llama's states (1, max_tokens, width), their mask, and CLIP's pooled state (1, width)."""
        ids, mask, clip_ids = (each.to(self.device) for each in tokens.inputs)
        before = self.dims.text_encoder.template_tokens
        states = self.parts["text_encoder"](
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states[LAYER][:, before:]
        pooled = self.parts["text_encoder_2"](clip_ids, output_hidden_states=False).pooler_output
        own = states.to(self.dtype, copy=True)
        return own, mask[:, before:].to(self.dtype), pooled.to(self.dtype)

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """(1, channels, latent frames, rows, columns); float32 until the first step."""
        channels = self.dims.transformer.in_channels
        return seeded_noise(
            (1, channels, *light.latent_shape(self.spec, request.bucket)), request.seed
        )

    def schedule(self, request: Request) -> Schedule:
        return falling_schedule(self.dims.scheduler, request.sigma_shift, request.num_steps)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep, guidance and text."""
        times, guidance = self._times(items)
        velocity = self.transformer(
            hidden_states=torch.cat([item.latents.to(self.dtype) for item in items]),
            timestep=times,
            encoder_hidden_states=torch.cat([item.condition[0] for item in items]),
            encoder_attention_mask=torch.cat([item.condition[1] for item in items]),
            pooled_projections=torch.cat([item.condition[2] for item in items]),
            guidance=guidance,
            return_dict=False,
        )[0]
        return list(velocity.split(1))

    def _times(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Timesteps in the precision of the latents, and guidances."""
        rounded = [torch.tensor(item.timestep).to(item.latents.dtype).float() for item in items]
        scales = torch.tensor([item.request.guidance_scale for item in items], dtype=self.dtype)
        times = torch.stack(rounded).to(self.device, non_blocking=True)
        return times, scales.to(self.device, non_blocking=True) * 1000.0

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations. Each block projects the embedding by itself:
        `projected` is the embedding, which holds timestep, guidance and pooled text."""
        transformer = self.transformer
        times, guidance = self._times([item])
        embedded: Tensor = transformer.time_text_embed(times, item.condition[2], guidance)[0]
        if kind != "embedded":
            return embedded
        tokens = transformer.x_embedder(item.latents.to(self.dtype))
        normed: Tensor = transformer.transformer_blocks[0].norm1(tokens, emb=embedded)[0]
        return normed.view(1, *light.grid(self.spec, item.request.bucket), -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        return classifier_free(velocities, request.true_cfg_scale)

    # ------------------------------------------------------------------------------------ decode
    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return to_frames(decoder.decode(self.vae, scaled, self.tiling)[0])

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps and guidances, and a random text of any length."""
        spec = self.dims.transformer
        states = seeded_noise((1, self.max_tokens, spec.text_embed_dim), seed + 1)
        pooled = seeded_noise((1, spec.pooled_projection_dim), seed + 2)
        mask = torch.arange(self.max_tokens)[None] < 1 + 7 * seed % self.max_tokens
        request = replace(probe_request(bucket), seed=seed, guidance_scale=1.0 + seed)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=tuple(x.to(self.device, self.dtype) for x in (states, mask, pooled)),
        )
