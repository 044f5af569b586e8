"""Words for figures that several rooms print."""

from __future__ import annotations


def hours_name(device: str) -> str:
    """What an hour of a rank is called, by the name of its device."""
    return "CPU-hours" if device == "cpu" else "GPU-hours"
