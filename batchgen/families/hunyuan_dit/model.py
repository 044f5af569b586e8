"""HunyuanDiT: HunyuanDiT2DModel, AutoencoderKL, BERT and mT5.

With equal seed and settings it gives what diffusers' HunyuanDiTPipeline gives at the size that is
asked for (`use_resolution_binning=False`). That runs both branches of a guided row as one forward;
edges see each item as in such a batch. The image is told to have been 1024x1024, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import Tensor, nn

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.dims import stored_dims
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.hunyuan_dit import spec as light
from batchgen.families.hunyuan_dit.attention import ImageAttention
from batchgen.families.image_model import StillModel
from batchgen.families.sequence import Attends, Crosses, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.numerics.around import Run, surround
from batchgen.numerics.diffusion import ddpm_steps
from batchgen.numerics.edges import in_batches, split_by_items
from batchgen.numerics.guidance import classifier_free, rescaled
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.solver import Schedule, StepCoefs
from batchgen.request import Bucket, Request

BASE = 512  # pixels along a side of the grid in which places are told
ORIGINAL = (1024.0, 1024.0)  # size that the image is told to have had
SEQUENCE = SequencePlan(
    cuts=(
        Cut("", "image_rotary_emb", "image", dim=0),  # cosines and sines of each token's place
        Cut("blocks.0", "hidden_states", "image", dim=1),
    ),
    attends=(Attends("blocks.*.attn1", ("image",)),),
    crosses=(Crosses("blocks.*.attn2", "image"),),
    gather=Cut("proj_out", 0, "image", dim=1),
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> HunyuanDit:
    """Make a HunyuanDiT from its loaded components."""
    return tiled(HunyuanDit(spec, components, device), system.vae)


@lru_cache(maxsize=512)
def ddpm_schedule(scheduler: light.DdpmScheduler, steps: int) -> Schedule:
    """The checkpoint's scheduler over `steps` steps."""
    source = DDPMScheduler(**stored_dims(scheduler))
    source.set_timesteps(steps)
    levels = [float((1 - source.alphas_cumprod[t]) ** 0.5) for t in source.timesteps]
    sigmas = torch.tensor([*levels, 0.0])
    coefs = [StepCoefs(s, diffusion=d) for s, d in zip(sigmas, ddpm_steps(source), strict=False)]
    return Schedule("ddpm", source.timesteps.float(), sigmas, tuple(coefs))


class HunyuanDit(StillModel):
    """A HunyuanDiT (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        self.tokenizers: Any = components.get("tokenizer"), components.get("tokenizer_2")
        self.encoders: Any = components.get("text_encoder"), components.get("text_encoder_2")
        for block in self.transformer.blocks[:]:  # of a stack, too
            block.attn1.set_processor(ImageAttention())
            block.attn2.set_processor(ImageAttention())
        split_by_items(self.transformer.time_extra_emb)
        _join([*self.transformer.blocks[:]])

    # ------------------------------------------------------------------------------------- texts
    def tokenize(self, text: str) -> Tokens:
        """Token ids and masks for BERT and for T5, each padded and cut to its maximum; `count` is
        T5's."""
        spec, inputs = self.dims.transformer, list[Tensor]()
        count = len(self.tokenizers[1](text, verbose=False).input_ids)
        for tokenizer, most in zip(self.tokenizers, (spec.text_len, self.max_tokens), strict=True):
            cut = tokenizer(
                [text],
                padding="max_length",
                max_length=most,
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            inputs += [cut.input_ids, cut.attention_mask]
        return Tokens(tuple(inputs), count, count > self.max_tokens)

    def encode(self, tokens: Tokens) -> Condition:
        """BERT's states (1, tokens, width) and mask, T5's states and mask."""
        ids, mask, ids_2, mask_2 = (x.to(self.device) for x in tokens.inputs)
        bert = self.encoders[0](ids, attention_mask=mask)[0]
        t5 = self.encoders[1](ids_2, attention_mask=mask_2)[0]
        return bert.to(self.dtype), mask, t5.to(self.dtype), mask_2

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """Noise (1, channels, rows, columns)."""
        spec, cells = self.dims.transformer, light.cells(self.spec, request.bucket)
        height, width = (spec.patch_size * n for n in cells)
        return seeded_noise((1, spec.in_channels, height, width), request.seed).to(self.dtype)

    def schedule(self, request: Request) -> Schedule:
        return ddpm_schedule(self.dims.scheduler, request.num_steps)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep. The second half of what it
        draws, the spread, is not used."""
        bert, mask, t5, mask_2 = (
            torch.cat([item.condition[n] for item in items]) for n in range(4)
        )
        with in_batches([self.branches(item.request) for item in items]):
            drawn = self.transformer(
                torch.cat([item.latents for item in items]),
                self._times(items),
                encoder_hidden_states=bert,
                text_embedding_mask=mask,
                encoder_hidden_states_t5=t5,
                text_embedding_mask_t5=mask_2,
                image_rotary_emb=self._places(items[0].request.bucket),
                return_dict=False,
                **self._told(items),
            )[0]
        return list(drawn.chunk(2, dim=1)[0].split(1))

    def _times(self, items: Sequence[Item]) -> Tensor:
        return self.timesteps(items).to(self.dtype)

    def _told(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Sizes and style, of each item."""
        bucket = items[0].request.bucket
        sizes = torch.tensor([[*ORIGINAL, bucket.height, bucket.width, 0, 0]] * len(items))
        return {
            "image_meta_size": sizes.to(self.device, self.dtype),
            "style": torch.zeros(len(items), dtype=torch.long, device=self.device),
        }

    def _places(self, bucket: Bucket) -> Any:
        """Cosines and sines of each token's place, in a grid of the base size."""
        spec, cells = self.dims.transformer, light.cells(self.spec, bucket)
        base = BASE // 8 // spec.patch_size
        crops = get_resize_crop_region_for_grid(cells, base)
        return get_2d_rotary_pos_embed(
            spec.attention_head_dim, crops, cells, device=self.device, output_type="pt"
        )

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations. Each block projects the embedding by itself:
        `projected` is the embedding, which holds timestep, sizes and pooled text."""
        with in_batches([self.branches(item.request)]):
            times, told = self._times([item]), self._told([item])
            embedded: Tensor = self.transformer.time_extra_emb(
                times, item.condition[2], *told.values(), hidden_dtype=times.dtype
            )
            if kind != "embedded":
                return embedded
            tokens = self.transformer.pos_embed(item.latents)
            normed: Tensor = self.transformer.blocks[0].norm1(tokens, embedded)
        return normed.view(1, 1, *light.cells(self.spec, item.request.bucket), -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        guided = classifier_free(velocities, request.guidance_scale)
        if len(velocities) == 1 or request.guidance_rescale == 0:
            return guided
        return rescaled(guided, velocities[0], request.guidance_rescale)

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps, with and without guidance, and a random condition."""
        spec, condition = self.dims.transformer, list[Tensor]()
        for length, width in (
            (spec.text_len, spec.cross_attention_dim),
            (spec.text_len_t5, spec.cross_attention_dim_t5),
        ):
            states = seeded_noise((1, length, width), seed + width)
            mask = (torch.arange(length) < length - seed)[None].long()
            condition += [states.to(self.device, self.dtype), mask.to(self.device)]
        request = replace(probe_request(bucket), seed=seed, guidance_scale=1.0 + seed % 2)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=tuple(condition),
        )


def _join(blocks: Sequence[nn.Module]) -> None:
    """Let the blocks of the second half take what those of the first have made, last first, by
    themselves: where they are called as one stack, nobody else hands it on."""
    made: list[Tensor] = []
    for number, block in enumerate(blocks):
        if number < len(blocks) // 2 - 1:
            surround(block, partial(_giving, made=made, begins=number == 0))
        elif number > len(blocks) // 2:
            surround(block, partial(_taking, made=made))


def _giving(run: Run, made: list[Tensor], begins: bool) -> Run:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        if begins:  # what a forward has left that failed
            made.clear()
        found: Tensor = run(*args, **kwargs)
        made.append(found)
        return found

    return forward


def _taking(run: Run, made: list[Tensor]) -> Run:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = run(*args, **kwargs | {"skip": made.pop()})
        return found

    return forward
