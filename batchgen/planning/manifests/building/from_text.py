"""A list of prompts, one a line; lines in the syntax of the web UIs set columns too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from batchgen.errors import ManifestError, closest
from batchgen.planning.manifests.cells import Gathered, IllegalValue, SourceFile, cell_value
from batchgen.planning.manifests.columns import REQUEST_COLUMNS

# what the web UIs call columns
_OTHER_NAMES = {"steps": "num_steps", "cfg_scale": "guidance_scale"}
_TAKES_WORDS = tuple(name for name in REQUEST_COLUMNS if re.search(r"prompt(_\d)?$", name))
_OPTION = re.compile(r"\s--([A-Za-z][\w-]*)")


def read_text(path: Path) -> SourceFile:
    """One prompt a line; lines of white space alone separate and are no rows. A line that begins
    with `--` is read as `--prompt "a cat" --steps 20 --seed 1`. Raises ManifestError."""
    gathered = Gathered(path)
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            prompt = text.strip()
            if prompt.startswith("--"):
                gathered.add(line, _options(gathered, f"{path}, line {line}", prompt))
            elif prompt:
                _refuse_options(f"{path}, line {line}", prompt)
                gathered.add(line, {"prompt": prompt})
    return gathered.finish()


def _refuse_options(where: str, prompt: str) -> None:
    """An option behind a prompt would be drawn as words."""
    if option := _OPTION.search(prompt):
        raise ManifestError(
            f"{where}: --{option[1]} behind a prompt; options are read in lines that begin with "
            '--prompt "...", and a prompt that shall hold it can come from a .csv or .jsonl'
        )


def _options(gathered: Gathered, where: str, text: str) -> dict[str, object]:
    """The row that a line of options describes."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ManifestError(f"{where}: {str(error).lower()}: {text[:60]!r}") from None
    row: dict[str, object] = {}
    while words:
        option = words.pop(0)
        name = _column(where, option)
        if name in row:
            raise ManifestError(f"{where}: {option} appears more than once")
        count = _words_of_value(words) if name in _TAKES_WORDS else min(1, len(words))
        value, words = " ".join(words[:count]), words[count:]
        if not count:
            raise ManifestError(f"{where}: {option} has no value")
        row[name] = None if (name, value) == ("seed", "-1") else _value(gathered, name, value)
    return row


def _column(where: str, option: str) -> str:
    """The column that an option of the web UIs sets."""
    given = option.removeprefix("--")
    name = _OTHER_NAMES.get(given, given)
    known = name != given or name in REQUEST_COLUMNS
    if not known or not option.startswith("--"):
        legal = [*_OTHER_NAMES, *REQUEST_COLUMNS]
        listed = ", ".join(f"--{n}" for n in legal)
        raise ManifestError(f"{where}: {option!r} is not one of {listed}{closest(given, legal)}")
    return name


def _words_of_value(words: list[str]) -> int:
    """How many words stand before the next option."""
    return next((i for i, word in enumerate(words) if word.startswith("--")), len(words))


def _value(gathered: Gathered, name: str, value: str) -> object:
    try:
        return cell_value(name, value)
    except IllegalValue as error:
        gathered.reject(name, value, str(error))
        return None
