"""The table on the screen, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batchgen.bench.cache.figures import Figures, Speedup
from batchgen.bench.cache.samples import Samples

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 150  # that the table takes at least
ALONE, PACKED = 0.95, 0.90  # speed-up of what is due that is aimed at
COLUMNS = (
    *("policy", "computed", "PSNR dB\nmean", "\np10", "\np5", "\nworst", "SSIM", "score"),
    *("ahead dB: mean\n(95 %)", "\np10", "speed-up\nalone", "of what\nis due", "speed-up\npacked"),
    "of what\nis due",
)


def print_table(found: Sequence[Figures], missing: Mapping[str, str]) -> None:
    """Best mean first within each budget."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(_table(found))
    for name, reason in missing.items():
        console.print(f"{name} is left out: {reason}", markup=False)


def markdown(found: Sequence[Figures]) -> str:
    """The same table for a document."""
    heads = " | ".join(name.replace("\n", " ").strip() for name in COLUMNS)
    lines = [f"| {heads} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_cells(each))} |" for each in _ordered(found)]
    return "\n".join(lines)


def as_json(kept: Samples, found: Sequence[Figures], missing: Mapping[str, str]) -> dict[str, Any]:
    """What was asked, on what it ran, the figures, and every sample behind them."""
    from batchgen.planning.provenance import hardware

    return {
        "asked": kept.asked,
        "hardware": hardware(),
        "missing": dict(missing),
        "figures": [asdict(each) | {"share": each.share} for each in _ordered(found)],
        "samples": [asdict(block) for block in kept.blocks],
    }


def _table(found: Sequence[Figures]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True)
    budget = None
    for each in _ordered(found):
        if budget not in (None, each.ratio):
            table.add_section()
        budget = each.ratio
        table.add_row(*_cells(each))
    return table


def _ordered(found: Sequence[Figures]) -> list[Figures]:
    return sorted(found, key=lambda each: (each.ratio, -each.quality.mean))


def _cells(each: Figures) -> tuple[str, ...]:
    quality, ahead = each.quality, each.ahead
    compared = ("", "")
    if ahead is not None:
        compared = (f"{ahead.mean:.1f} ({ahead.low:.1f}..{ahead.high:.1f})", f"{ahead.p10:.1f}")
    return (
        each.policy,
        f"{each.computed:.1f}/{each.total:.0f}" + ("*" if each.over_budget else ""),
        *(f"{value:.1f}" for value in (quality.mean, quality.p10, quality.p5, quality.worst)),
        f"{quality.ssim:.4f}",
        "" if quality.score is None else f"{quality.score:.3f}",
        *compared,
        *_speeds(each.alone, ALONE),
        *_speeds(each.packed, PACKED),
    )


def _speeds(found: Speedup, goal: float) -> tuple[str, str]:
    below = round(found.thread_worth, 2) < goal
    return f"{found.thread:.2f}", f"{found.thread_worth:.2f}" + "<" * below
