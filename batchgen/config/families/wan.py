"""Wan text-to-video: geometry, FLOPs and bytes from the dimensions alone.

With N video tokens, T text tokens, width d, feed-forward width f and L blocks, one forward takes
L x (8Nd^2 + 4Nd^2 + 4Td^2 + 4Ndf + 4N^2d + 4NTd): self projections, cross projections of the
video and of the text, feed-forward, self attention, cross attention. The 1.3B model at
832x480x81 comes to 283 TFLOP, the 14B model at 1280x720x81 to 6523 TFLOP.
"""

from __future__ import annotations

from itertools import pairwise

from batchgen.config.component import Component
from batchgen.config.family import Capabilities, ComponentBytes, Stride
from batchgen.config.schema import ModelSpec, VaeSpec
from batchgen.records import Bucket

NUMERICS_VERSION = 1
CAPABILITIES = Capabilities()
COMPONENTS = (
    Component("transformer", "diffusers", "WanTransformer3DModel"),
    Component("text_encoder", "transformers", "umt5"),
    Component("vae", "diffusers", "AutoencoderKLWan"),
    Component("scheduler", "scheduler"),
    Component("tokenizer", "tokenizer"),
)

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_KERNEL = 27  # taps of a 3x3x3 convolution


def stride(model: ModelSpec) -> Stride:
    """Latent cells times the patch; the rotary table bounds each axis of the token grid."""
    frames, height, width = model.transformer.patch_size
    pixels = model.vae.spatial_factor * max(height, width)
    limit = model.transformer.rope_max_seq_len
    longest = 1 + (limit * frames - 1) * model.vae.temporal_factor
    return Stride(pixels, model.vae.temporal_factor * frames, limit * pixels, longest)


def latent_shape(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Latent frames, height, width of a bucket."""
    factor = model.vae.spatial_factor
    frames = 1 + (bucket.num_frames - 1) // model.vae.temporal_factor
    return frames, bucket.height // factor, bucket.width // factor


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Video tokens of one item: latent cells divided by the patch."""
    latents = latent_shape(model, bucket)
    frames, height, width = (
        -(-cells // patch)
        for cells, patch in zip(latents, model.transformer.patch_size, strict=True)
    )
    return frames * height * width


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    n, t = float(tokens(model, bucket)), float(model.text_encoder.max_tokens)
    d, f = model.transformer.width, model.transformer.ffn_dim
    linear = 12 * n * d * d + 4 * t * d * d + 4 * n * d * f
    attention = 4 * n * n * d + 4 * n * t * d
    return model.transformer.num_layers * (linear + attention)


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of UMT5's encoder for one text, padded to its maximum length."""
    text = model.text_encoder
    inner = text.num_heads * text.d_kv
    per_token = 2 * (4 * text.d_model * inner + 3 * text.d_model * text.d_ff)
    attention = 4 * text.max_tokens * inner
    return float(text.num_layers * text.max_tokens * (per_token + attention))


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder's convolutions for one row, stage by stage from latents to pixels."""
    vae = model.vae
    frames, height, width = latent_shape(model, bucket)
    channels = [vae.base_dim * m for m in (vae.dim_mult[-1], *reversed(vae.dim_mult))]
    grows_in_time = list(reversed(vae.temperal_downsample))
    cells = float(frames * height * width)
    total = cells * _conv(vae.z_dim, channels[0]) + 4 * cells * _conv(channels[0], channels[0])
    for stage, (before, after) in enumerate(pairwise(channels)):
        inputs = before // 2 if stage else before  # up-sampling halves the channels
        total += cells * (_conv(inputs, after) + (2 * vae.num_res_blocks + 1) * _conv(after, after))
        if stage == len(channels) - 2:
            break
        if grows_in_time[stage]:
            total += cells * 2 * 3 * after * 2 * after
            frames = 1 + (frames - 1) * 2
        height, width = height * 2, width * 2
        cells = float(frames * height * width)
        total += cells * 2 * 9 * after * (after // 2)
    return total + cells * _conv(channels[-1], 3)


def _conv(inputs: int, outputs: int) -> float:
    return 2.0 * _KERNEL * inputs * outputs


def weight_bytes(model: ModelSpec) -> ComponentBytes:
    """Bytes of each component in the model's dtype."""
    size = _BYTES[model.dtype]
    return ComponentBytes(
        transformer=size * transformer_parameters(model),
        text_encoder=size * text_encoder_parameters(model),
        vae=size * vae_parameters(model.vae),
    )


def transformer_parameters(model: ModelSpec) -> int:
    """Weights of the blocks and the embeddings; biases and norms are below one percent."""
    spec = model.transformer
    d = spec.width
    patch = spec.patch_size[0] * spec.patch_size[1] * spec.patch_size[2]
    blocks = spec.num_layers * (8 * d * d + 2 * d * spec.ffn_dim)
    text = spec.text_dim * d + d * d
    time = spec.freq_dim * d + d * d + 6 * d * d
    return blocks + text + time + patch * d * (spec.in_channels + spec.out_channels)


def text_encoder_parameters(model: ModelSpec) -> int:
    """Weights of UMT5's encoder with its embedding table."""
    text = model.text_encoder
    inner = text.num_heads * text.d_kv
    block = 4 * text.d_model * inner + 3 * text.d_model * text.d_ff
    return text.num_layers * block + text.vocab_size * text.d_model


def vae_parameters(vae: VaeSpec) -> int:
    """Weights of the autoencoder: residual blocks of both halves (encoder about 3/4 of decoder)."""
    channels = [vae.base_dim * m for m in (vae.dim_mult[-1], *reversed(vae.dim_mult))]
    total = 4 * _KERNEL * channels[0] ** 2 + _KERNEL * vae.z_dim * channels[0]
    for stage, (before, after) in enumerate(pairwise(channels)):
        inputs = before // 2 if stage else before
        total += _KERNEL * (inputs * after + (2 * vae.num_res_blocks + 1) * after * after)
    return total * 7 // 4


def activation_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """The forward keeps about 12 widths and 2 feed-forward widths per token; the decoder about 6
    maps of its widest full-resolution stage for the four frames it makes at a time."""
    size = _BYTES[model.dtype]
    n = tokens(model, bucket)
    forward = n * size * (12 * model.transformer.width + 2 * model.transformer.ffn_dim)
    at_once = min(bucket.num_frames, model.vae.temporal_factor)
    decode = 6 * size * at_once * bucket.width * bucket.height * model.vae.base_dim
    video = 3 * 4 * bucket.width * bucket.height * bucket.num_frames
    return max(forward, decode + video)
