"""Models that a CPU draws with in milliseconds, of the architecture of large ones."""

from __future__ import annotations

from collections.abc import Callable

from batchgen.config.schema import BatchConfig, ModelSpec, SystemConfig
from batchgen.engine.engine import Engine
from batchgen.families.autoencoders import KlVae
from batchgen.families.encoders import ClipDims, QwenVlDims, T5Dims
from batchgen.families.flux.spec import Dims as FluxDims
from batchgen.families.flux.spec import FluxT5, FluxTransformer
from batchgen.families.qwen_image.spec import Dims as QwenDims
from batchgen.families.qwen_image.spec import QwenImageTransformer, QwenImageVae
from batchgen.families.wan.autoencoder import WanVae
from batchgen.families.wan.spec import Dims as WanDims
from batchgen.families.wan.spec import WanTransformer
from batchgen.request import ModelDefaults
from batchgen.tiny.calibration import preset

BYTES = 288  # tokens of the byte tokenizer; encoders are short, since nobody measures them
CLIP = ModelDefaults(width=64, height=64, num_frames=9, fps=8, num_steps=20, guidance_scale=3.0)
STILL = ModelDefaults(
    width=64,
    height=64,
    num_frames=1,
    fps=1,
    num_steps=20,
    guidance_scale=3.5,
    solver="euler",
    sigma_shift=1.0,
)


def models() -> dict[str, Callable[[], ModelSpec]]:
    """By the names that tables have."""
    return {
        "tiny-wan": preset,
        "Wan, width 512": wan,
        "FLUX.1, width 384": flux,
        "Qwen-Image, width 384": qwen,
    }


def engine(spec: ModelSpec) -> Engine:
    """At work on the CPU, with the engine's own choices."""
    made = Engine.load(spec, SystemConfig(batch=BatchConfig()), "cpu")
    made.replica.residency.use("transformer")
    return made


def wan() -> ModelSpec:
    """Four blocks of 8 heads of 64."""
    return ModelSpec(
        name="wan-512",
        family="wan",
        weights="random",
        dtype="float32",
        dims=WanDims(
            transformer=WanTransformer(
                num_layers=4,
                num_attention_heads=8,
                attention_head_dim=64,
                ffn_dim=1408,
                text_dim=64,
            ),
            vae=WanVae(base_dim=4, num_res_blocks=1),
            text_encoder=T5Dims(
                vocab_size=BYTES,
                d_model=64,
                d_ff=64,
                d_kv=16,
                num_heads=4,
                num_layers=1,
                max_tokens=64,
            ),
        ),
        request_defaults=CLIP,
    )


def flux() -> ModelSpec:
    """Two and four blocks of 6 heads of 64."""
    return ModelSpec(
        name="flux-384",
        family="flux",
        weights="random",
        dtype="float32",
        media="image",
        dims=FluxDims(
            transformer=FluxTransformer(
                num_layers=2,
                num_single_layers=4,
                num_attention_heads=6,
                attention_head_dim=64,
                guidance_embeds=True,
                joint_attention_dim=64,
                axes_dims_rope=(16, 24, 24),
            ),
            vae=KlVae(block_out_channels=(8, 8, 8, 8), norm_num_groups=8),
            text_encoder=ClipDims(vocab_size=BYTES, num_hidden_layers=1),
            text_encoder_2=FluxT5(
                vocab_size=BYTES,
                d_model=64,
                d_ff=64,
                d_kv=16,
                num_heads=4,
                num_layers=1,
                max_tokens=64,
            ),
        ),
        request_defaults=STILL,
    )


def qwen() -> ModelSpec:
    """Four blocks of 6 heads of 64."""
    return ModelSpec(
        name="qwen-384",
        family="qwen_image",
        weights="random",
        dtype="float32",
        media="image",
        dims=QwenDims(
            transformer=QwenImageTransformer(
                num_layers=4,
                num_attention_heads=6,
                attention_head_dim=64,
                joint_attention_dim=64,
                axes_dims_rope=(16, 24, 24),
            ),
            vae=QwenImageVae(base_dim=4, num_res_blocks=1),
            text_encoder=QwenVlDims(
                vocab_size=BYTES,
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_tokens=98,
                vision_depth=1,
                vision_width=16,
                vision_inner=16,
                vision_heads=2,
                vision_out=64,
            ),
        ),
        request_defaults=STILL,
    )
