"""Puts a verb on the command line: all verbs have the same form."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from batchgen.cli.completion import completed_by, job_files, override_words
from batchgen.cli.result import Result
from batchgen.errors import UsageError
from batchgen.paths import at_home

Verbs = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns
NO_MULTIRUN = (
    "there is no --multirun: a sweep is a manifest with every row once for each value: "
    "batchgen manifest build prompts.txt sweep.parquet num_steps=2,3"
)
Handler = Callable[[argparse.Namespace], Result]


def add_verb(
    verbs: Verbs[argparse.ArgumentParser],
    name: str,
    handler: Handler,
    *,
    summary: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """Add a verb with its one-line summary, its description, and examples that are shown as
    written."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def path_argument(text: str) -> Path:
    """A path as typed, with `~` as the home folder, also in `--root=~/runs`. An empty path is an
    error: it would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty (a shell variable that is not set?)")
    try:
        return at_home(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def hours_argument(text: str) -> float:
    """A number of hours."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of hours") from None


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """JOB, its overrides, and how checkpoints are hashed."""
    job = parser.add_argument("job", metavar="JOB", type=path_argument, help="job file (YAML)")
    completed_by(job, job_files)
    add_overrides(parser, "Hydra overrides")
    parser.add_argument(
        "--hash-weights",
        choices=("sampled", "full"),
        default="sampled",
        help="how checkpoint files enter the row keys, and are checked by ranks (default: sampled)",
    )


def add_overrides(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`key=value` words; without a default, argparse would call them required."""
    words = parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=meaning
    )
    completed_by(words, override_words)


def add_budget_argument(parser: argparse.ArgumentParser) -> None:
    """--max-gpu-hours, short for the key of that name."""
    parser.add_argument(
        "--max-gpu-hours",
        type=hours_argument,
        metavar="X",
        help="begin no row once the run has spent X device hours (system.max_gpu_hours)",
    )


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The overrides as typed, and what options are short for."""
    if args.max_gpu_hours is None:
        return list(args.overrides)
    return [*args.overrides, f"system.max_gpu_hours={args.max_gpu_hours}"]


def refuse_special(option: str, path: Path) -> None:
    """UsageError if writing the file would replace a device, a pipe or a folder."""
    if os.path.exists(path) and not os.path.isfile(path):  # an unreadable path fails later
        raise UsageError(f"{option}: {path} is there and is not a plain file: it is not replaced")
