"""What came of each section: one JSON, one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from batchgen.bench._figures import Figure
from batchgen.bench.gpu.figures import Kit


@dataclass(frozen=True, slots=True)
class Done:
    """A section after it ran, or instead."""

    name: str
    state: str  # ok, failed, not here, no time left
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()
    why: str = ""  # if it is not ok


def as_json(kit: Kit, head: dict[str, object], sections: Sequence[Done]) -> dict[str, Any]:
    """Everything, raw seconds included."""
    return head | {"sections": [asdict(done) for done in sections], "raw_seconds": kit.raw}


def table(head: dict[str, object], sections: Sequence[Done]) -> str:
    """Markdown."""
    lines = [
        f"{head['device']}, torch {head['torch']}, {head['matmul_tflops']:.4g} TFLOP/s, "
        f"{head['h2d_gbs']:.3g} GB/s from the host",
        "",
    ]
    lines += ["| section | what | value | goal | met | note |", "|---|---|---|---|---|---|"]
    for done in sections:
        for figure in done.figures:
            met = {True: "yes", False: "**no**", None: ""}[figure.met]
            value = f"{figure.value:.4g} {figure.unit}".strip()
            cells = (done.name, figure.what, value, figure.goal, met, figure.note)
            lines.append(f"| {' | '.join(cells)} |")
        if done.state != "ok":
            lines.append(f"| {done.name} | {done.state} | | | | {done.why} |")
    return "\n".join(lines) + "\n"
