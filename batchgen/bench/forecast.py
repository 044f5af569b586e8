"""`bench forecast`: what a plan says that a run takes, against what it took."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.bench._figures import (
    Figure,
    Raw,
    add_common,
    at_most,
    over_rounds,
    publish,
    take_turns,
    whole,
)

if TYPE_CHECKING:
    from batchgen.bench._jobs import Job

SUMMARY = "forecast device hours against those of the run, before and after a calibration"
DESCRIPTION = """\
Run a manifest of mixed shapes, steps and guidance with the embedded model, on one rank in a process
of its own, so that its catalog calibrates; plan another such manifest, of other prompts, seeds and
mix; run that, and hold the forecast of its device time, start-up included, against what its rank
took. Every round has a folder, a calibration and a run of its own. What else the machine does
between the two counts fully; with --null, rows without a model sleep for 1.7 times what the profile
says of them, whatever the machine does.
"""
EPILOG = """\
examples:
  batchgen bench forecast
  batchgen bench forecast --rows 96 --rounds 9
  batchgen bench forecast --null
"""
TINY = ("--tiny", "--rounds", "1")
SHAPES = ((32, 32, 5), (64, 64, 9), (96, 96, 9), (64, 64, 17))
STEPS = (6, 10, 20)
GUIDANCES = (1.0, 3.0)
SECONDS = 3600.0
NULL_STEPS, NULL_PACE = (50, 100, 200), 1.7  # of 10 ms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many rows."""
    add_common(parser, "forecast")
    parser.add_argument(
        "--rows",
        type=whole,
        default=48,
        help="of the run; half as many calibrate (default: %(default)s)",
    )
    parser.add_argument("--null", action="store_true", help="rows that sleep, without a model")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    from tempfile import TemporaryDirectory

    rows = 4 if args.tiny else args.rows
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out, prefix=".work-") as work:
        raw = _measure(Path(work), args, rows)
    compared = (
        f"Device seconds of {rows} rows of {'no model' if args.null else 'the embedded model'}, of "
        f"several shapes, numbers of steps and guidances, forecast after {rows // 2} others and "
        f"measured; the median of {args.rounds} rounds."
    )
    return publish(args, compared, _figures(raw), raw)


def _measure(work: Path, args: argparse.Namespace, rows: int) -> Raw:
    """Seconds by round: forecast without and with a calibration, and as measured."""
    import pandas as pd

    import batchgen
    from batchgen.bench._jobs import at_pace

    raw: Raw = {"profile alone": [], "calibrated": [], "start-up": []}

    def one_round() -> float:
        folder = work / str(len(raw["calibrated"]))
        first = _job(folder / "first", range(rows // 2), args)
        second = _job(folder / "second", range(rows // 2, rows // 2 + rows), args)
        here = (*second.overrides, f"output.root_dir={folder / 'runs'}")
        raw["profile alone"].append(_hours(second, here))
        batchgen.run(first.path, *first.overrides, f"output.root_dir={folder / 'runs'}")
        raw["calibrated"].append(_hours(second, here))
        done = batchgen.run(second.path, *here)
        ranks = pd.read_parquet(done.path.parent / "runs.parquet")
        raw["start-up"].append(float(ranks.load_s.sum()))
        return float((ranks.wall_s * ranks.devices).sum())

    with at_pace(NULL_PACE):
        return raw | take_turns({"measured": one_round}, args.rounds)


def _hours(job: Job, overrides: tuple[str, ...]) -> float:
    """Seconds of devices that a plan says."""
    import batchgen

    return SECONDS * batchgen.plan(job.path, *overrides).forecast.gpu_hours


def _job(folder: Path, numbers: range, args: argparse.Namespace) -> Job:
    """Rows of a mix that changes from row to row."""
    from batchgen.bench._jobs import job_of

    make = _null_row if args.null else _tiny_row if args.tiny else _row
    rows = [make(number) for number in numbers]
    model = "null-engine" if args.null else "tiny-wan"
    executor = "inline" if args.tiny else "local"
    return job_of(folder, rows, f"model={model}", f"slurm.executor={executor}")


def _row(number: int) -> dict[str, object]:
    width, height, frames = SHAPES[number * 7 // 3 % len(SHAPES)]
    return {
        "row_id": f"row-{number:04d}",
        "prompt": f"a red circle moving left, take {number}",
        "seed": number,
        "width": width,
        "height": height,
        "num_frames": frames,
        "num_steps": STEPS[number * 5 // 2 % len(STEPS)],
        "guidance_scale": GUIDANCES[number % 5 > 0],
    }


def _tiny_row(number: int) -> dict[str, object]:
    return _row(number) | {"width": 32, "height": 32, "num_frames": 5, "num_steps": 2}


def _null_row(number: int) -> dict[str, object]:
    steps = NULL_STEPS[number * 5 // 2 % len(NULL_STEPS)]
    sizes = {"width": 16, "height": 16, "num_frames": 1}
    return _row(number) | sizes | {"num_steps": steps, "guidance_scale": 1.0}


def _figures(raw: Raw) -> list[Figure]:
    def apart(name: str) -> list[float]:
        pairs = zip(raw[name], raw["measured"], strict=True)
        return [100 * abs(said / was - 1) for said, was in pairs]

    plain, plain_spread = over_rounds(apart("profile alone"))
    value, spread = over_rounds(apart("calibrated"))
    taken, taken_spread = over_rounds(raw["measured"])
    start = over_rounds(raw["start-up"])[0]
    return [
        Figure("measured", taken, "s", note=f"start-up {start:.1f} s", spread=taken_spread),
        Figure("error by the profile's figures", plain, "%", spread=plain_spread),
        at_most("error after calibration", value, "%", 10, spread=spread),
    ]
