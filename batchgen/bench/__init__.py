"""Measurements of batchgen itself: each module or folder here is one bench, found by its name.

Names with a leading underscore are what benches share. A bench imports heavy packages inside `run`,
since `--help` loads all benches.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from typing import Protocol, cast


class Bench(Protocol):
    """What each bench module has."""

    SUMMARY: str
    DESCRIPTION: str
    EPILOG: str
    TINY: tuple[str, ...]  # options under which it runs in seconds: shows that it runs, and no more

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the bench's options to the command line."""

    def run(self, args: argparse.Namespace) -> dict[str, object]:
        """Measure and print; returns what `--json` prints."""


def bench_names() -> list[str]:
    """Names of all benches, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def bench_named(name: str) -> Bench:
    """The bench of that name."""
    return cast(Bench, importlib.import_module(f"{__name__}.{name}"))
