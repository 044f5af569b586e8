"""Judges of a job: functions of the user's or of batchgen's that say something of a row's frames.

A judge is called as `judge(frames, request, **params)`, with uint8 frames (frames, height, width,
3), and gives a number, a mapping of its columns to numbers, or None. It may have an attribute
`resolve`, called with the parameters where a job is read: it gives them as they are to be kept, or
raises ValueError for what is wrong with them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from batchgen.config.schema import JudgeConfig
from batchgen.errors import BatchgenError, ConfigError

_CALL = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
SCORE = JudgeConfig(call="batchgen.tiny.score:judge", columns=("score",))  # of the embedded model


def resolved_judges(judges: Sequence[JudgeConfig]) -> tuple[JudgeConfig, ...]:
    """The judges with columns and parameters as they are kept. Imports them; ConfigError naming the
    one that cannot be used."""
    found = tuple(_resolved(f"output.judges[{n}]", judge) for n, judge in enumerate(judges))
    names = [column for judge in found for column in judge.columns]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"output.judges: two columns are called {name!r}; set `columns`")
    return found


def function_of(call: str) -> Callable[..., Any]:
    """The function `module:function`. A module may also lie in the current folder, which ranks
    share with the command that submits them. ImportError if it is not there."""
    module, _, name = call.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: nothing of the current folder replaces a package
    try:
        function = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever a module raises while it is imported
        raise ImportError(
            f"{call!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        raise ImportError(f"{call!r} is no function but {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def in_key(judges: Sequence[JudgeConfig]) -> str:
    """What of them is in a row's key, as JSON: those that may have it drawn with another seed."""
    stored = [
        {
            "call": judge.call,
            "columns": judge.columns,
            "params": judge.params,
            "at_least": judge.at_least,
            "at_most": judge.at_most,
            "retries": judge.retries,
        }
        for judge in judges
        if judge.policy == "retry"
    ]
    return json.dumps(stored, sort_keys=True) if stored else ""


def columns_of(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns of all judges of stored configurations, each once, in order."""
    judges = [j for c in configs for j in c.get("output", {}).get("judges", ())]
    return tuple(dict.fromkeys(column for judge in judges for column in judge["columns"]))


def _resolved(where: str, judge: JudgeConfig) -> JudgeConfig:
    if not _CALL.fullmatch(judge.call):
        raise ConfigError(f"{where}.call: {judge.call!r} is not of the form module:function")
    try:
        function = function_of(judge.call)
        params = _params(function, judge.params)
    except ImportError as error:
        raise ConfigError(f"{where}.call: {error}") from error
    except (TypeError, ValueError, OSError, BatchgenError) as error:
        raise ConfigError(f"{where}.params: {judge.call}: {error}") from error
    columns = judge.columns or (judge.call.partition(":")[2],)
    judge = replace(judge, columns=columns, params=params)
    _check_columns(where, judge)
    _check_policy(where, judge)
    return judge


def _params(function: Callable[..., Any], params: dict[str, Any]) -> dict[str, Any]:
    """As they are kept. TypeError where the function does not take them; what `resolve` raises."""
    inspect.signature(function).bind("frames", "request", **params)
    resolve = getattr(function, "resolve", None)
    return params if resolve is None else dict(resolve(**params))


def _check_columns(where: str, judge: JudgeConfig) -> None:
    for name in judge.columns:
        if not _COLUMN.fullmatch(name):
            raise ConfigError(
                f"{where}.columns: {name!r} cannot be a column; legal: 1 to 64 of A-Z a-z 0-9 _"
            )
    for key in ("at_least", "at_most"):
        for name in getattr(judge, key):
            if name not in judge.columns:
                listed = ", ".join(judge.columns)
                raise ConfigError(f"{where}.{key}: {name!r} is none of its columns: {listed}")


def _check_policy(where: str, judge: JudgeConfig) -> None:
    """A policy needs bounds, and only `retry` has retries."""
    if judge.policy != "record" and not (judge.at_least or judge.at_most):
        raise ConfigError(
            f"{where}.policy: {judge.policy!r} needs a bound, at_least or at_most: "
            f"{{{judge.columns[0]}: <number>}}"
        )
    if (judge.policy == "retry") != (judge.retries > 0):
        legal = ">= 1" if judge.policy == "retry" else "0"
        raise ConfigError(
            f"{where}.retries: {judge.retries} with policy {judge.policy!r}; legal: {legal}"
        )
