"""How a verb is put on the command line: one shape for all of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.cli.result import Result
from batchgen.errors import UsageError
from batchgen.paths import at_home

if TYPE_CHECKING:
    from batchgen.config.schema import JobConfig

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
    """A verb with its one-line summary, what it does, and examples that are shown as written."""
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
    """A path as typed; `~` is home also where the shell leaves it alone, as in `--root=~/runs`. An
    empty one would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty (a shell variable that is not set?)")
    try:
        return at_home(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """JOB, its overrides, and how checkpoints are hashed."""
    parser.add_argument("job", metavar="JOB", type=path_argument, help="job file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    parser.add_argument(
        "--hash-weights",
        choices=("sampled", "full"),
        default="sampled",
        help="how checkpoint files enter the row keys, and are checked by ranks (default: sampled)",
    )


def inputs_of(config: JobConfig) -> dict[str, str | None]:
    """Key -> path of what a composed job is made from; None where it is a word, as `random`."""
    weights = config.model.weights
    return {
        "manifest": config.manifest,
        "model.weights": weights if os.path.isabs(weights) else None,
    }


def refuse_special(option: str, path: Path) -> None:
    """Raise UsageError where a file would take the place of a device, a pipe or a folder."""
    if os.path.exists(path) and not os.path.isfile(path):  # what cannot be looked at is told later
        raise UsageError(f"{option}: {path} is there and is not a plain file: it is not replaced")
