"""What the TAB key offers in bash, zsh and fish, by argcomplete.

The shell starts batchgen with `_ARGCOMPLETE` in its environment; that run only prints words.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from batchgen.errors import BatchgenError
from batchgen.paths import at_home

SHELLS = ("bash", "zsh", "fish")
_PATHS = ("manifest", "model.weights", "output.root_dir")  # keys
Completer = Callable[..., list[str]]


def complete(top: argparse.ArgumentParser) -> None:
    """Answer the shell and end this process, if it is the shell that asks."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(top, always_complete_options="long")


def script(shell: str) -> str:
    """What the shell has to read once."""
    from argcomplete.shell_integration import shellcode

    return shellcode(["batchgen"], shell=shell)


def completed_by(action: argparse.Action, completer: Completer) -> None:
    """Let TAB offer what `completer` finds for an argument."""
    action.completer = completer  # type: ignore[attr-defined]  # where argcomplete looks


def run_names(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """`latest` and the names of runs; none from a root that cannot be read."""
    from batchgen.runner.find import LATEST, runs_in

    try:
        return [LATEST, *runs_in(at_home(parsed_args.root))]
    except BatchgenError:
        return [LATEST]


def job_files(prefix: str, **_: object) -> list[str]:
    """Folders and YAML files that begin like that."""
    return [path for path in paths(prefix) if path.endswith(("/", ".yaml", ".yml"))]


def paths(prefix: str) -> list[str]:
    """What lies in the folder that a path leads to so far, folders with `/` at their end."""
    folder = Path(prefix) if prefix.endswith("/") else Path(prefix).parent
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
    return [f"{path}/" if path.is_dir() else str(path) for path in found]


def override_words(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """All keys of a job; behind `key=` what it may be, where that can be listed."""
    from batchgen.config.build import leaf_keys, legal_words
    from batchgen.config.composing.overrides import GROUPS
    from batchgen.config.userfiles import names_of

    key, has_value, value = prefix.partition("=")
    if not has_value:
        return [f"{key}=" for key in (*GROUPS, *(key for key, _ in leaf_keys()))]
    if key in _PATHS:
        return [f"{key}={path}" for path in paths(value)]
    job = getattr(parsed_args, "job", None)
    beside = [Path(job).absolute().parents[up] for up in (0, 1)] if job else []
    words = names_of(key, [Path(), *beside]) if key in GROUPS else legal_words(key)
    return [f"{key}={word}" for word in words]


def export_forms(**_: object) -> list[str]:
    """What --to may be."""
    from batchgen.export import forms

    return forms.names()
