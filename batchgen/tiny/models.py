"""The architecture of ``tiny-wan``: diffusers' Wan classes at a size that suits one CPU core."""

from __future__ import annotations

import types

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

LATENT_CHANNELS = 8
TEXT_WIDTH = 128
TEXT_LENGTH = 32


def make_vae() -> AutoencoderKLWan:
    """Untrained causal video autoencoder: 8x in space, 4x in time, ``LATENT_CHANNELS`` channels."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def make_transformer() -> WanTransformer3DModel:
    """Untrained denoiser of 3.5M parameters over 1x2x2 latent patches."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=576,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def make_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Untrained two-layer UMT5 encoder, trained jointly with the transformer."""
    config = UMT5Config(
        vocab_size=vocabulary_size,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
    )
    return UMT5EncoderModel(config)


def skip_zero_work(vae: AutoencoderKLWan) -> None:
    """Replace slow parts of the autoencoder, for training, by faster ones that agree to rounding.

    A causal convolution over a single first frame multiplies two of its three time taps with
    padding, and the norm uses a slow CPU kernel.
    """
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.forward = types.MethodType(_causal_conv, module)
        elif isinstance(module, WanRMS_norm) and module.channel_first:
            module.forward = types.MethodType(_rms_norm, module)


def _causal_conv(conv: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    if cache_x is None and x.shape[2] == 1 and conv.kernel_size[0] == 3 and conv._padding[4] == 2:
        weight = conv.weight[:, :, -1]
        return F.conv2d(
            x[:, :, 0], weight, conv.bias, conv.stride[1:], conv._padding[2:4][:1] * 2
        ).unsqueeze(2)
    return WanCausalConv3d.forward(conv, x, cache_x)


def _rms_norm(norm: WanRMS_norm, x: Tensor) -> Tensor:
    inverse = torch.rsqrt(x.float().square().sum(1, keepdim=True) + 1e-12) * norm.scale
    return x * inverse.to(x.dtype) * norm.gamma + norm.bias
