"""The README's table of what runs in which memory, made from the plans of packaged models.

`python -m batchgen.planning.memory_table` prints it; with a file's name it renews the table there,
between the lines that begin and end it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from batchgen.config.capability import with_tiles
from batchgen.config.schema import (
    STORE_DTYPES,
    DeviceConfig,
    JobConfig,
    MemoryConfig,
    ModelSpec,
    SlurmConfig,
    StoreDType,
    SystemConfig,
    VaeConfig,
)
from batchgen.families.table import placed, presets, print_or_renew
from batchgen.planning.pricing.memory import GIB, need_of
from batchgen.records import MemoryMode
from batchgen.request import Bucket

BEGIN, END = (
    "<!-- memory: python -m batchgen.planning.memory_table README.md -->",
    "<!-- memory end -->",
)
MODES: tuple[MemoryMode, ...] = ("resident", "model", "stream")
MODELS = {  # what it is called there, and in which size
    "flux.1-dev": ("FLUX.1", Bucket(1024, 1024, 1)),
    "wan2.1-t2v-1.3b": ("Wan2.1 1.3B", Bucket(832, 480, 81)),
    "wan2.1-t2v-14b": ("Wan2.1 14B", Bucket(832, 480, 81)),
    "wan2.2-t2v-a14b": ("Wan2.2 A14B", Bucket(832, 480, 81)),
    "qwen-image": ("Qwen-Image", Bucket(1328, 1328, 1)),
    "sd3.5-large": ("Stable Diffusion 3.5 large", Bucket(1024, 1024, 1)),
    "z-image": ("Z-Image", Bucket(1024, 1024, 1)),
    "hunyuan-video": ("HunyuanVideo", Bucket(1280, 720, 129)),
    "cogvideox-5b": ("CogVideoX 5b", Bucket(720, 480, 49)),
}


def table() -> str:
    """One line a model, in Markdown: GiB on a device, weights and activations of one row."""
    stored = ["" if store == "same" else f" {store}" for store in STORE_DTYPES]
    heads = (f"`{mode}`{store}" for store in stored for mode in MODES)
    lines = [["model, size", *heads, "`stream` fp8, tiles"]]
    lines.append(["---"] * len(lines[0]))
    models = {model.name: model for found in presets().values() for model in found}
    for name, (title, bucket) in MODELS.items():
        size = str(bucket).removesuffix("x1")
        lines.append([f"{title}, {size}", *_needs(models[name], bucket)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _needs(model: ModelSpec, bucket: Bucket) -> Iterator[str]:
    device = DeviceConfig(name="gpu", memory_gib=1024)  # any that computes in 16 bits
    job = JobConfig(name="", manifest="", model=model, slurm=SlurmConfig(device=device))
    ways: list[tuple[StoreDType, MemoryMode, bool]]
    ways = [(store, mode, False) for store in STORE_DTYPES for mode in MODES]
    for store, mode, tiled in [*ways, ("fp8", "stream", True)]:
        system = SystemConfig(
            memory=MemoryConfig(mode=mode, store_dtype=store), vae=VaeConfig(tiled=tiled)
        )
        need = need_of(with_tiles(replace(job, system=system)), bucket, mode)
        yield f"{need.peak_bytes / GIB:.1f}"


def renewed(text: str) -> str:
    """The text with today's table; ConfigError if it has no place for one."""
    return placed(text, BEGIN, END, table())


if __name__ == "__main__":
    print_or_renew(sys.argv[1:], table, renewed)
