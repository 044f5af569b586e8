"""`bench schedule`: compares ways to cut a run into shards, on simulated clusters."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchgen.bench._figures import add_tiny

if TYPE_CHECKING:
    from batchgen.bench.schedule.cases import Case, Compared

KINDS = ("log-uniform", "bimodal", "sorted", "giant")
SUMMARY = "makespan of the cut into shards, simulated"
DESCRIPTION = """\
Simulate Slurm arrays: shards start in order as nodes become free, every shard pays a start-up,
and replicas pull its rows longest first. Ideal = total work / sum of the nodes' speeds, without
start-ups; the makespan counts them. All strategies have the same number of shards; of each the
worst run over all seeds and two places of the slow node is shown.
"""
EPILOG = """\
examples:
  batchgen bench schedule
  batchgen bench schedule --nodes 8 --costs giant --slow 0.4 --noise 0.2
  batchgen bench schedule --nodes 16 --waves 50 --most-s 3600 --start-up-s 60 --json
"""
TINY = ("--tiny",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the simulated run and its cluster."""
    many, some = _at_least(int, 1), _at_least(float, 0.001)
    for name, kind, default, text in (
        ("--ranks", many, 8, "replicas of a node"),
        ("--rows-per-rank", many, 100, "rows of the run for each replica"),
        ("--seeds", many, 3, "manifests drawn"),
        (
            "--spread",
            _at_least(float, 1),
            10.0,
            "cost of the longest over that of the shortest row",
        ),
        ("--waves", some, 20.0, "length of the run in shards of 20 start-ups for every node"),
        ("--start-up-s", some, 20.0, "wall seconds of a start-up"),
        ("--slow", some, 0.5, "speed of the one node that differs; the others have 1"),
        ("--noise", _at_least(float, 0), 0.0, "sigma of the log of real over predicted costs"),
        ("--most-s", some, None, "wall seconds that a shard may take (default: no bound)"),
    ):
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(name, type=kind, default=default, help=text + shown)
    sizes = [4, 8, 64, 512]
    parser.add_argument("--nodes", type=many, nargs="+", default=sizes, help=f"default: {sizes}")
    parser.add_argument(
        "--costs", choices=KINDS, nargs="+", default=KINDS, help="row costs (default: all)"
    )
    add_tiny(parser)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Print a line for every case and strategy; returns the same figures."""
    from batchgen.bench.schedule.cases import OURS, compare

    if args.tiny:
        args.nodes, args.seeds, args.rows_per_rank = [2], 1, 10
    print(
        f"{'nodes':>5}  {'costs':11}  {'strategy':10}  {'shards':>6}  {'makespan/ideal':>14}  "
        f"{'(mean)':>7}  {'start-ups':>9}  {'tail s':>7}  {'longest/mean shard':>18}"
    )
    compared = []
    for case in _cases(args):
        found = compare(case, args.seeds)
        print("\n".join(map(_line, found)), flush=True)
        compared += found
    worst = max(c.worst.ratio for c in compared if c.strategy == OURS)
    print(f"{OURS}: at worst {worst:.3f} x ideal")
    return {"worst_ratio": worst, "compared": [_data(c) for c in compared]}


def _cases(args: argparse.Namespace) -> list[Case]:
    from batchgen.bench.schedule.cases import Case

    names = ("ranks", "rows_per_rank", "spread", "waves", "start_up_s", "slow", "noise", "most_s")
    rest = {name: getattr(args, name) for name in names}
    return [Case(nodes=n, costs=kind, **rest) for n in args.nodes for kind in args.costs]


def _line(compared: Compared) -> str:
    worst = compared.worst
    return (
        f"{compared.case.nodes:5}  {compared.case.costs:11}  {compared.strategy:10}  "
        f"{worst.shards:6}  {worst.ratio:14.3f}  {compared.mean_ratio:7.3f}  "
        f"{100 * worst.start_up_share:7.1f} %  {worst.tail_s:7.0f}  {compared.imbalance:18.3f}"
    )


def _data(compared: Compared) -> dict[str, object]:
    return {**asdict(compared), "ratio": compared.worst.ratio}


def _at_least(kind: type[int] | type[float], least: float) -> Callable[[str], float]:
    """Type of an option: a finite number that is at least `least`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not least <= value < float("inf"):
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r}; legal: {noun} from {least:g} on")
        return value

    return read
