"""`bench overhead`: what the runner adds to each row."""

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
    from batchgen.paths import RunPaths

SUMMARY = "seconds that the runner adds to each row, with an engine that has no model"
DESCRIPTION = """\
Draw the same rows of 30 ms by the null engine alone and in a whole run, in turns: what the thread
that draws takes longer is the overhead on its path. Rows that take no time are bound by what is
done behind it: media and commit, each synced to the disk of --out. Planning, submitting, catalog
and report are the difference of a long and a short run, so that what a run costs once is not in it.
"""
EPILOG = """\
examples:
  batchgen bench overhead
  batchgen bench overhead --rows 300 --rounds 9 --out /shared/bench
"""
TINY = ("--tiny", "--rounds", "1")
STEPS = (3,)  # of 10 ms: longer than a commit takes, so that the writer keeps up
PLANNED = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many rows, and where."""
    add_common(parser, "overhead")
    parser.add_argument(
        "--rows", type=whole, default=100, help="of a run that takes time (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    from tempfile import TemporaryDirectory

    rows, long = (2, 6) if args.tiny else (args.rows, 10 * args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out, prefix=".work-") as work:
        raw = _measure(Path(work), args.rounds, rows, long, 200 if args.tiny else PLANNED)
    compared = (
        f"Milliseconds a row: {rows} rows of 30 ms drawn by the null engine alone and in a run, "
        f"{long} rows that take no time; the median of {args.rounds} rounds."
    )
    return publish(args, compared, _figures(raw, rows, long), raw)


def _measure(work: Path, rounds: int, rows: int, long: int, planned: int) -> Raw:
    """Seconds of everything, round by round."""
    from time import perf_counter

    from batchgen.bench._jobs import at_pace, made, null_job, run_through

    slow, short = null_job(work / "slow", rows, STEPS), null_job(work / "short", rows, STEPS)
    quick, large = null_job(work / "quick", long, STEPS), null_job(work / "large", planned)
    raw: Raw = {name: [] for name in ("beside short", "beside long", "behind")}

    def through(job: Job, name: str) -> float:
        with at_pace(0):
            _, took = run_through(job)
        raw[f"beside {name}"].append(took.plan + took.submit - took.drawing + took.publish)
        return took.drawing / job.rows

    def plan() -> float:
        begin = perf_counter()
        made(large)
        return perf_counter() - begin

    first, _ = run_through(slow)  # imports, and what the disk has not seen
    works = {
        "alone": lambda: _alone(first),
        "in a run": lambda: run_through(slow)[1].drawing / rows,
        "short": lambda: through(short, "short"),
        "behind": lambda: through(quick, "long"),
        "plan": plan,
    }
    return raw | take_turns(works, rounds)


def _alone(run: RunPaths) -> float:
    """Seconds a row by the engine alone: no queue, no media, no journal."""
    import numpy as np

    from batchgen.bench.cache.draw import draw
    from batchgen.config.schema import SystemConfig
    from batchgen.families.null.model import NullEngine
    from batchgen.planning.plan import read_costs, read_requests

    count = len(read_costs(run.plan).cost_s)
    requests = read_requests(run.plan, np.arange(count).tolist())
    return draw(NullEngine(SystemConfig(), ""), requests).seconds.wall / count


def _figures(raw: Raw, rows: int, long: int) -> list[Figure]:
    on_path = [1000 * (b - a) for a, b in zip(raw["alone"], raw["in a run"], strict=True)]
    pairs = zip(raw["beside short"], raw["beside long"], strict=True)
    beside = [1000 * (b - a) / (long - rows) for a, b in pairs]
    behind = [1000 * seconds for seconds in raw["behind"]]
    found = []
    for what, values, unit, goal in (
        ("on the path of the drawing thread", on_path, "ms a row", 2),
        ("media and commit, behind it", behind, "ms a row", 15),
        ("plan, submit, catalog and report", beside, "ms a row", 2),
        (f"plan of {PLANNED} rows", raw["plan"], "s", 3),
    ):
        value, spread = over_rounds(values)
        found.append(at_most(what, value, unit, goal, spread=spread))
    return found
