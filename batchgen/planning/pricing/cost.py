"""Predicted device seconds of a row: FLOPs over a device's figures, scaled by what was measured.

    seconds = steps x branches x forward + encode + decode (+ images)
    forward = FLOPs / (efficiency x peak) + layers x launch

The efficiencies are shares of the measured matmul rate that well-kept engines reach: transformer
blocks 0.55 (published: 0.45 to 0.75), causal 3D convolutions of the decoder 0.16 (2.2 s for Wan at
832x480x81 on an H100), and so those of the encoder of images. Small models are bound by the launch
of their kernels instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from batchgen.config.capability import served_by, shared_tiles
from batchgen.config.schema import DeviceConfig, JobConfig, ModelSpec
from batchgen.config.stages import stages_of
from batchgen.families.components import component_bytes
from batchgen.families.family import STAGES, Stage, family_spec
from batchgen.families.tiling import TiledDecoder, Tiling, tiling_of
from batchgen.families.vision import SeesImages
from batchgen.request import Bucket

_TRANSFORMER_EFFICIENCY = 0.55
_DECODER_EFFICIENCY = 0.16
_IMPORT_S = 15.0  # process start, imports, first kernels
_LOAD_BYTES_PER_S = 1.5e9
LAUNCH_S = 2e-4  # one transformer block's kernels, when nothing else bounds them


@dataclass(frozen=True, slots=True)
class Factors:
    """Measured over predicted seconds by stage; 1 = the device profile's figures as they are."""

    denoise: float = 1.0
    decode: float = 1.0
    encode: float = 1.0


@dataclass(frozen=True, slots=True)
class FactorTable:
    """Factors of the shapes that were measured, and of all others."""

    general: Factors = Factors()
    by_bucket: Mapping[Bucket, Factors] = field(default_factory=dict)

    def of(self, bucket: Bucket) -> Factors:
        """The factors for a bucket."""
        return self.by_bucket.get(bucket, self.general)


UNMEASURED = FactorTable()


@dataclass(frozen=True, slots=True)
class BucketSeconds:
    """Predicted seconds of the parts of a row in one bucket."""

    forward: float  # one branch of one step
    encode: float  # one text
    decode: float
    images: float = 0.0  # what a row is given, if it is

    def per_row(self) -> tuple[float, float, float, float]:
        """Seconds of one evaluation (one step of one branch), of its text, of decoding, and of its
        images."""
        return self.forward, self.encode, self.decode, self.images


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds for one model on one device."""

    model: ModelSpec
    device: DeviceConfig
    factors: FactorTable = UNMEASURED
    tiling: Tiling | None = None  # of decodes
    stages: tuple[Stage, ...] = STAGES  # that rows go through; the others cost nothing
    ranks: int = 1  # that have some of a row's tiles each

    def bucket(self, bucket: Bucket) -> BucketSeconds:
        """Seconds of one forward, one text, one decode and one row's images in a bucket."""
        family = family_spec(self.model.family)
        peak = self.device.matmul_tflops * 1e12
        layers = family.layers(self.model)
        forward = family.forward_flops(self.model, bucket) / (_TRANSFORMER_EFFICIENCY * peak)
        decode = family.decode_flops(self.model, bucket) / (_DECODER_EFFICIENCY * peak)
        if (tiles := served_by(self.model).tiles) and self.tiling:
            decode *= self.tiling.work(bucket, tiles.factor, self.ranks)
        encode = family.encode_flops(self.model) / (_TRANSFORMER_EFFICIENCY * peak)
        images = 0.0
        if isinstance(family, SeesImages):
            images = family.image_flops(self.model, bucket) / (_DECODER_EFFICIENCY * peak)
        factors = self.factors.of(bucket)
        return BucketSeconds(
            forward=(forward + layers * LAUNCH_S) * factors.denoise * ("denoise" in self.stages),
            encode=encode * factors.encode * ("encode" in self.stages),
            decode=decode * factors.decode * ("decode" in self.stages),
            images=images * factors.encode * ("encode" in self.stages),
        )


def cost_of(job: JobConfig, factors: FactorTable = UNMEASURED, ranks: int = 1) -> CostModel:
    """Of the rows of a job, for a replica of so many ranks."""
    tiling, ranks = tiling_of(job.system.vae), ranks if tiles_of_ranks(job) else 1
    return CostModel(job.model, job.slurm.device, factors, tiling, stages_of(job), ranks)


def tiles_of_ranks(job: JobConfig) -> tuple[Tiling, TiledDecoder] | None:
    """See `shared_tiles`."""
    return shared_tiles(job.model, job.system.vae, stages_of(job))


def start_up_seconds(job: JobConfig, measured: float | None = None) -> float:
    """Process start and loading of the weights, before a shard's first row: as the profile says,
    or else as earlier attempts `measured` it, or else an estimate."""
    if job.slurm.start_up_s is not None:
        return job.slurm.start_up_s
    if measured is not None:
        return measured
    weights = component_bytes(job.model)
    return _IMPORT_S + sum(map(weights.of, stages_of(job))) / _LOAD_BYTES_PER_S
