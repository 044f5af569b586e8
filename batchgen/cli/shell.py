"""`completion`: the script that lets a shell complete this command."""

from __future__ import annotations

import argparse

from batchgen.cli.completion import SHELLS, script
from batchgen.cli.result import OK, Result
from batchgen.cli.verbs import Verbs, add_verb

EPILOG = """\
examples:
  eval "$(batchgen completion bash)"        # in ~/.bashrc
  eval "$(batchgen completion zsh)"         # in ~/.zshrc, after compinit
  batchgen completion fish | source         # in ~/.config/fish/config.fish
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    completion = add_verb(
        verbs,
        "completion",
        handle_completion,
        summary="the TAB key in bash, zsh and fish",
        description="Print a script for a shell; then TAB completes verbs, options, runs, jobs,\n"
        "their keys and what these may be.",
        epilog=EPILOG,
    )
    completion.add_argument("shell", choices=SHELLS)


def handle_completion(args: argparse.Namespace) -> Result:
    print(script(args.shell))
    return Result(OK)
