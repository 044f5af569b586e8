"""Wan 2.1 text-to-video (and tiny-wan): WanTransformer3DModel, AutoencoderKLWan, UMT5.

With equal seed and settings it gives what diffusers' WanPipeline gives.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.sequence import Attends, Crosses, Cut, SequencePlan
from batchgen.families.tiling import Tiling, tiled
from batchgen.families.wan import decoder
from batchgen.families.wan import spec as light
from batchgen.numerics.guidance import classifier_free
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.pixels import to_frames
from batchgen.numerics.solver import Schedule, schedule
from batchgen.request import Bucket, Request

SEQUENCE = SequencePlan(
    cuts=(
        Cut("rope", 0, "video", dim=1),  # cosines, then sines, of each token's place
        Cut("rope", 1, "video", dim=1),
        Cut("blocks.0", "hidden_states", "video", dim=1),
    ),
    attends=(Attends("blocks.*.attn1", ("video",)),),
    gather=Cut("proj_out", 0, "video", dim=1),
    crosses=(Crosses("blocks.*.attn2", "video"),),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> Wan:
    """Make a Wan from its loaded components."""
    return tiled(Wan(spec, components, device), system.vae)


class Wan:
    """A Wan with one expert (`batchgen.families.family.FamilyModel`)."""

    experts: tuple[str, ...] = ("transformer",)
    state_dtype = torch.float32
    sequence = SEQUENCE
    signals_alike = True
    tiling: Tiling | None = None  # into which frames are cut when they are decoded

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        self.spec = spec  # checked against the checkpoint when it was loaded
        self.device = device
        self.max_tokens = light.max_tokens(spec)
        self.tokenizer: Any = components.get("tokenizer")
        self.text_encoder: Any = components.get("text_encoder")
        self.transformer: Any = components["transformer"]
        self.vae: Any = components.get("vae")
        names = ("text_encoder", "image_encoder", *self.experts, "vae")
        self.modules: dict[str, nn.Module] = {n: components[n] for n in names if n in components}
        # asked once: diffusers walks over all modules for it, a twelfth of a small forward
        self.dtypes: dict[str, torch.dtype] = {
            name: components[name].dtype for name in self.experts if name in components
        }

    # ------------------------------------------------------------------------------------- texts
    def texts(self, request: Request) -> tuple[str, ...]:
        """The prompt; with guidance also the negative prompt."""
        return (request.prompt, request.negative_prompt)[: light.branches(self.spec, request)]

    def tokenize(self, text: str) -> Tokens:
        """Clean and tokenise as WanPipeline does, padded and cut to `max_tokens`."""
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
        """Hidden states of the text's own tokens, (1, n, text_dim). The padding is zeros; `forward`
        puts it back."""
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
        channels = light.dims(self.spec).vae.z_dim
        return (1, channels, *light.latent_shape(self.spec, bucket))

    def initial_latents(self, request: Request) -> Tensor:
        return seeded_noise(self.latent_shape(request.bucket), request.seed)

    def schedule(self, request: Request) -> Schedule:
        return schedule(request.solver, request.sigma_shift, request.num_steps)

    def group(self, request: Request) -> Hashable:
        return request.bucket

    def expert(self, request: Request, timestep: float) -> str:
        return "transformer"

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward. Each item has its own timestep, so rows at different steps share
        it."""
        expert = self.expert(items[0].request, items[0].timestep)
        transformer: Any = self.modules[expert]
        inputs = torch.cat([self.inputs(item) for item in items]).to(self.dtypes[expert])
        states = torch.cat([self._padded(item.condition) for item in items])
        velocity = transformer(
            hidden_states=inputs,
            timestep=self.times(items),
            encoder_hidden_states=states,
            encoder_hidden_states_image=self.image_states(items),
            return_dict=False,
        )[0]
        return list(velocity.split(1))

    def inputs(self, item: Item) -> Tensor:
        """What is cut into patches, (1, channels, frames, rows, columns)."""
        return item.latents

    def times(self, items: Sequence[Item]) -> Tensor:
        """(items,), or (items, tokens)."""
        times = torch.tensor([item.timestep for item in items], dtype=torch.float32)
        return times.to(self.device, non_blocking=True)

    def image_states(self, items: Sequence[Item]) -> Tensor | None:
        """What comes before the texts, (items, tokens, width)."""
        return None

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations."""
        expert = self.expert(item.request, item.timestep)
        transformer: Any = self.modules[expert]
        if kind == "embedded":
            patches = transformer.patch_embedding(self.inputs(item).to(self.dtypes[expert]))
            tokens = patches.movedim(1, -1)  # a grid, (1, frames, rows, columns, width)
            modulation = self.modulation(item, self.signal(item, "projected"))
            shift, scale = modulation.unbind(1)[:2]
            normed: Tensor = transformer.blocks[0].norm1(tokens.float())
            return (normed * (1 + scale) + shift).type_as(tokens)
        embedder = transformer.condition_embedder
        times = torch.tensor([item.timestep], device=self.device)
        embedded = self.embedded(embedder, times).to(self.dtypes[expert])
        if kind == "timestep":
            return embedded
        projected: Tensor = embedder.time_proj(embedder.act_fn(embedded))
        return projected

    def embedded(self, embedder: Any, times: Tensor) -> Tensor:
        """Of timesteps (n,), (n, width)."""
        dtype = next(embedder.time_embedder.parameters()).dtype
        found: Tensor = embedder.time_embedder(embedder.timesteps_proj(times).to(dtype))
        return found

    def without_blocks(self, transformer: Any, added: Tensor, **inputs: Any) -> Tensor | None:
        """See `batchgen.engine.reuse.shorter.SkipsBlocks`. Tokens with timesteps of their own take
        the long way."""
        latents, times = inputs["hidden_states"], inputs["timestep"]
        if times.ndim > 1:
            return None
        patches = transformer.patch_embedding(latents)
        tokens = patches.flatten(2).transpose(1, 2).contiguous() + added.to(patches.dtype)
        embedded = self.embedded(transformer.condition_embedder, times).to(latents.dtype)
        shift, scale = (transformer.scale_shift_table + embedded.unsqueeze(1)).chunk(2, dim=1)
        normed = transformer.norm_out(tokens.float())
        drawn = transformer.proj_out((normed * (1 + scale) + shift).type_as(tokens))
        size = transformer.config.patch_size
        drawn = drawn.reshape(len(latents), *patches.shape[2:], *size, -1)
        return drawn.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def modulation(self, item: Item, projected: Tensor) -> Tensor:
        """What the first block shifts and scales its tokens by, (1, 6, frames, rows, columns,
        width); axes of one where they are modulated alike."""
        transformer: Any = self.modules[self.expert(item.request, item.timestep)]
        table = transformer.blocks[0].scale_shift_table + projected.unflatten(1, (6, -1)).float()
        return table[:, :, None, None, None]

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        return classifier_free(velocities, request.guidance_scale)

    # ------------------------------------------------------------------------------------ decode
    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        """With the bits of the pipeline; tile by tile with them to rounding."""
        unscaled = self._unscaled(latents)
        if self.tiling is not None:
            return to_frames(decoder.decode_tiled(self.vae, unscaled, self.tiling)[0])
        return to_frames(decoder.decode(self.vae, unscaled)[0])

    def decode_pack(self, latents: Sequence[Tensor], bucket: Bucket) -> list[Tensor]:
        if self.tiling is not None:
            return [self.decode(one, bucket) for one in latents]
        videos = decoder.decode_fast(self.vae, self._unscaled(torch.cat([*latents])))
        return [to_frames(video) for video in videos]

    def _unscaled(self, latents: Tensor) -> Tensor:
        """As the autoencoder takes them, in the pipeline's order of operations."""
        config, like = self.vae.config, (1, -1, 1, 1, 1)
        latents = latents.to(self.vae.dtype)
        mean = torch.tensor(config.latents_mean).view(like).to(latents.device, latents.dtype)
        inverse = 1.0 / torch.tensor(config.latents_std).view(like).to(
            latents.device, latents.dtype
        )
        return latents / inverse + mean

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps and a random condition of full length."""
        width = self.transformer.config.text_dim
        states = seeded_noise((1, self.max_tokens, width), seed + 1)
        return Item(
            request=probe_request(bucket),
            latents=seeded_noise(self.latent_shape(bucket), seed).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.transformer.dtype),),
        )
