"""Models of real width with random weights; where time or memory is short, of fewer blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from batchgen.bench.gpu.figures import Kit
from batchgen.config.schema import (
    BatchConfig,
    CompileConfig,
    MemoryConfig,
    ModelSpec,
    SystemConfig,
)
from batchgen.engine.engine import Engine
from batchgen.engine.loading.checkpoint import meta_model
from batchgen.families.autoencoders import KlVae
from batchgen.families.dims import stored_dims
from batchgen.families.encoders import ClipDims, QwenVlDims, T5Dims
from batchgen.families.flux.spec import Dims as FluxDims
from batchgen.families.flux.spec import FluxT5, FluxTransformer
from batchgen.families.qwen_image.spec import Dims as QwenDims
from batchgen.families.qwen_image.spec import QwenImageTransformer, QwenImageVae
from batchgen.families.wan.autoencoder import WanVae
from batchgen.families.wan.spec import Dims as WanDims
from batchgen.families.wan.spec import WanTransformer
from batchgen.request import Bucket, ModelDefaults, Request, Solver

BYTES = 288  # tokens of the byte tokenizer; encoders are short, since nobody measures them


def wan(heads: int, ffn: int, layers: int, *, tiny: bool) -> ModelSpec:
    """A Wan2.1 of so many heads of 128; tiny: of 2 x 32."""
    width = 32 if tiny else 4096
    return ModelSpec(
        name=f"wan {heads}x128, {layers} blocks",
        family="wan",
        weights="random",
        dims=WanDims(
            transformer=WanTransformer(
                num_layers=layers,
                num_attention_heads=2 if tiny else heads,
                attention_head_dim=32 if tiny else 128,
                ffn_dim=64 if tiny else ffn,
                text_dim=width,
            ),
            vae=WanVae(base_dim=4 if tiny else 96, num_res_blocks=1 if tiny else 2),
            text_encoder=T5Dims(
                vocab_size=BYTES,
                d_model=width,
                d_ff=width,
                d_kv=32,
                num_heads=width // 32,
                num_layers=1,
                max_tokens=16 if tiny else 512,
            ),
        ),
        request_defaults=_defaults(832, 480, 81, "unipc"),
    )


def flux(double: int, single: int, *, tiny: bool) -> ModelSpec:
    """A FLUX.1 dev of so many blocks of each kind; tiny: of 2 heads of 16."""
    width = 32 if tiny else 4096
    heads, dim, axes = (2, 16, (4, 6, 6)) if tiny else (24, 128, (16, 56, 56))
    channels = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    return ModelSpec(
        name=f"flux.1, {double}+{single} blocks",
        family="flux",
        weights="random",
        media="image",
        dims=FluxDims(
            transformer=FluxTransformer(
                num_layers=double,
                num_single_layers=single,
                num_attention_heads=heads,
                attention_head_dim=dim,
                guidance_embeds=True,
                joint_attention_dim=width,
                axes_dims_rope=axes,
            ),
            vae=KlVae(block_out_channels=channels, norm_num_groups=min(32, channels[0])),
            text_encoder=ClipDims(vocab_size=BYTES, num_hidden_layers=1),
            text_encoder_2=FluxT5(
                vocab_size=BYTES,
                d_model=width,
                d_ff=width,
                d_kv=32,
                num_heads=width // 32,
                num_layers=1,
                max_tokens=16 if tiny else 512,
            ),
        ),
        request_defaults=_defaults(1024, 1024, 1, "euler"),
    )


def qwen(layers: int, *, tiny: bool) -> ModelSpec:
    """A Qwen-Image of so many blocks; tiny: of 2 heads of 16."""
    width = 32 if tiny else 3584
    heads, dim, axes = (2, 16, (4, 6, 6)) if tiny else (24, 128, (16, 56, 56))
    return ModelSpec(
        name=f"qwen-image, {layers} blocks",
        family="qwen_image",
        weights="random",
        media="image",
        dims=QwenDims(
            transformer=QwenImageTransformer(
                num_layers=layers,
                num_attention_heads=heads,
                attention_head_dim=dim,
                joint_attention_dim=width,
                axes_dims_rope=axes,
            ),
            vae=QwenImageVae(base_dim=4 if tiny else 96, num_res_blocks=1 if tiny else 2),
            text_encoder=QwenVlDims(
                vocab_size=BYTES,
                hidden_size=width,
                intermediate_size=width,
                num_hidden_layers=1,
                num_attention_heads=2 if tiny else 28,
                num_key_value_heads=2 if tiny else 4,
                max_tokens=80 if tiny else 512,
                vision_depth=1,
                vision_width=16,
                vision_inner=16,
                vision_heads=2,
                vision_out=width,
            ),
        ),
        request_defaults=_defaults(1024, 1024, 1, "euler"),
    )


def _defaults(width: int, height: int, frames: int, solver: Solver) -> ModelDefaults:
    return ModelDefaults(
        width=width,
        height=height,
        num_frames=frames,
        fps=16,
        num_steps=50,
        guidance_scale=5.0,
        solver=solver,
    )


def engine(
    kit: Kit,
    spec: ModelSpec,
    *,
    memory: MemoryConfig | None = None,
    compile: CompileConfig | None = None,
    strict: bool = False,
) -> Engine:
    """At work on the kit's device, one row at a time."""
    system = SystemConfig(
        determinism="strict" if strict else "throughput",
        memory=memory or MemoryConfig(mode="resident"),
        compile=compile or CompileConfig(),
        batch=BatchConfig(max_rows_in_flight=1),
    )
    made = Engine.load(spec, system, str(kit.device))
    made.replica.residency.use("transformer")
    return made


def eager_twin(made: Engine) -> Any:
    """diffusers' own transformer over the same tensors, with nothing of ours on it."""
    ours: Any = made.family.modules["transformer"]
    family: Any = made.family
    twin: nn.Module = meta_model(type(ours), stored_dims(family.spec.dims.transformer))
    twin.load_state_dict(ours.state_dict(), assign=True)
    return twin.to(made.device).eval().requires_grad_(False)


def clip(kit: Kit, frames: int = 81) -> Bucket:
    """480p, or the smallest."""
    return Bucket(64, 64, 5) if kit.tiny else Bucket(832, 480, frames)


def still(kit: Kit, side: int) -> Bucket:
    return Bucket(64, 64, 1) if kit.tiny else Bucket(side, side, 1)


def row(number: int, bucket: Bucket, solver: Solver, steps: int, **changes: Any) -> Request:
    """A request of that size."""
    plain = Request(
        row_index=number,
        row_id=f"row-{number}",
        row_key="",
        prompt=f"a bench, seen from place {number}",
        negative_prompt="blur",
        seed=number,
        width=bucket.width,
        height=bucket.height,
        num_frames=bucket.num_frames,
        fps=16,
        num_steps=steps,
        guidance_scale=5.0,
        guidance_scale_2=None,
        solver=solver,
        sigma_shift=3.0 if solver == "unipc" else 1.0,
        format="npy",
        quality=8,
    )
    return replace(plain, **changes)
