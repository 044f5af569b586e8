"""`plan --layouts`: the layouts that a job may have, their prices, and what is ruled out."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from batchgen.words import duration

if TYPE_CHECKING:
    from rich.table import Table

    from batchgen.config.degrees import Degrees, RuledOut
    from batchgen.config.schema import JobConfig
    from batchgen.planning.pricing.candidates import Candidate
    from batchgen.planning.pricing.layout import Survey

SHOWN = 16
WIDTH = 80  # that the table takes at most
TIES = "prices within 5 % are a tie (ulysses or ring: 10 %): dp goes first, then cfg, then ulysses"
_GIB = 1024**3


def print_layouts(job: JobConfig, survey: Survey) -> None:
    """The table, best first, and below it what may not be used, by reason."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    console.print(_table(job, survey))
    console.print(TIES, style="dim")
    for line in _ruled_out(survey.ruled_out):
        console.print(line, markup=False)


def layouts_data(survey: Survey) -> dict[str, object]:
    """The same for `--json`."""
    return {
        "candidates": [
            asdict(candidate) | {"chosen": _is_chosen(candidate, survey)}
            for candidate in survey.candidates
        ],
        "ruled_out": [asdict(each) for each in survey.ruled_out],
    }


def _table(job: JobConfig, survey: Survey) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names = ("dp", "cfg", "ulysses", "ring", "memory", "items", "samples\nper device-h")
    for name in (*names, "last row", "GiB", ""):
        left = name in ("memory", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    fitting = _best_first(job, survey)
    for at, candidate in enumerate(fitting):
        if at < SHOWN or _is_chosen(candidate, survey):
            table.add_row(*_cells(candidate, survey))
    for candidate in [candidate for candidate in survey.candidates if not candidate.fits][:SHOWN]:
        table.add_row(*_cells(candidate, survey))
    if len(fitting) > SHOWN:
        table.caption = f"{len(fitting)} fit; all of them: --json"
    return table


def _best_first(job: JobConfig, survey: Survey) -> list[Candidate]:
    """What fits, of the same degrees one: the chosen, or what is worth more."""
    from batchgen.planning.pricing.layout import worth

    found: dict[Degrees, Candidate] = {}
    for candidate in sorted(survey.candidates, key=lambda each: -worth(job, each)):
        if candidate.fits and (_is_chosen(candidate, survey) or candidate.degrees not in found):
            found[candidate.degrees] = candidate
    return sorted(found.values(), key=lambda candidate: -worth(job, candidate))


def _cells(candidate: Candidate, survey: Survey) -> tuple[str, ...]:
    """What does not fit has no price."""
    from batchgen.planning.pricing.layout import per_hour

    degrees, price = candidate.degrees, ("does not fit", "")
    if candidate.fits:
        price = per_hour(candidate), duration(candidate.last_row_s)
    return (
        *(str(each) for each in (degrees.dp, degrees.cfg, degrees.ulysses, degrees.ring)),
        candidate.memory,
        str(candidate.items),
        *price,
        f"{candidate.peak_bytes / _GIB:.1f}",
        "chosen" if candidate.fits and _is_chosen(candidate, survey) else "",
    )


def _is_chosen(candidate: Candidate, survey: Survey) -> bool:
    """A residency that lost by its price alone is shown too, so degrees do not tell."""
    chosen = survey.chosen
    return (candidate.degrees, candidate.memory) == (chosen.degrees, chosen.memory)


def _ruled_out(found: tuple[RuledOut, ...]) -> list[str]:
    by_reason = groupby(sorted(found, key=lambda each: each.why), key=lambda each: each.why)
    return [
        f"ruled out: {'; '.join(str(each.degrees) for each in group)}: {why}"
        for why, group in by_reason
    ]
