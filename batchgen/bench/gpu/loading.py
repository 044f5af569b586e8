"""Weights from a file that is in memory to the device."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from batchgen.bench._figures import Figure, at_least
from batchgen.bench.gpu.figures import Kit
from batchgen.bench.gpu.subjects import engine, wan


def loading(kit: Kit) -> Iterator[Figure]:
    """As the engine loads, against safetensors' own and a copy."""
    made = engine(kit, wan(12, 8960, 2 if kit.tiny else 30, tiny=kit.tiny))
    ours: Any = made.family.modules["transformer"]
    size = sum(tensor.nbytes for tensor in ours.state_dict().values())
    with tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
        ours.save_pretrained(folder)
        [path] = Path(folder).glob("*.safetensors")
        kind, dtype = type(ours), ours.dtype

        def plain() -> object:
            return {name: x.to(kit.device) for name, x in load_file(path).items()}

        def engines() -> object:
            return kind.from_pretrained(folder, dtype=dtype, local_files_only=True).to(kit.device)

        taken = kit.seconds({"load_file": plain, "engine": engines})
    yield Figure("loading, as the engine does", size / taken["engine"] / 1e9, "GB/s")
    ratio = taken["load_file"] / taken["engine"]
    yield at_least("loading, load_file and copies / ours", ratio, "x", 2)
