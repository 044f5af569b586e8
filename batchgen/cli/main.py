"""The command line: finds the verb's file, prints its result, turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchgen import __version__
from batchgen.cli.completion import complete
from batchgen.cli.result import INTERRUPTED, ROWS_LEFT, USAGE, Result
from batchgen.cli.streams import answer_signals, survive_streams
from batchgen.cli.verbs import NO_MULTIRUN
from batchgen.errors import BatchgenError, EndedBySignal, UsageError, closest, reason_of
from batchgen.paths import RUNS, as_typed

VERB_FILES = (
    "manifest", "plan", "run", "resume", "status", "collect", "report", "export", "decode",
    "inspect", "weights", "bench", "slurm", "shell",
)  # fmt: skip
EPILOG = """\
examples:
  batchgen run jobs/demo.yaml                        render here, with progress, and collect
  batchgen plan jobs/demo.yaml row_defaults.num_steps=30
                                                     what it would cost; renders nothing
  batchgen submit jobs/demo.yaml slurm.ranks_per_node=2
                                                     start it and return at once
  batchgen status latest                             how far it is
  batchgen resume latest                             render what is missing or failed
  batchgen report latest                             a page to look at in a browser

exit codes: 0 all rows ok; 1 rows failed or left; 2 usage or configuration; 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line. Verb files import nothing heavy until their handler runs."""
    top = argparse.ArgumentParser(
        prog="batchgen",
        description="Render a Parquet manifest of prompts with a diffusion model, every row once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"batchgen {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERB_FILES:
        importlib.import_module(f"batchgen.cli.{name}").add_parser(verbs)
    for verb in _leaves(verbs):
        verb.add_argument(
            "--json", action="store_true", help="print one JSON object as the last line"
        )
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verb.set_defaults(leaf=verb)
    return top


def _below(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[Any] | None:
    """What a group such as `manifest` leads to; None for a verb that does something."""
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return below[0] if below else None


def _leaves(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[argparse.ArgumentParser]:
    """Parsers of the verbs that do something, also those in groups such as `manifest`."""
    found = []
    for verb in verbs.choices.values():
        group = _below(verb)
        found += _leaves(group) if group else [verb]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parse(argv)
    except SystemExit as ended:
        if ended.code and "--json" in argv:
            print(json.dumps({"error": "usage", "exit_code": USAGE}))
        raise
    try:
        _refuse_lost_folder()
        result: Result = args.handler(args)
        if args.json:
            print(json.dumps(result.data, default=str))
        sys.stdout.flush()
    except EndedBySignal as ended:
        return _ended(
            args, INTERRUPTED, f"ended by {ended.name}{ended.going_on or _to_go_on(args)}"
        )
    except KeyboardInterrupt:
        return _ended(args, INTERRUPTED, f"interrupted{_to_go_on(args)}")
    except UsageError as error:
        return _ended(args, USAGE, str(error))
    except BatchgenError as error:
        return _ended(args, ROWS_LEFT, f"{error}{_kept(args)}")
    except OSError as error:  # a path that cannot be read or written
        code = ROWS_LEFT if getattr(args, "at_stake", False) else USAGE
        return _ended(args, code, f"{reason_of(error)}{_kept(args)}")
    except Exception as error:
        traceback.print_exc()
        return _ended(args, ROWS_LEFT, f"{type(error).__name__}: {error}")
    return result.exit_code


def _refuse_lost_folder() -> None:
    """UsageError if the current folder is gone, since no relative path leads anywhere then."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the current folder is gone ({error.strerror}): change to one that is there"
        ) from None


def _kept(args: argparse.Namespace) -> str:
    """Says that a run made by `run` or `submit` before the error is kept; empty if none was
    made."""
    return f"; the run is kept{_to_go_on(args)}" if getattr(args, "made", None) else ""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line, with `key=value` words after options too, which argparse leaves
    over."""
    top = parser()
    complete(top)
    _help_to_a_verb(top, argv)
    args, left_over = top.parse_known_args(argv)
    taker = next((name for name in ("overrides", "sweeps") if hasattr(args, name)), None)
    words = [word for word in left_over if "=" in word or word.startswith("~")]
    words = [word for word in words if not word.startswith("-")]
    if {"-m", "--multirun"} & {*left_over}:
        args.leaf.error(NO_MULTIRUN)
    if len(words) < len(left_over) or (words and taker is None):
        args.leaf.error(f"unrecognized arguments: {' '.join(left_over)}{_meant(args, left_over)}")
    if words and taker is not None:
        setattr(args, taker, [*getattr(args, taker), *words])
    return args


def _meant(args: argparse.Namespace, left_over: Sequence[str]) -> str:
    """A hint at the verb's option nearest to the first that it does not have."""
    wrong = next((word.partition("=")[0] for word in left_over if word.startswith("--")), "")
    return closest(wrong, [name for name in args.leaf._option_string_actions if name[1] == "-"])


def _help_to_a_verb(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Print help where a verb is missing, and the nearest one where there is none of that name,
    also in a group; both end this process."""
    below = _below(parser)
    if below is None:
        return
    if not argv or not argv[0]:
        parser.print_help()
        raise SystemExit(USAGE)
    named, verbs = argv[0], below.choices
    if named in verbs:
        _help_to_a_verb(verbs[named], argv[1:])
    elif not named.startswith("-"):
        listed = f"{', '.join(verbs)}{closest(named, verbs)}"
        parser.error(f"argument {below.metavar}: {named!r} is not one of {listed}")


def _to_go_on(args: argparse.Namespace) -> str:
    """How to go on with the run that a verb rendered or began; empty for other verbs."""
    made = getattr(args, "made", None)  # set by `run` and `submit`
    if made:
        run = as_typed(Path(made))
    elif args.verb in ("resume", "retry"):
        run = args.run if args.root == RUNS else f"{args.run} --root {shlex.quote(args.root)}"
    else:
        return ""
    return f"; go on with `batchgen resume {run}`"


def _ended(args: argparse.Namespace, code: int, message: str) -> int:
    if args.debug and code != INTERRUPTED:
        traceback.print_exc()
    print(f"batchgen {args.verb}: {message}", file=sys.stderr)
    if args.json:
        made = {"run": args.made} if getattr(args, "made", None) else {}
        print(json.dumps({"error": message, "exit_code": code, **made}))
    return code


def entry() -> None:
    """Console script."""
    survive_streams()
    answer_signals()
    try:
        code = main()
    except KeyboardInterrupt:  # pressed before the verb was known
        code = INTERRUPTED
    finally:
        sys.stdout.flush()
    sys.exit(code)
