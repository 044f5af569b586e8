"""What benches share: figures with goals, rounds that take turns, one table and one JSON.

A leading underscore keeps this from being a bench itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

ROUNDS = 5
Raw = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number."""

    what: str
    value: float
    unit: str
    goal: str = ""  # in words; empty: none
    met: bool | None = None
    note: str = ""  # what differs from the full size
    spread: tuple[float, float] | None = None  # the lowest and the highest of the rounds


def at_least(
    what: str,
    value: float,
    unit: str,
    goal: float,
    note: str = "",
    spread: tuple[float, float] | None = None,
) -> Figure:
    return Figure(what, value, unit, f">= {goal:g}", value >= goal, note, spread)


def at_most(
    what: str,
    value: float,
    unit: str,
    goal: float,
    note: str = "",
    spread: tuple[float, float] | None = None,
) -> Figure:
    """An infinite goal is none."""
    if goal == float("inf"):
        return Figure(what, value, unit, note=note, spread=spread)
    return Figure(what, value, unit, f"<= {goal:g}", value <= goal, note, spread)


def exactly(what: str, value: float, goal: float, note: str = "") -> Figure:
    """A count, which is right or wrong."""
    return Figure(what, float(value), "", f"= {goal:g}", bool(value == goal), note)


def over_rounds(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The median, and the lowest and the highest."""
    return median(values), (min(values), max(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round, so that what else the machine did in a round is on both sides."""
    return [a / b for a, b in zip(above, below, strict=True)]


def take_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> Raw:
    """A, B, A, B ...: what each work says of itself (mostly seconds), round by round."""
    raw: Raw = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            raw[name].append(work())
    return raw


def add_common(parser: argparse.ArgumentParser, name: str, *, rounds: bool = True) -> None:
    """The options that benches share; `rounds` of those that take turns."""
    if rounds:
        parser.add_argument(
            "--rounds", type=whole, default=ROUNDS, help="of taking turns (default: %(default)s)"
        )
    add_tiny(parser)
    out = Path(f"outputs/bench-{name}")
    parser.add_argument("--out", type=Path, default=out, help="folder (default: %(default)s)")


def add_tiny(parser: argparse.ArgumentParser) -> None:
    """`--tiny`, which every bench has."""
    parser.add_argument(
        "--tiny", action="store_true", help="as little as can be: shows that it runs, and no more"
    )


def whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; legal: an integer from 1 on")
    return int(text)


# -------------------------------------------------------------------------------- what is published
def publish(
    args: argparse.Namespace, compared: str, figures: Sequence[Figure], raw: Mapping[str, Any]
) -> dict[str, object]:
    """Print the table; write figures.md and figures.json, which this returns, into `args.out`.
    `compared` says of what the figures are; of a tiny run only counts meet or miss a goal."""
    from batchgen.durable import write_json
    from batchgen.planning.provenance import hardware, package_versions

    if args.tiny:
        figures = [f if f.goal.startswith("=") else replace(f, goal="", met=None) for f in figures]
    load = os.getloadavg()
    data: dict[str, object] = {
        "compared": compared,
        "asked": {k: v if isinstance(v, int | float) else str(v) for k, v in vars(args).items()},
        "hardware": hardware(),
        "load_average": load,
        "versions": package_versions(),
        "figures": [asdict(figure) for figure in figures],
        "raw": dict(raw),
    }
    text = f"{compared}\n\n{machine(load)}\n\n{table(figures)}"
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "figures.json", data)
    (args.out / "figures.md").write_text(text)
    print(f"{text}figures and raw samples: {args.out}")
    return data


def machine(load: Sequence[float]) -> str:
    """One line: what it ran on, and what else ran there."""
    from batchgen.planning.provenance import hardware, package_versions

    found, versions = hardware(), package_versions()
    return (
        f"{found.get('cpu', 'CPU')}, {found.get('cpus')} CPUs, load average {load[0]:.1f}, "
        f"Python {versions['python']}, torch {versions.get('torch', 'none')}"
    )


def table(figures: Sequence[Figure]) -> str:
    """Markdown."""
    lines = ["| what | value | rounds | goal | met | note |", "|---|---|---|---|---|---|"]
    for figure in figures:
        met = {True: "yes", False: "**no**", None: ""}[figure.met]
        value = f"{figure.value:.4g} {figure.unit}".strip()
        spread = "" if figure.spread is None else "{:.4g}..{:.4g}".format(*figure.spread)
        cells = (figure.what, value, spread, figure.goal, met, figure.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
