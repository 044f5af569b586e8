"""Fits the planned cache of the embedded model: ``python -m batchgen.tiny.calibration``.

Renews the shipped tables of all ``settings``, or of those of some guidances, from rows that no
measurement may use (``calibration_rows``). A table whose steps come out the same stays as it is,
and with it the keys of its rows: delete the file to make all anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import yaml  # type: ignore[import-untyped]

from batchgen.caches.tables import SHIPPED, Entry, dump, read
from batchgen.config.build import build
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.durable import write_bytes_atomic
from batchgen.engine.engine import Engine
from batchgen.engine.fitting.calibrate import calibrate
from batchgen.request import Request, Solver
from batchgen.tiny import data

MODEL = "tiny-wan"
PRESET = Path(__file__).parents[1] / "config" / "conf" / "model" / f"{MODEL}.yaml"
GENERATOR = 4711  # of the prompts
FIRST_SEED = 910_000_000  # of the noise, then one up each
ROWS, MIXED_ROWS = 16, 32  # of a fit for one guidance, and for all
LOWEST, HIGHEST = 1.5, 6.0  # guidances of the latter
SOLVERS: tuple[Solver, ...] = ("unipc", "euler")
GUIDANCES = (1.0, 3.0, 5.0)
RATIOS = {50: (0.5, 0.58, 0.7), 20: (0.4, 0.5)}  # by number of steps


@dataclass(frozen=True, slots=True)
class Setting:
    """What one calibration is for; ``guidance`` None: all guidances."""

    solver: Solver
    steps: int
    guidance: float | None

    def rows(self) -> list[Request]:
        """The rows that it draws."""
        if self.guidance is not None:
            return [_with(row, self, self.guidance) for row in calibration_rows()[:ROWS]]
        rise = (HIGHEST - LOWEST) / (MIXED_ROWS - 1)
        rows = enumerate(calibration_rows())
        return [_with(row, self, LOWEST + rise * i) for i, row in rows]


def settings() -> Iterator[Setting]:
    """All that is shipped."""
    for solver in SOLVERS:
        for steps in RATIOS:
            for guidance in (*GUIDANCES, None):
                yield Setting(solver, steps, guidance)


@cache
def preset() -> ModelSpec:
    """The embedded model, as its preset describes it."""
    return build(ModelSpec, yaml.safe_load(PRESET.read_text()), "model")


def calibration_rows() -> list[Request]:
    """Prompts and seeds that the shipped tables have seen: a measurement of them takes others."""
    generator = torch.Generator().manual_seed(GENERATOR)
    scenes = data.sample_scenes(MIXED_ROWS, generator, "all")
    return [
        _row(number, data.caption(scene, generator), FIRST_SEED + number)
        for number, scene in enumerate(scenes)
    ]


def _row(number: int, prompt: str, seed: int) -> Request:
    defaults = preset().request_defaults
    return Request(
        row_index=number,
        row_id=f"calibration-{number}",
        row_key="",
        prompt=prompt,
        seed=seed,
        format="npy",
        quality=8,
        **{name: getattr(defaults, name) for name in defaults.__slots__},
    )


def _with(row: Request, setting: Setting, guidance: float) -> Request:
    return replace(
        row, solver=setting.solver, num_steps=setting.steps, guidance_scale=round(guidance, 3)
    )


def as_shipped(entry: Entry) -> Entry:
    """With a key that leaves out what the model does not have, and the size: which ones a shipped
    fit serves is known where it is looked up (``planning.fits``)."""
    key = replace(entry.key, use_dynamic_cfg=None, guidance_rescale=None, pixels_range=None)
    return replace(entry, key=key)


def _renewed(old: Entry | None, new: Entry) -> Entry:
    return old if old and old.content["steps"] == new.content["steps"] else new


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=SHIPPED / f"planned.{MODEL}.json")
    parser.add_argument("--guidance", type=float, nargs="+", choices=GUIDANCES, help="these alone")
    args = parser.parse_args()
    engine = Engine.load(preset(), SystemConfig(), "cpu")
    entries = {entry.key: entry for entry in (read(args.out) if args.out.exists() else ())}
    for setting in settings():
        if args.guidance and setting.guidance not in args.guidance:
            continue
        begin = time.perf_counter()
        found = calibrate(engine.replica, setting.rows(), RATIOS[setting.steps], model=MODEL)
        made = [as_shipped(entry) for entry in found.entries]
        entries |= {new.key: _renewed(entries.get(new.key), new) for new in made}
        near = ", ".join(f"{e.key.computed}: {e.content['latents_db']} dB" for e in made)
        print(f"{setting}: {near}, {time.perf_counter() - begin:.0f} s", flush=True)
        write_bytes_atomic(args.out, dump(entries.values()))


if __name__ == "__main__":
    main()
