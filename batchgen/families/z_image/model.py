"""Z-Image and Z-Image-Turbo: ZImageTransformer2DModel, AutoencoderKL, Qwen3.

With equal seed and settings it gives what diffusers' ZImagePipeline gives, which runs both branches
of a guided row as one forward: edges see each item as in such a batch. The transformer pads image
and text to whole blocks of 32 tokens by itself, and masks what is missing to the longest of a pack;
neither changes a bit of an item. cfg_normalization and cfg_truncation are the pipeline's defaults:
off.
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
from batchgen.families.flow import dynamic_shift
from batchgen.families.image_model import StillModel, message_tokens
from batchgen.families.schedules import flow_schedule
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.families.z_image import spec as light
from batchgen.numerics.edges import in_batches
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

EMBEDDED = "2-1"  # its patches: 2x2 cells of one frame
SEQUENCE = SequencePlan(
    # image and text are one stream of tokens; the few layers before refine them on every rank
    cuts=(
        Cut("layers.0", "x", "joint", dim=1),
        Cut("layers.*", "freqs_cis", "joint", dim=1),
    ),
    attends=(Attends("layers.*.attention", ("joint",)),),
    gather=Cut(f"all_final_layer.{EMBEDDED}", 0, "joint", dim=1),
    text=0,
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> ZImage:
    """Make a Z-Image from its loaded components."""
    return tiled(ZImage(spec, components, device), system.vae)


class ZImage(StillModel):
    """A Z-Image (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE
    signals_alike = True

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        self.state_dtype = torch.float32
        self.tokenizer: Any = components.get("tokenizer")
        self.text_encoder: Any = components.get("text_encoder")

    # ------------------------------------------------------------------------------------- texts
    def tokenize(self, text: str) -> Tokens:
        return message_tokens(self.tokenizer, text, self.max_tokens, thinking=True)

    def encode(self, tokens: Tokens) -> Condition:
        """Hidden states of the text's own tokens, (n, width), before the last layer."""
        ids, mask = (x.to(self.device) for x in tokens.inputs)
        found = self.text_encoder(
            input_ids=ids, attention_mask=mask.bool(), output_hidden_states=True
        )
        states = found.hidden_states[-2][0, : int(tokens.inputs[1].sum())]
        return (states.to(self.dtype, copy=True),)

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """Noise (1, channels, rows, columns), float32."""
        height, width = (2 * n for n in light.cells(self.spec, request.bucket))
        return seeded_noise((1, self.dims.transformer.in_channels, height, width), request.seed)

    def schedule(self, request: Request) -> Schedule:
        scheduler, steps = self.dims.scheduler, request.num_steps
        rows, columns = light.cells(self.spec, request.bucket)
        mu = dynamic_shift(scheduler, rows * columns)
        sigmas = tuple(torch.linspace(1.0, 1 / steps, steps).tolist())
        return flow_schedule(scheduler, request.sigma_shift, steps, mu, sigmas=sigmas)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep and its own number of text
        tokens. The transformer draws against the velocity."""
        with in_batches([self.branches(item.request) for item in items]):
            found = self.transformer(
                [self._image(item) for item in items],
                self._times(items),
                [item.condition[0] for item in items],
                return_dict=False,
            )[0]
        return [-one.squeeze(1)[None].float() for one in found]

    def own_tokens(self, item: Item) -> int:
        """See `batchgen.engine.reuse.blocks.FillsUp`."""
        return light.joint_tokens(self.spec, item.request.bucket, len(item.condition[0]))

    def _image(self, item: Item) -> Tensor:
        """(channels, 1, rows, columns)"""
        return item.latents[0].unsqueeze(1).to(self.dtype)

    def _times(self, items: Sequence[Item]) -> Tensor:
        """From 0 for noise to 1."""
        return (1000 - self.timesteps(items)) / 1000

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations, as far as the layers that refine the image.
        Each layer projects the embedding by itself: `projected` is the embedding."""
        transformer, image = self.transformer, self._image(item)
        with in_batches([self.branches(item.request)]):
            times = self._times([item]) * transformer.t_scale
            embedded: Tensor = transformer.t_embedder(times).type_as(image)
            if kind != "embedded":
                return embedded
            patches = transformer._patchify_image(image, 2, 1)[0]
            layer = transformer.noise_refiner[0]
            scale = 1.0 + layer.adaLN_modulation(embedded).unsqueeze(1).chunk(4, dim=2)[0]
            tokens = transformer.all_x_embedder[EMBEDDED](patches)[None]
        normed: Tensor = layer.attention_norm1(tokens) * scale
        return normed.view(1, 1, *light.cells(self.spec, item.request.bucket), -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        """v_pos + scale * (v_pos - v_neg)"""
        if len(velocities) == 1:
            return velocities[0]
        return velocities[0] + request.guidance_scale * (velocities[0] - velocities[1])

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps, with and without guidance, and a random condition of
        one of many lengths."""
        length = max(1, self.max_tokens - 37 * seed % self.max_tokens)
        states = seeded_noise((length, self.dims.transformer.cap_feat_dim), seed + 1)
        request = replace(probe_request(bucket), seed=seed, guidance_scale=float(seed % 2))
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.dtype),),
        )
