"""Measures the embedded model for the caches that leave out blocks:
``python -m batchgen.tiny.block_calibration``.

Writes their shipped tables, from rows that no measurement may use: one for rows of any number of
steps, and one for each that is measured beside.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from batchgen.caches.tables import SHIPPED, Entry, Key, dump
from batchgen.config.schema import SystemConfig
from batchgen.durable import write_bytes_atomic
from batchgen.engine.engine import Engine
from batchgen.engine.fitting.calibrate_blocks import calibrate_blocks
from batchgen.tiny.calibration import MODEL, calibration_rows, preset

ANY = 50  # steps of the rows that speak for all numbers of steps
OTHERS = (20,)
ROWS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=SHIPPED / f"blocks.{MODEL}.json")
    out: Path = parser.parse_args().out
    engine = Engine.load(preset(), SystemConfig(), "cpu")
    entries: list[Entry] = []
    for steps in (ANY, *OTHERS):
        rows = [replace(row, num_steps=steps) for row in calibration_rows()[:ROWS]]
        key = Key(strategy="", model=MODEL, num_steps=None if steps == ANY else steps)
        entries += calibrate_blocks(engine.replica, rows, key).entries
    write_bytes_atomic(out, dump(entries))


if __name__ == "__main__":
    main()
