"""HunyuanVideo 1.5: HunyuanVideo15Transformer3DModel, AutoencoderKLHunyuanVideo15, Qwen2.5-VL and
ByT5.

With equal seed and settings it gives what diffusers' HunyuanVideo15Pipeline gives with a guider of
these scales, which is on at all steps. Texts are padded to fixed lengths and masked, so that texts
of any lengths share a forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from diffusers import HunyuanVideo15Pipeline
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import (
    extract_glyph_texts,
    format_text_input,
)
from torch import Tensor

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.hunyuan_video15 import decoder
from batchgen.families.hunyuan_video15 import spec as light
from batchgen.families.hunyuan_video15.attention import JointAttention
from batchgen.families.image_model import ImageModel
from batchgen.families.schedules import falling_schedule
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.numerics.guidance import classifier_free, rescaled
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.pixels import to_frames
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

# What the pipeline tells the language model before each text.
SYSTEM: str = (
    signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters["system_message"].default
)
LAYER = -3  # of the language model's hidden states
SEQUENCE = SequencePlan(
    cuts=(
        Cut("transformer_blocks.0", "hidden_states", "video", dim=1),
        Cut("transformer_blocks.0", "encoder_hidden_states", "text", dim=1),
        Cut("rope", 0, "video", dim=0),  # cosines, then sines, of each token's place
        Cut("rope", 1, "video", dim=0),
    ),
    attends=(Attends("transformer_blocks.*.attn", ("video", "text"), masked=True),),
    gather=Cut("proj_out", 0, "video", dim=1),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> HunyuanVideo15:
    """Make a HunyuanVideo 1.5 from its loaded components."""
    return tiled(HunyuanVideo15(spec, components, device), system.vae)


class HunyuanVideo15(ImageModel):
    """A HunyuanVideo 1.5 (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE
    signals_alike = True

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        for block in self.transformer.transformer_blocks[:]:  # of a stack, too
            block.attn.set_processor(JointAttention())

    # ------------------------------------------------------------------------------------- texts
    def tokenize(self, text: str) -> Tokens:
        """Token ids and mask for the language model, of the text in its template; then for ByT5,
        of what stands in quotes, all zeros if nothing does. `count` is the language model's,
        without what stands before the text."""
        before, tokenizer = self.dims.text_encoder.template_tokens, self.parts["tokenizer"]
        (chat,) = format_text_input([text], SYSTEM)
        whole = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        count = len(tokenizer(whole, add_special_tokens=False, verbose=False).input_ids) - before
        found = tokenizer.apply_chat_template(
            [chat],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            padding="max_length",
            max_length=self.max_tokens + before,
            truncation=True,
            return_tensors="pt",
        )
        inputs = found.input_ids, found.attention_mask, *self._glyphs(text)
        return Tokens(inputs, count, count > self.max_tokens)

    def _glyphs(self, text: str) -> tuple[Tensor, Tensor]:
        """Token ids for ByT5 and their mask."""
        most, quoted = self.dims.text_encoder_2.max_tokens, extract_glyph_texts(text)
        if quoted is None:
            return torch.zeros(1, most, dtype=torch.long), torch.zeros(1, most, dtype=torch.long)
        found = self.parts["tokenizer_2"](
            quoted,
            padding="max_length",
            max_length=most,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return found.input_ids, found.attention_mask

    def encode(self, tokens: Tokens) -> Condition:
        """States of the language model and of ByT5, each with its mask."""
        ids, mask, glyph_ids, glyph_mask = (each.to(self.device) for each in tokens.inputs)
        before = self.dims.text_encoder.template_tokens
        states = self.parts["text_encoder"](
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states[LAYER][:, before:]
        if tokens.inputs[3].any():
            glyphs = self.parts["text_encoder_2"](
                input_ids=glyph_ids, attention_mask=glyph_mask.float()
            )[0]
        else:
            glyphs = torch.zeros(1, glyph_ids.shape[1], self.dims.transformer.text_embed_2_dim)
        found = states, mask[:, before:], glyphs, glyph_mask
        return tuple(each.to(self.device, self.dtype, copy=True) for each in found)

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """(1, channels, latent frames, rows, columns)."""
        shape = (1, self.dims.vae.latent_channels, *light.latent_shape(self.spec, request.bucket))
        return seeded_noise(shape, request.seed).to(self.dtype)

    def schedule(self, request: Request) -> Schedule:
        return falling_schedule(self.dims.scheduler, request.sigma_shift, request.num_steps)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep and text. All items are without
        an image, which the model decides of a whole pack."""
        spec = self.dims.transformer
        states, mask, glyphs, glyph_mask = (
            torch.cat([item.condition[part] for item in items]) for part in range(4)
        )
        velocity = self.transformer(
            hidden_states=torch.cat([self._input(item) for item in items]),
            timestep=self.timesteps(items).to(self.dtype),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            encoder_hidden_states_2=glyphs,
            encoder_attention_mask_2=glyph_mask,
            image_embeds=states.new_zeros(len(items), spec.image_tokens, spec.image_embed_dim),
            return_dict=False,
        )[0]
        return list(velocity.split(1))

    def _input(self, item: Item) -> Tensor:
        """Latents, and zeros for those of an image and their mask."""
        zeros = torch.zeros_like(item.latents)
        return torch.cat([item.latents, zeros, zeros[:, :1]], dim=1)

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations. Each block projects the embedding by itself:
        `projected` is the embedding."""
        transformer = self.transformer
        embedded: Tensor = transformer.time_embed(self.timesteps([item]).to(self.dtype))
        if kind != "embedded":
            return embedded
        tokens = transformer.x_embedder(self._input(item))
        normed: Tensor = transformer.transformer_blocks[0].norm1(tokens, emb=embedded)[0]
        return normed.view(1, *light.grid(self.spec, item.request.bucket), -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        guided = classifier_free(velocities, request.guidance_scale)
        if request.guidance_rescale == 0:
            return guided
        return rescaled(guided, velocities[0], request.guidance_rescale)

    # ------------------------------------------------------------------------------------ decode
    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return to_frames(decoder.decode(self.vae, scaled, self.tiling)[0])

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps, and random texts of any length."""
        spec, glyph_tokens = self.dims.transformer, self.dims.text_encoder_2.max_tokens
        states = seeded_noise((1, self.max_tokens, spec.text_embed_dim), seed + 1)
        glyphs = seeded_noise((1, glyph_tokens, spec.text_embed_2_dim), seed + 2)
        mask = torch.arange(self.max_tokens)[None] < 1 + 7 * seed % self.max_tokens
        glyph_mask = torch.arange(glyph_tokens)[None] < 5 * seed % glyph_tokens
        request = replace(probe_request(bucket), seed=seed)
        condition = states, mask, glyphs, glyph_mask
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=tuple(x.to(self.device, self.dtype) for x in condition),
        )
