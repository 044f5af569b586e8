"""Overrides as people type them, `key=value`, made into what Hydra takes.

The key is checked against the schema before Hydra sees it, so that a misspelt one is answered with
the key that was meant. A key that takes text takes it as typed, also where Hydra's grammar would
read a number, a list or nothing at all; quotes, `null` and `${...}` mean what they mean to Hydra.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException
from omegaconf import Container, OmegaConf

from batchgen.config.build import hint_of, leaf_keys, takes, takes_text, unknown_key_message
from batchgen.config.composing.aliases import canonical_key, is_resolved, leaf_of
from batchgen.errors import ConfigError
from batchgen.request import ROW_DEFAULTS

GROUPS = ("model", "slurm")
_SHAPE = re.compile(r"\s*(\+\+|\+|~)?\s*([\w$][\w$./@:-]*)\s*(?:=(.*))?", re.S)
_HYDRAS_OWN = ("hydra.searchpath", "hydra.sweep", "hydra.sweeper", "hydra.mode", "hydra.launcher")
# Request columns in which a comma is part of the text; in the others it is meant as a sweep.
_PROSE = tuple(f"row_defaults.{n}" for n, field in ROW_DEFAULTS.items() if field.column.prose)
# Text that may be given as a mapping, or as a list.
_MAPPINGS = ("row_defaults.cache_params",)
_LISTS = ("row_defaults.lora",)
_TEXTS = re.compile(r"\[[^\[\]{}()'\"\\$]+\]")  # a list of plain words
_SHOWN_VALUES = 20  # of a range


def hydra_overrides(overrides: Sequence[str]) -> list[str]:
    """What Hydra gets for `overrides`; of each group the last one. Raises ConfigError."""
    made = [part for text in overrides for part in _made(text)]
    last = {key_of(text): i for i, text in enumerate(made)}
    return [
        text for i, text in enumerate(made) if key_of(text) not in GROUPS or last[key_of(text)] == i
    ]


def key_of(text: str) -> str:
    """The key of an override that Hydra gets."""
    return text.partition("=")[0].lstrip("+~")


def quoted(text: str) -> str:
    """`text` as a value that Hydra's grammar reads as exactly this text."""
    return str(QuotedString(text, Quote.single).with_quotes())


def verbatim(key: str, text: str) -> str:
    """An override that sets `key` to exactly this text, whatever is in it."""
    return f"{key}={quoted(text.replace('${', chr(92) + '${'))}"


def _made(text: str) -> tuple[str, ...]:
    shape = _SHAPE.fullmatch(text)
    sign, key, value = shape.groups() if shape else (None, "", None)
    if value is None and sign != "~":
        raise ConfigError(f"{text!r}: an override cannot be read; write key=value")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return (_hydras(text, key),)
    if sign == "~":
        return _without(text, key, value)
    typed = (value or "").strip()
    parsed = _parsed(f"{key}={typed}")
    if key in GROUPS:
        return (f"{key}={_group(text, key, typed, parsed)}",)
    key = canonical_key(key, typed)
    leaf = leaf_of(key)
    _check_key(leaf)
    # `++`: a value may replace one that no file mentions.
    return (f"++{key}={_value(text, leaf, typed, parsed)}",)


def _parsed(text: str) -> Override | None:
    """The override as Hydra's grammar reads it; None where it does not."""
    try:
        parsed: Override = OverridesParser.create().parse_override(text)
        parsed.value()
    except (HydraException, ValueError):
        return None
    return parsed


def refuse_hydras_own(job: Path, content: Container) -> None:
    """Raise ConfigError for what would steer Hydra itself from a job file: nothing is swallowed."""
    for key in _HYDRAS_OWN:
        if OmegaConf.select(content, key) is not None:
            raise ConfigError(f"{job}: {key}: {_NOT_FOR_JOBS}")


def _hydras(text: str, key: str) -> str:
    if key.startswith(_HYDRAS_OWN):
        raise ConfigError(f"{text}: {_NOT_FOR_JOBS}")
    if _parsed(text) is None:
        raise ConfigError(f"{text}: an override cannot be read; write key=value")
    return text


def _without(text: str, key: str, value: str | None) -> tuple[str, ...]:
    """`~key`: back to the default of the schema."""
    if key in GROUPS:
        raise ConfigError(f"{text}: a job needs one; choose another: {key}=<name>")
    if value is not None:
        raise ConfigError(f"{text}: a key is taken out without a value: ~{key}")
    key = canonical_key(key, "")
    _check_key(key)
    there = () if hint_of(key) is None else (f"++{key}=0",)  # what is null Hydra does not find
    return (*there, f"~{key}")


def _group(text: str, key: str, typed: str, parsed: Override | None) -> str:
    if parsed is not None and parsed.is_sweep_override():
        raise ConfigError(_sweep_answer(text, key, typed, parsed))
    value = typed if parsed is None else parsed.value()
    if isinstance(value, str) and value.endswith(".yaml"):
        name = shell_word(f"{key}={value.rpartition('/')[2].removesuffix('.yaml')}")
        raise ConfigError(f"{text}: {key} takes a name, not a file; write {name}")
    if not typed or isinstance(value, (list, dict)) or value is None:
        raise ConfigError(f"{text}: {key} takes the name of one of its files")
    return typed if isinstance(value, str) and parsed is not None else quoted(typed)


def _value(text: str, key: str, typed: str, parsed: Override | None) -> str:
    """The value as Hydra gets it."""
    hint = hint_of(key)
    if parsed is None:
        if get_origin(hint) in (tuple, dict):
            raise ConfigError(_structure_answer(key, typed, hint))
        return quoted(typed)
    if parsed.is_sweep_override():
        return _commas(text, key, typed, parsed)
    value = parsed.value()
    if get_origin(hint) is tuple and isinstance(value, str) and "${" not in value:
        raise ConfigError(f"{key}: {typed!r} is not a list; write {_listed(key, typed)}")
    if get_origin(hint) is tuple and takes_text(get_args(hint)[0]) and _TEXTS.fullmatch(typed):
        words = [word.strip() for word in typed[1:-1].split(",")]
        return f"[{','.join(quoted(word) if word != 'null' else word for word in words)}]"
    mapping = isinstance(value, dict) and key in _MAPPINGS
    listed = isinstance(value, list) and key in _LISTS
    if mapping or listed or not takes_text(hint) or isinstance(value, str):
        return typed
    if value is None:
        if takes(hint, type(None)):
            return typed
        word = shell_word(f"{key}={quoted(typed)}")
        raise ConfigError(f"{key}: null is not a string; for the word itself write {word}")
    return typed if isinstance(value, bool) and takes(hint, bool) else quoted(typed)


def _commas(text: str, key: str, typed: str, parsed: Override) -> str:
    """The text `a,b` where commas are part of a text; an answer where Hydra would sweep."""
    hint = hint_of(key)
    simple = _is_simple(parsed)
    if takes_text(hint) and not (key.startswith("row_defaults.") and key not in _PROSE):
        if simple:
            return quoted(typed)
        word = shell_word(f"{key}={quoted(typed)}")
        raise ConfigError(f"{text}: one run has one value of {key}; as a text write {word}")
    if get_origin(hint) is tuple and simple:
        raise ConfigError(f"{text}: a list is written key=[a,b]: {_listed(key, typed)}")
    raise ConfigError(_sweep_answer(text, key, typed, parsed))


def _check_key(key: str) -> None:
    """Raise ConfigError unless `key` is a leaf of the schema, its parent, or in a mapping."""
    if is_resolved(key) or hint_of(key) is not None:
        return
    if not any(leaf.startswith(f"{key}.") for leaf, _ in leaf_keys()):
        raise ConfigError(unknown_key_message(key))


# ---------------------------------------------------------------------------------------- answers
_NOT_FOR_JOBS = (
    "is not for jobs: a sweep is a manifest (batchgen manifest build prompts.txt sweep.parquet "
    "num_steps=2,3), and own models and profiles are looked for in model/ and slurm/ of the "
    "current folder and of the job's"
)


def _sweep_answer(text: str, key: str, typed: str, parsed: Override) -> str:
    """What to do instead of a sweep: one run has one value of each key."""
    values = _values(typed, parsed)
    column = key.rpartition(".")[2]
    if key.startswith("row_defaults.") or key in ("seed", "output.fps"):
        build = shell_word(f"{column}={','.join(values)}")
        return (
            f"{text}: one run has one value of {key}; a sweep is a manifest with every row once "
            f"for each value: batchgen manifest build prompts.txt sweep.parquet {build}"
        )
    words = " ".join(shell_word(value) for value in values)
    return (
        f"{text}: one run has one value of {key}; start one for each: "
        f'for v in {words}; do batchgen run JOB {key}="$v"; done'
    )


def _values(typed: str, parsed: Override) -> list[str]:
    sweep = parsed.value()
    if isinstance(sweep, RangeSweep):
        first = [f"{value:g}" for value in islice(sweep.range(), _SHOWN_VALUES + 1)]
        return first if len(first) <= _SHOWN_VALUES else [*first[:_SHOWN_VALUES], "..."]
    if isinstance(sweep, ChoiceSweep):
        items = sweep.list
        return [item.text if isinstance(item, QuotedString) else str(item) for item in items]
    return ["a", "b"]


def _is_simple(parsed: Override) -> bool:
    """Whether a sweep is just commas: `a,b`."""
    sweep: Sweep = parsed.value()
    return isinstance(sweep, ChoiceSweep) and sweep.simple_form


def _structure_answer(key: str, typed: str, hint: object) -> str:
    if get_origin(hint) is tuple:
        return f"{key}: {typed!r} cannot be read as a list; write {_listed(key, typed)}"
    return f"{key}: {typed!r} cannot be read; set one entry at a time: {key}.NAME=VALUE"


def _listed(key: str, typed: str) -> str:
    """The words of a list, each in quotes, as a shell takes it."""
    words = [word.strip().strip("'\"") for word in typed.strip("[]").split(",")]
    return shell_word(f"{key}=[{','.join(quoted(word) for word in words if word)}]")


def shell_word(text: str) -> str:
    """`text` as one word of a shell, in the quotes that are easiest to read."""
    plain = shlex.quote(text)
    if plain == text or "'" not in text or re.search(r'["$`\\!]', text):
        return plain
    return f'"{text}"'
