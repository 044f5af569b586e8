"""Wan 2.1 text-to-video (and tiny-wan): WanTransformer3DModel, AutoencoderKLWan, UMT5.

Equal seed and settings give what diffusers' WanPipeline gives. Frames are rounded to uint8 as its
`output_type="pil"` does: (x / 2 + 0.5) clamped to 0..1, times 255, rounded to even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from batchgen.config.families import wan as dimensions
from batchgen.config.schema import ModelSpec
from batchgen.engine.family import Condition, Item, Part, Tokens
from batchgen.engine.noise import seeded_noise
from batchgen.engine.solver import Schedule, schedule
from batchgen.records import Bucket, Request


def parts(spec: ModelSpec, dtype: torch.dtype) -> tuple[Part, ...]:
    """Folders of a Wan checkpoint. The autoencoder runs in float32 whatever the transformer runs
    in, as its makers advise: in bfloat16 it bands visibly."""
    transformer = {
        k: list(v) if isinstance(v, tuple) else v for k, v in asdict(spec.transformer).items()
    }
    vae = {
        "base_dim": spec.vae.base_dim,
        "z_dim": spec.vae.z_dim,
        "dim_mult": list(spec.vae.dim_mult),
        "num_res_blocks": spec.vae.num_res_blocks,
        "temperal_downsample": list(spec.vae.temperal_downsample),
        "scale_factor_spatial": spec.vae.spatial_factor,
        "scale_factor_temporal": spec.vae.temporal_factor,
    }
    text = asdict(spec.text_encoder)
    del text["max_tokens"]  # a property of the pipeline's call, not of the encoder
    return (
        Part("tokenizer", None, dtype, {"vocab_size": text["vocab_size"]}, "model.text_encoder"),
        Part("text_encoder", UMT5EncoderModel, dtype, text, "model.text_encoder"),
        Part("transformer", WanTransformer3DModel, dtype, transformer, "model.transformer"),
        Part("vae", AutoencoderKLWan, torch.float32, vae, "model.vae"),
    )


def build(spec: ModelSpec, components: dict[str, Any], device: torch.device) -> Wan:
    """A Wan from its loaded components."""
    return Wan(spec, components, device)


class Wan:
    """See `batchgen.engine.family.Family`."""

    def __init__(self, spec: ModelSpec, components: dict[str, Any], device: torch.device) -> None:
        self.spec = spec  # the checkpoint agrees with it
        self.device = device
        self.max_tokens = spec.text_encoder.max_tokens
        self.tokenizer = components["tokenizer"]
        self.text_encoder: nn.Module = components["text_encoder"]
        self.transformer: Any = components["transformer"]
        self.vae: Any = components["vae"]
        self.modules: dict[str, nn.Module] = {
            "text_encoder": self.text_encoder,
            "transformer": self.transformer,
            "vae": self.vae,
        }
        embedder = self.transformer.condition_embedder
        self.edges: tuple[nn.Module, ...] = (
            self.transformer.patch_embedding,
            embedder.time_embedder,
            embedder.time_proj,
        )

    # ------------------------------------------------------------------------------------- texts
    def texts(self, request: Request) -> tuple[str, ...]:
        """The prompt; with guidance also the negative prompt."""
        if request.uses_guidance:
            return request.prompt, request.negative_prompt
        return (request.prompt,)

    def tokenize(self, text: str) -> Tokens:
        """WanPipeline's cleaning and tokenisation, padded and cut to `max_tokens`."""
        clean = prompt_clean(text)
        count = len(self.tokenizer(clean, add_special_tokens=True, verbose=False).input_ids)
        cut = self.tokenizer(
            [clean],
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            add_special_tokens=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return Tokens((cut.input_ids, cut.attention_mask), count, count > self.max_tokens)

    def encode(self, tokens: Tokens) -> Condition:
        """Hidden states of the text's own tokens (1, n, text_dim); padding is left out, since it
        is zeros and is put back where it is used."""
        ids, mask = tokens.inputs
        states = self.text_encoder(ids.to(self.device), mask.to(self.device)).last_hidden_state
        length = int(mask.sum())
        return (states[:, :length].to(self.transformer.dtype, copy=True),)

    def _padded(self, condition: Condition) -> Tensor:
        states = condition[0]
        zeros = states.new_zeros(1, self.max_tokens - states.shape[1], states.shape[2])
        return torch.cat([states, zeros], dim=1)

    # ----------------------------------------------------------------------------------- denoise
    def latent_shape(self, bucket: Bucket) -> tuple[int, ...]:
        """(1, channels, latent frames, rows, columns)."""
        return (1, self.spec.transformer.in_channels, *dimensions.latent_shape(self.spec, bucket))

    def tokens_per_item(self, bucket: Bucket) -> int:
        return dimensions.tokens(self.spec, bucket)

    def initial_latents(self, request: Request) -> Tensor:
        return seeded_noise(self.latent_shape(request.bucket), request.seed)

    def schedule(self, request: Request) -> Schedule:
        return schedule(request.solver, request.sigma_shift, request.num_steps)

    def phase(self, request: Request, timestep: float) -> int:
        return 0

    def guidance(self, request: Request, timestep: float) -> float:
        return request.guidance_scale

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; timesteps are per item, so rows at different steps share it."""
        latents = torch.cat([item.latents for item in items]).to(self.transformer.dtype)
        times = torch.tensor([item.timestep for item in items], dtype=torch.float32)
        states = torch.cat([self._padded(item.condition) for item in items])
        velocity = self.transformer(
            hidden_states=latents,
            timestep=times.to(self.device, non_blocking=True),
            encoder_hidden_states=states,
            return_dict=False,
        )[0]
        return list(velocity.split(1))

    # ------------------------------------------------------------------------------------ decode
    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        """One row at a time: the autoencoder's result must not depend on batch mates either."""
        config, like = self.vae.config, (1, -1, 1, 1, 1)
        latents = latents.to(self.vae.dtype)
        mean = torch.tensor(config.latents_mean).view(like).to(latents.device, latents.dtype)
        inverse = 1.0 / torch.tensor(config.latents_std).view(like).to(
            latents.device, latents.dtype
        )
        video = self.vae.decode(latents / inverse + mean, return_dict=False)[0][0]
        pixels = (video * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
        return (pixels.float() * 255).round().to(torch.uint8).contiguous()

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int) -> Item:
        """Noise, one of many timesteps, and a random condition of full length."""
        width = self.transformer.config.text_dim
        states = seeded_noise((1, self.max_tokens, width), seed + 1)
        return Item(
            request=_PROBE,
            latents=seeded_noise(self.latent_shape(bucket), seed).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.transformer.dtype),),
        )


_PROBE = Request(
    row_index=-1,
    row_id="self-test",
    row_key="",
    prompt="",
    negative_prompt="",
    seed=0,
    width=0,
    height=0,
    num_frames=1,
    fps=1,
    num_steps=1,
    guidance_scale=1.0,
    guidance_scale_2=None,
    solver="euler",
    sigma_shift=1.0,
    format="npy",
    quality=8,
)
