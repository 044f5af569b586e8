"""LTX-Video: LTXVideoTransformer3DModel, AutoencoderKLLTXVideo, T5.

With equal seed and settings it gives what diffusers' LTXPipeline gives. The pipeline runs both
branches of guidance as one forward; items are single branches here, with the bits of such a pair.
The frame rate decides the places of tokens, so that rows of different ones share no forward.

A decoder that takes noise (`timestep_conditioning`) gets the seed's second draw. What its layers
add by themselves (`decoder_inject_noise`) the pipeline draws from torch's global generator: here it
is as if that had been seeded with the row's seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.flow import dynamic_shift
from batchgen.families.image_model import ImageModel
from batchgen.families.ltx import decoder
from batchgen.families.ltx import spec as light
from batchgen.families.schedules import flow_schedule
from batchgen.families.sequence import Attends, Crosses, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.numerics.edges import in_batches
from batchgen.numerics.guidance import classifier_free, rescaled
from batchgen.numerics.noise import SeededNoise, seeded_noise
from batchgen.numerics.pixels import to_frames
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

SEQUENCE = SequencePlan(
    cuts=(
        Cut("", "hidden_states", "video", dim=1),
        Cut("rope", 0, "video", dim=1),  # cosines, then sines, of each token's place
        Cut("rope", 1, "video", dim=1),
    ),
    attends=(Attends("transformer_blocks.*.attn1", ("video",)),),
    gather=Cut("proj_out", 0, "video", dim=1),
    crosses=(Crosses("transformer_blocks.*.attn2", "video"),),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> Ltx:
    """Make an LTX-Video from its loaded components."""
    return tiled(Ltx(spec, components, device), system.vae)


class Ltx(ImageModel):
    """An LTX-Video (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE
    signals_alike = True

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        self.state_dtype = torch.float32

    # ------------------------------------------------------------------------------------- texts
    def tokenize(self, text: str) -> Tokens:
        """Token ids padded and cut to `max_tokens`, and which of them are the text's."""
        count = len(self.parts["tokenizer"](text, add_special_tokens=True, verbose=False).input_ids)
        cut = self.parts["tokenizer"](
            [text],
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return Tokens((cut.input_ids, cut.attention_mask), count, count > self.max_tokens)

    def encode(self, tokens: Tokens) -> Condition:
        """States (1, max_tokens, width), made without a mask as in the pipeline, and the mask that
        attention to them takes."""
        ids, mask = (each.to(self.device) for each in tokens.inputs)
        return self.parts["text_encoder"](ids)[0].to(self.dtype), mask.bool()

    # ----------------------------------------------------------------------------------- denoise
    def latent_shape(self, bucket: Bucket) -> tuple[int, ...]:
        """(1, channels, latent frames, rows, columns)."""
        channels = self.dims.transformer.in_channels
        return (1, channels, *light.latent_shape(self.spec, bucket))

    def initial_latents(self, request: Request) -> Tensor:
        """Noise drawn as a video, then (1, tokens, channels)."""
        noise = seeded_noise(self.latent_shape(request.bucket), request.seed)
        return noise.flatten(2).transpose(1, 2).contiguous()

    def schedule(self, request: Request) -> Schedule:
        scheduler = self.dims.scheduler
        mu = dynamic_shift(scheduler, light.tokens(self.spec, request.bucket))
        return flow_schedule(scheduler, request.sigma_shift, request.num_steps, mu)

    def group(self, request: Request) -> Hashable:
        return request.bucket, request.fps

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep."""
        request = items[0].request
        frames, height, width = light.latent_shape(self.spec, request.bucket)
        with in_batches([self.branches(item.request) for item in items]):
            velocity = self.transformer(
                hidden_states=torch.cat([item.latents for item in items]).to(self.dtype),
                timestep=self.timesteps(items),
                encoder_hidden_states=torch.cat([item.condition[0] for item in items]),
                encoder_attention_mask=torch.cat([item.condition[1] for item in items]),
                num_frames=frames,
                height=height,
                width=width,
                rope_interpolation_scale=self._scale(request.fps),
                return_dict=False,
            )[0]
        return list(velocity.float().split(1))

    def _scale(self, fps: float) -> tuple[float, int, int]:
        """Seconds and pixels between two cells."""
        vae = self.dims.vae
        return vae.temporal_factor / fps, vae.spatial_factor, vae.spatial_factor

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations."""
        latents = item.latents.to(self.dtype)
        with in_batches([self.branches(item.request)]):
            projected, embedded = self.transformer.time_embed(
                self.timesteps([item]), batch_size=1, hidden_dtype=latents.dtype
            )
        if kind != "embedded":
            return embedded if kind == "timestep" else projected
        block = self.transformer.transformer_blocks[0]
        tokens = block.norm1(self.transformer.proj_in(latents))
        table = block.scale_shift_table[None, None] + projected.view(1, 1, 6, -1)
        normed: Tensor = tokens * (1 + table[:, :, 1]) + table[:, :, 0]
        return normed.view(1, *light.latent_shape(self.spec, item.request.bucket), -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        guided = classifier_free(velocities, request.guidance_scale)
        if len(velocities) == 1 or request.guidance_rescale == 0:
            return guided
        return rescaled(guided, velocities[0], request.guidance_rescale)

    # ------------------------------------------------------------------------------------ decode
    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        return self.decode_row(latents, probe_request(bucket))

    def decode_row(self, latents: Tensor, request: Request) -> Tensor:
        """The noise that a decoder may want comes from the row's seed."""
        vae, shape = self.vae, self.latent_shape(request.bucket)
        like = (1, -1, 1, 1, 1)
        mean = vae.latents_mean.view(like).to(latents.device, latents.dtype)
        std = vae.latents_std.view(like).to(latents.device, latents.dtype)
        video = latents.transpose(1, 2).reshape(shape)
        video = (video * std / vae.config.scaling_factor + mean).to(self.dtype)
        timestep = None
        if vae.config.timestep_conditioning:
            timestep, video = self._noised(video, request)
        with self._seeded(request.seed):
            drawn = decoder.decode(vae, video.to(vae.dtype), timestep, self.tiling)
            return to_frames(drawn[0])

    def _noised(self, video: Tensor, request: Request) -> tuple[Tensor, Tensor]:
        """The timestep that the decoder is told, and the latents with as much noise."""
        scale = request.decode_noise_scale
        share = request.decode_timestep if scale is None else scale
        timestep, amount = (
            torch.tensor([value], device=self.device, dtype=video.dtype)
            for value in (request.decode_timestep, share)
        )
        noise = SeededNoise(tuple(video.shape), request.seed, drawn=1).draw()
        amount = amount[:, None, None, None, None]
        return timestep, (1 - amount) * video + amount * noise.to(self.device, video.dtype)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """torch's global generators seeded, if the decoder's layers draw from them."""
        if not any(self.vae.config.decoder_inject_noise):
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps, guided or not, and a random text of any length."""
        states = seeded_noise(
            (1, self.max_tokens, self.dims.transformer.caption_channels), seed + 1
        )
        mask = torch.arange(self.max_tokens)[None] < 1 + 7 * seed % self.max_tokens
        request = replace(probe_request(bucket), seed=seed, guidance_scale=1.0 + seed % 2)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.dtype), mask.to(self.device)),
        )
