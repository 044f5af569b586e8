"""Published times of engines that share one row over many GPUs, with their sources."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.config.schema import DeviceConfig
from batchgen.planning.pricing.timemodel import Shape
from batchgen.request import Bucket


@dataclass(frozen=True)
class Run:
    """One row on cfg x ulysses x ring GPUs."""

    seconds: float
    cfg: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def gpus(self) -> int:
        return self.cfg * self.ulysses * self.ring


@dataclass(frozen=True)
class Table:
    """Times of one model at one size. `evaluations`: forwards of one item; 1 where the times are
    those of one forward."""

    source: str
    model: str | Shape  # a preset, or what is known of a model that has none
    bucket: Bucket
    evaluations: int
    alone_s: float
    device: DeviceConfig
    runs: tuple[Run, ...]
    whole: bool = True  # text and decoding are in the times


# Rates of large products as measured, links in one direction: NVLink of the H20 is the H100's, of
# the A800 and H800 less than half; a 4090 has PCIe and goes through host memory.
H100 = DeviceConfig(name="h100", matmul_tflops=700, link_gbs=400, nic_gbs=50)
H20 = DeviceConfig(name="h20", matmul_tflops=135, link_gbs=400, nic_gbs=50)
A800 = DeviceConfig(name="a800", matmul_tflops=270, link_gbs=180, nic_gbs=25)
H800 = DeviceConfig(name="h800", matmul_tflops=700, link_gbs=180, nic_gbs=50)
RTX4090 = DeviceConfig(name="4090", matmul_tflops=160, link_gbs=12, nic_gbs=3)

HD, SD = Bucket(1280, 720, 81), Bucket(832, 480, 81)
WAN21, WAN22 = "Wan-Video/Wan2.1:assets/comp_effic.png", "Wan-Video/Wan2.2:assets/comp_effic.png"
CHITU = "thu-pacman/ChituDiffusion:ChituBench"
XDIT_FLUX = "xdit-project/xDiT:docs/performance/flux.md"
XDIT_HUNYUAN = "xdit-project/xDiT:docs/performance/hunyuanvideo.md"
LIGHTX2V = "ModelTC/LightX2V:README.md"

# Shared by Ulysses over all GPUs; each GPU has a part of the weights and gathers them as it goes.
HELD = (
    Table(
        f"{WAN21}, 14B 720p H100", "wan2.1-t2v-14b", HD, 100, 1837.9, H100,
        (Run(945.1, ulysses=2), Run(497.0, ulysses=4), Run(287.9, ulysses=8)),
    ),
    Table(
        f"{WAN21}, 14B 720p A800", "wan2.1-t2v-14b", HD, 100, 3342.6, A800,
        (Run(1722.0, ulysses=2), Run(886.0, ulysses=4), Run(469.9, ulysses=8)),
    ),
    Table(
        f"{WAN21}, 14B 720p H20", "wan2.1-t2v-14b", HD, 100, 6935.5, H20,
        (Run(3488.0, ulysses=2), Run(1776.0, ulysses=4), Run(980.5, ulysses=8)),
    ),
    Table(
        f"{WAN22}, A14B 720p H100", "wan2.2-t2v-a14b", HD, 80, 1041.5, H100,
        (Run(288.7, ulysses=4), Run(155.1, ulysses=8)),
    ),
    Table(
        f"{WAN22}, A14B 480p H100", "wan2.2-t2v-a14b", SD, 80, 326.9, H100,
        (Run(91.7, ulysses=4), Run(51.5, ulysses=8)),
    ),
    Table(
        f"{CHITU}, Wan2.1 1.3B 480p H20, denoising alone", "wan2.1-t2v-1.3b", SD, 100, 311.4, H20,
        (
            Run(155.7, cfg=2), Run(161.5, ulysses=2), Run(80.9, cfg=2, ulysses=2),
            Run(42.9, cfg=2, ulysses=4), Run(46.8, ulysses=4, ring=2),
            Run(24.3, cfg=2, ulysses=4, ring=2),
        ),
        whole=False,
    ),
)  # fmt: skip

# HunyuanVideo at 1280x720x129: 118,800 tokens of video and 256 of text in 60 blocks; Qwen-Image at
# 2048x2048: 16,384 tokens and about 100 of text in 60 blocks.
_HUNYUAN = Shape(119_056, 3072, 24, 60, element=2, attention=0.87)
_QWEN = Shape(16_484, 3072, 24, 60, element=2, attention=0.47)
_IMAGE = Bucket(1024, 1024, 1)


def _per_step(engine: str, alone: float, eight: float) -> Table:
    """Seconds of a step with both branches, 14B at 480p."""
    source, run = f"{LIGHTX2V}, {engine} I2V 14B 480p H100", Run(eight, ulysses=8)
    return Table(source, "wan2.1-t2v-14b", SD, 2, alone, H100, (run,), whole=False)


REPORTED = (
    Table(
        f"{WAN21}, 1.3B 480p 4090", "wan2.1-t2v-1.3b", SD, 100, 261.4, RTX4090,
        (Run(188.5, ring=2), Run(120.8, ring=4), Run(112.3, ring=8)),
    ),
    Table(
        f"{XDIT_FLUX}, FLUX.1-dev 1024 compiled H100", "flux.1-dev", _IMAGE, 28, 4.30, H100,
        (
            Run(2.68, ulysses=2), Run(2.60, ring=2), Run(1.80, ulysses=2, ring=2),
            Run(1.63, ulysses=4), Run(1.98, ring=4),
        ),
    ),
    Table(
        f"{XDIT_HUNYUAN}, 720p H100", _HUNYUAN, HD, 50, 1904.0, H100,
        (Run(925.0, ulysses=2), Run(514.0, ulysses=4), Run(338.0, ulysses=8)), whole=False,
    ),
    Table(
        f"{XDIT_HUNYUAN}, 720p H20", _HUNYUAN, HD, 50, 6639.0, H20,
        (Run(3400.0, ulysses=2), Run(1763.0, ulysses=4), Run(941.0, ulysses=8)), whole=False,
    ),
    Table(
        "vLLM-Omni, Qwen-Image 2048 H800", _QWEN, _IMAGE, 100, 112.5, H800,
        (Run(65.2, ulysses=2), Run(39.6, ulysses=4), Run(30.8, ulysses=8)), whole=False,
    ),
    _per_step("LightX2V", 5.18, 0.75),
    _per_step("SGLang", 6.13, 1.19),
    _per_step("FastVideo", 7.35, 2.94),
    _per_step("xDiT", 8.93, 2.70),
)  # fmt: skip
