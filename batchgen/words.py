"""Words for figures that several rooms print, and results as a notebook shows them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

LEAST_HOURS = 0.1  # less is said in minutes and seconds


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def counted(number: int, name: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number:,} {name}" + "s" * (number != 1)


def rank_time(hours: float, device: str) -> str:
    """Time of ranks with a device of that name: in hours where there are some."""
    if hours < LEAST_HOURS:
        return f"{_amount(hours, hours)} of {hours_name(device).partition('-')[0]}s"
    return f"{_amount(hours, hours)} {hours_name(device)}"


def rank_time_within(hours: float, low: float, high: float, device: str) -> str:
    """The same with the interval that it is in."""
    return f"{rank_time(hours, device)} ({_amount(low, hours)} to {_amount(high, hours)})"


def _amount(hours: float, beside: float) -> str:
    """Hours, unless what they are told `beside` is in minutes."""
    if beside < LEAST_HOURS:
        return duration(3600 * hours)
    return f"{hours:,.{1 if hours >= 100 else 2}f}"


def hours_name(device: str) -> str:
    """What an hour of a rank is called, by the name of its device."""
    return "CPU-hours" if device == "cpu" else "GPU-hours"


class Tabled:
    """A dataclass that notebooks show as a table of its fields."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return _table(self)


def _table(parts: Any) -> str:
    """HTML of a dataclass; in it those that are its fields."""
    cells = [(each.name, _cell(getattr(parts, each.name))) for each in fields(parts)]
    lines = [f"<tr><th>{escape(name)}</th><td>{cell}</td></tr>" for name, cell in cells]
    return f"<table><caption>{escape(type(parts).__name__)}</caption>{''.join(lines)}</table>"


def _cell(value: object) -> str:
    return _table(value) if is_dataclass(value) else escape(_in_short(value))


def _in_short(value: object) -> str:
    """A value in one line; of a collection its first entries."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list | dict):
        shown = ", ".join(map(str, list(value)[:3]))
        text = f"{len(value)}: {shown}" if value else "none"
        return text if len(text) < 200 else f"{text[:200]} ..."
    return str(value)
