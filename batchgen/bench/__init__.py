"""Measurements of batchgen itself: one module or folder here is one bench, found by its name.

A bench imports what is heavy inside `run`, since `--help` loads all of them.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from typing import Protocol, cast


class Bench(Protocol):
    """What a bench module has."""

    SUMMARY: str
    DESCRIPTION: str
    EPILOG: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Put the bench's options on the command line."""

    def run(self, args: argparse.Namespace) -> dict[str, object]:
        """Measure and print; what `--json` prints of it."""


def bench_names() -> list[str]:
    """All benches, in order of their names."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def bench_named(name: str) -> Bench:
    """One of `bench_names`."""
    return cast(Bench, importlib.import_module(f"{__name__}.{name}"))
