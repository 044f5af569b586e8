"""Qwen-Image: QwenImageTransformer2DModel, AutoencoderKLQwenImage, Qwen2.5-VL.

With equal seed and settings it gives what diffusers' QwenImagePipeline gives. A text is as long as
it is; texts of a pack attend as if each were alone. Guidance keeps the length of each token's
velocity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item, Tokens, probe_request
from batchgen.families.flow import dynamic_shift
from batchgen.families.image_model import StillModel
from batchgen.families.qwen_image import spec as light
from batchgen.families.schedules import flow_schedule
from batchgen.families.sequence import Attends, Cut, SequencePlan
from batchgen.families.tiling import tiled
from batchgen.families.wan import decoder
from batchgen.numerics.guidance import classifier_free
from batchgen.numerics.noise import seeded_noise
from batchgen.numerics.own_tokens import OwnTokens
from batchgen.numerics.pixels import to_frames
from batchgen.numerics.solver import Schedule
from batchgen.request import Bucket, Request

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
MOST = 1024  # tokens that the language model sees of a text, of which `max_tokens` are used
SEQUENCE = SequencePlan(
    cuts=(
        Cut("transformer_blocks.0", "hidden_states", "image", dim=1),
        Cut("transformer_blocks.0", "encoder_hidden_states", "text", dim=1),
        Cut("pos_embed", 0, "image", dim=0),
        Cut("pos_embed", 1, "text", dim=0),
    ),
    attends=(Attends("transformer_blocks.*.attn", ("text", "image")),),
    gather=Cut("proj_out", 0, "image", dim=1),
    text=0,
)


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> QwenImage:
    """Make a Qwen-Image from its loaded components."""
    return tiled(QwenImage(spec, components, device), system.vae)


class QwenImage(StillModel):
    """A Qwen-Image (`batchgen.families.family.FamilyModel`)."""

    sequence = SEQUENCE
    signals_alike = True

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.dims = light.dims(spec)
        self.tokenizer: Any = components.get("tokenizer")
        self.text_encoder: Any = components.get("text_encoder")
        self.own = OwnTokens(
            "diffusers.models.transformers.transformer_qwenimage", _of_the_text(self.transformer)
        )

    # ------------------------------------------------------------------------------------- texts
    def tokenize(self, text: str) -> Tokens:
        """Token ids of the text in its template; `count` is without what stands before it."""
        start = self._start()
        whole = self.tokenizer(TEMPLATE.format(text), verbose=False).input_ids
        ids = torch.tensor([whole[: MOST + start]])
        count = len(whole) - start
        return Tokens((ids,), count, count > self.max_tokens)

    def _start(self) -> int:
        """Tokens of the template before the prompt: 34 with the published tokenizer."""
        before = TEMPLATE.split("{}")[0]
        return len(self.tokenizer(before, add_special_tokens=False, verbose=False).input_ids)

    def encode(self, tokens: Tokens) -> Condition:
        """Hidden states of the text, (1, n, width), without the template before it."""
        (ids,) = tokens.inputs
        ids = ids.to(self.device)
        language = self.text_encoder.model.language_model
        states = language(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        start = self._start()
        return (states[:, start : start + self.max_tokens].to(self.dtype, copy=True),)

    # ----------------------------------------------------------------------------------- denoise
    def initial_latents(self, request: Request) -> Tensor:
        """Noise drawn as (1, 1, channels, rows, columns), then packed 2x2."""
        height, width = light.cells(self.spec, request.bucket)
        channels = self.dims.transformer.in_channels // 4
        noise = seeded_noise((1, 1, channels, 2 * height, 2 * width), request.seed)
        packed = noise.view(1, channels, height, 2, width, 2).permute(0, 2, 4, 1, 3, 5)
        return packed.reshape(1, height * width, 4 * channels).to(self.dtype)

    def schedule(self, request: Request) -> Schedule:
        scheduler = self.dims.scheduler
        mu = dynamic_shift(scheduler, light.image_tokens(self.spec, request.bucket))
        return flow_schedule(scheduler, request.sigma_shift, request.num_steps, mu)

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """One transformer forward; each item has its own timestep and its own number of text
        tokens."""
        texts = [item.condition[0] for item in items]
        grid = (1, *light.cells(self.spec, items[0].request.bucket))
        with self.own.of(texts):
            velocity = self.transformer(
                hidden_states=torch.cat([item.latents for item in items]),
                timestep=self._times(items),
                encoder_hidden_states=self.own.padded(texts),
                img_shapes=[[grid]] * len(items),
                return_dict=False,
            )[0]
        return list(velocity.split(1))

    def own_tokens(self, item: Item) -> int:
        """See `batchgen.engine.reuse.blocks.FillsUp`."""
        return light.image_tokens(self.spec, item.request.bucket) + item.condition[0].shape[1]

    def _times(self, items: Sequence[Item]) -> Tensor:
        """Timesteps, of 1."""
        return self.timesteps(items).to(self.dtype) / 1000

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """In the transformer's order of operations. Each block projects the embedding by itself:
        `projected` is the embedding."""
        tokens = self.transformer.img_in(item.latents)
        embedded: Tensor = self.transformer.time_text_embed(self._times([item]), tokens)
        if kind != "embedded":
            return embedded
        block = self.transformer.transformer_blocks[0]
        modulation = block.img_mod(embedded).chunk(2, dim=-1)[0]
        normed: Tensor = block._modulate(block.img_norm1(tokens), modulation)[0]
        height, width = light.cells(self.spec, item.request.bucket)
        return normed.view(1, 1, height, width, -1)

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        """Guided, with each token's velocity as long as the prompt's."""
        guided = classifier_free(velocities, request.true_cfg_scale)
        if len(velocities) == 1:
            return guided
        drawn = torch.norm(velocities[0], dim=-1, keepdim=True)
        return guided * (drawn / torch.norm(guided, dim=-1, keepdim=True))

    # ------------------------------------------------------------------------------------ decode
    def images(self, latents: Tensor, bucket: Bucket) -> list[Tensor]:
        height, width = light.cells(self.spec, bucket)
        items, channels = len(latents), latents.shape[2] // 4
        image = latents.view(items, height, width, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        image = image.reshape(items, channels, 1, 2 * height, 2 * width).to(self.vae.dtype)
        config, like = self.vae.config, (1, -1, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(like).to(image.device, image.dtype)
        inverse = 1.0 / torch.tensor(config.latents_std).view(like).to(image.device, image.dtype)
        unscaled = image / inverse + mean
        if self.tiling is None:
            return [to_frames(each) for each in decoder.decode(self.vae, unscaled)]
        tiled = [decoder.decode_tiled(self.vae, one, self.tiling) for one in unscaled.split(1)]
        return [to_frames(each[0]) for each in tiled]

    # ------------------------------------------------------------------------------------ probes
    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Noise with one of many timesteps and a random condition of one of many lengths."""
        length = max(1, self.max_tokens - 5 * seed % self.max_tokens)
        states = seeded_noise((1, length, self.dims.transformer.joint_attention_dim), seed + 1)
        request = replace(probe_request(bucket), seed=seed)
        return Item(
            request=request,
            latents=self.initial_latents(request).to(self.device),
            timestep=float(999 - 137 * seed % 999),
            condition=(states.to(self.device, self.dtype),),
        )


def _of_the_text(transformer: Any) -> list[nn.Module]:
    """Modules that see rows of the text alone."""
    found = [transformer.txt_in]
    for block in transformer.transformer_blocks[:]:  # of a stack, too
        attention = block.attn
        found += [attention.add_q_proj, attention.add_k_proj, attention.add_v_proj]
        found += [attention.to_add_out, block.txt_mlp]
    return found
