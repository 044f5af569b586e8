"""Small real models, sources and sinks for the engine's tests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from batchgen.config.schema import BatchConfig, MemoryConfig, ModelSpec, SystemConfig
from batchgen.engine.contract import EngineReport, Snapshot
from batchgen.engine.engine import Engine
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.encoders import T5Dims
from batchgen.families.family import DecodesPacks, DecodesRows
from batchgen.families.wan.autoencoder import WanVae
from batchgen.families.wan.spec import Dims, WanTransformer
from batchgen.families.wan22 import spec as wan22
from batchgen.numerics.solver import reference_scheduler
from batchgen.records import Rendered, RowStats
from batchgen.request import ModelDefaults, Request

MAX_TOKENS = 16
SMALL_T5 = {
    "vocab_size": 288,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
}
DEFAULTS = ModelDefaults(width=32, height=32, num_frames=5, fps=8, num_steps=4, guidance_scale=4.0)


def small_spec(weights: str = "random", **changes: Any) -> ModelSpec:
    """A Wan of two layers, width 128; its checkpoint is what `save_small` writes."""
    values: dict[str, Any] = {
        "name": "small",
        "family": "wan",
        "weights": weights,
        "dtype": "float32",
        "dims": Dims(
            transformer=WanTransformer(
                num_layers=2,
                num_attention_heads=4,
                attention_head_dim=32,
                ffn_dim=512,
                text_dim=32,
                freq_dim=64,
                rope_max_seq_len=64,
            ),
            vae=WanVae(base_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1),
            text_encoder=T5Dims(**SMALL_T5, max_tokens=MAX_TOKENS),
        ),
        "request_defaults": DEFAULTS,
    }
    return ModelSpec(**(values | changes))


def tiny_wan_spec() -> ModelSpec:
    """The embedded model, as its packaged YAML describes it."""
    return ModelSpec(
        name="tiny-wan",
        family="wan",
        weights="embedded",
        dtype="float32",
        dims=Dims(
            transformer=WanTransformer(
                num_layers=6,
                num_attention_heads=6,
                attention_head_dim=32,
                ffn_dim=576,
                in_channels=8,
                out_channels=8,
                text_dim=128,
                freq_dim=64,
                rope_max_seq_len=64,
            ),
            vae=WanVae(base_dim=16, z_dim=8, num_res_blocks=1),
            text_encoder=T5Dims(
                vocab_size=95,
                d_model=128,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                max_tokens=32,
            ),
        ),
        request_defaults=DEFAULTS,
    )


def two_experts(spec: ModelSpec, **changes: Any) -> ModelSpec:
    """The same with a second expert, as Wan2.2 has one."""
    parts = {f.name: getattr(spec.dims, f.name) for f in fields(spec.dims)}
    return replace(spec, family="wan22", dims=wan22.Dims(**parts), **changes)


def save_small(folder: Path, spec: ModelSpec | None = None) -> Path:
    """A checkpoint of `small_spec` with torch's own initialisation, in diffusers layout."""
    torch.manual_seed(0)
    dims = (spec or small_spec()).dims
    WanPipeline(
        tokenizer=byte_tokenizer(288),
        text_encoder=UMT5EncoderModel(UMT5Config(**stored_dims(dims.text_encoder))),
        transformer=WanTransformer3DModel(**stored_dims(dims.transformer)),
        vae=AutoencoderKLWan(**stored_dims(dims.vae)),
        scheduler=reference_scheduler("unipc", 3.0),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def system(**changes: Any) -> SystemConfig:
    """Strict, with the groups `batch` and `memory` given as dicts."""
    batch, memory = changes.pop("batch", {}), changes.pop("memory", {})
    return SystemConfig(
        **({"determinism": "strict"} | changes),
        batch=BatchConfig(**batch),
        memory=MemoryConfig(**memory),
    )


# Of a row that strict mode draws in packs on any CPU, of 16 tokens: products of fewer rows have
# other bits on some, and the self-test refuses their packs.
PACKED: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 1}


def request(index: int, **changes: Any) -> Request:
    """A short row of 32x32x5, which are 8 tokens."""
    values: dict[str, Any] = {
        "row_index": index,
        "row_id": f"row-{index}",
        "row_key": "",
        "prompt": f"prompt {index}",
        "negative_prompt": "blur",
        "seed": 1000 + index,
        "width": 32,
        "height": 32,
        "num_frames": 5,
        "fps": 8,
        "num_steps": 3,
        "guidance_scale": 4.0,
        "guidance_scale_2": None,
        "solver": "unipc",
        "sigma_shift": 3.0,
        "format": "npy",
        "quality": 8,
    }
    return Request(**(values | changes))


class ListSource:
    """Hands out a list, with the states of rows to go on, and remembers how much was asked for."""

    def __init__(
        self, requests: Iterable[Request], states: Mapping[str, Snapshot] | None = None
    ) -> None:
        self.left = list(requests)
        self.states = states or {}
        self.asked: list[int] = []

    def restore(self, request: Request) -> Snapshot | None:
        return self.states.get(request.row_id)

    def take(self, room: int) -> list[Request]:
        self.asked.append(room)
        taken, self.left = self.left[:room], self.left[room:]
        return taken


@dataclass
class Keeper:
    """Keeps what the engine delivers, with the latents that `spy_on` saw."""

    frames: dict[str, np.ndarray] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, RowStats] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    started_ids: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    states: dict[str, Snapshot] = field(default_factory=dict)
    decoded: deque[Tensor] = field(default_factory=deque)  # latents of rows on their way here
    report: EngineReport = field(default_factory=EngineReport)

    def assert_packed(self) -> None:
        """Rows did share forwards, unless this machine's kernels forbid it in strict mode."""
        largest = max(stats.batch_size_mean for stats in self.stats.values())
        assert largest > 1 or self.report.self_test == "failed"

    def assert_as_pipeline(
        self, latents: Mapping[str, Tensor], frames: Mapping[str, np.ndarray]
    ) -> None:
        """These rows are what a pipeline made of them: to the bit, but for a machine whose kernels
        fail strict mode's self-test, where they are as near as rounding allows."""
        assert self.errors == {}
        for name, theirs in latents.items():
            if self.report.self_test != "failed":
                assert torch.equal(self.latents[name], theirs), name
                assert np.array_equal(self.frames[name], frames[name]), name
            else:
                apart = float((self.latents[name] - theirs).abs().max())
                print(f"{name}: the self-test failed here; latents are {apart:.1e} apart")
                assert apart <= 1e-5, name

    def started(self, request: Request) -> None:
        self.started_ids.append(request.row_id)

    def finished(self, rendered: Rendered) -> None:
        name = rendered.request.row_id
        assert name not in self.frames and name not in self.errors
        self.threads.add(threading.current_thread().name)
        self.frames[name] = rendered.frames
        self.stats[name] = rendered.stats
        if self.decoded:
            self.latents[name] = self.decoded.popleft()

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        assert request.row_id not in self.frames and request.row_id not in self.errors
        self.states[request.row_id] = snapshot

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        assert request.row_id not in self.frames and request.row_id not in self.errors
        self.errors[request.row_id] = error
        self.stats[request.row_id] = stats


def spy_on(engine: Engine, keeper: Keeper) -> None:
    """Let the keeper see each row's latents just before they are decoded."""
    family: Any = engine.family
    decode = type(family).decode

    def spying(latents: Tensor, bucket: Any) -> Tensor:
        keeper.decoded.append(latents.clone())
        return decode(family, latents, bucket)  # type: ignore[no-any-return]

    family.decode = spying
    if isinstance(family, DecodesRows):
        of_a_row = type(family).decode_row

        def spying_a_row(latents: Tensor, row: Request) -> Tensor:
            keeper.decoded.append(latents.clone())
            return of_a_row(family, latents, row)

        family.decode_row = spying_a_row
    if isinstance(family, DecodesPacks):
        of_a_pack = type(family).decode_pack

        def spying_a_pack(latents: Sequence[Tensor], bucket: Any) -> list[Tensor]:
            keeper.decoded.extend(one.clone() for one in latents)
            return of_a_pack(family, latents, bucket)

        family.decode_pack = spying_a_pack


def draw(engine: Engine, requests: Iterable[Request]) -> Keeper:
    """Render and keep frames and latents."""
    keeper = Keeper()
    spy_on(engine, keeper)
    keeper.report = engine.render(ListSource(requests), keeper)
    return keeper


class Twin:
    """diffusers' WanPipeline over the same folder: the plain twin of the engine."""

    def __init__(self, spec: ModelSpec) -> None:
        self.max_tokens = spec.dims.text_encoder.max_tokens
        self.pipeline = WanPipeline.from_pretrained(
            spec.weights_folder, dtype=torch.float32, local_files_only=True
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, row: Request, output: str) -> Any:
        self.pipeline.scheduler = reference_scheduler(row.solver, row.sigma_shift)
        return self.pipeline(
            row.prompt,
            negative_prompt=row.negative_prompt,
            width=row.width,
            height=row.height,
            num_frames=row.num_frames,
            num_inference_steps=row.num_steps,
            guidance_scale=row.guidance_scale,
            guidance_scale_2=row.guidance_scale_2,
            generator=torch.Generator().manual_seed(row.seed),
            max_sequence_length=self.max_tokens,
            output_type=output,
        ).frames

    def latents(self, row: Request) -> Tensor:
        """(1, channels, frames, rows, columns)"""
        return self(row, "latent")

    def frames(self, row: Request) -> np.ndarray:
        """uint8 (frames, height, width, 3)"""
        return np.stack([np.asarray(image) for image in self(row, "pil")[0]])


@dataclass(frozen=True)
class Case:
    """A checkpoint, rows, and what the pipeline drew of them."""

    spec: ModelSpec
    rows: list[Request]
    twin: Keeper

    def engine(self, **changes: object) -> Engine:
        return Engine.load(self.spec, system(**changes), "cpu")

    def assert_equal(self, drawn: Keeper) -> None:
        theirs = {name: self.twin.latents[name] for name in drawn.latents}
        drawn.assert_as_pipeline(theirs, self.twin.frames)
