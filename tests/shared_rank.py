"""One of several processes that hold the same weights, for `test_shared`.

`python tests/shared_rank.py SPEC.pickle MODE`, MODE one of: none, resident, stream. It says `ready`
when it has computed with its weights, then for a line on stdin the bytes that are its own share of
memory, and ends with its stdin."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from batchgen.config.schema import MemoryConfig, SystemConfig
from batchgen.engine.engine import Engine


def main(spec: str, mode: str) -> None:
    torch.set_num_threads(1)
    model: Any = pickle.loads(Path(spec).read_bytes())
    held: Any = None
    if mode != "none":
        held = Engine.load(model, SystemConfig(memory=MemoryConfig(mode=mode)), "cpu")  # type: ignore[arg-type]
        with torch.no_grad():
            residency, family = held.replica.residency, held.family
            residency.use(*residency.plan.components("encode"))
            print(float(family.encode(family.tokenize("a red circle"))[0].sum()), file=sys.stderr)
    print("ready", flush=True)
    sys.stdin.readline()
    print(own_bytes(), flush=True)
    sys.stdin.readline()


def own_bytes() -> int:
    """The process's proportional set: pages that others have too count by their share."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
