"""What the call of an installed diffusers pipeline takes, read from its source without torch.

Planning needs the names of its arguments and their defaults alone, and the import of a pipeline
takes seconds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchgen.errors import ConfigError

UNREAD: Any = object()  # the default of an argument is no plain value, or there is none
# Arguments that a row has no value for and that no job may set either.
_OF_OBJECTS = ("Tensor", "Callable", "Generator", "Image", "ndarray", "ControlNet")
_OUR_OWN = ("return_dict", "callback_steps", "num_images_per_prompt", "num_videos_per_prompt")
_TEXT_TABLES = ("AUTO_TEXT2IMAGE_PIPELINES_MAPPING", "AUTO_TEXT2VIDEO_PIPELINES_MAPPING")


@dataclass(frozen=True, slots=True)
class Argument:
    """One of a call."""

    needed: bool
    default: Any  # UNREAD where it cannot be read
    annotation: str

    @property
    def is_plain(self) -> bool:
        """Whether a job could write a value of it."""
        return not any(word in self.annotation for word in _OF_OBJECTS)

    @property
    def is_tuple(self) -> bool:
        """Whether a list would not do, as of a size that the call adds to others."""
        wanted = self.annotation.casefold()
        return isinstance(self.default, tuple) or ("tuple" in wanted and "list" not in wanted)


@dataclass(frozen=True, slots=True)
class Call:
    """A pipeline class."""

    arguments: Mapping[str, Argument]  # of `__call__`
    parts: Mapping[str, Argument]  # of `__init__`: its components
    from_text: bool  # diffusers' own tables list it for text alone

    def settable(self, taken: tuple[str, ...]) -> tuple[str, ...]:
        """Arguments that a job can set: those with plain values, but for `taken` and our own."""
        others = (*taken, *_OUR_OWN)
        return tuple(
            name
            for name, argument in self.arguments.items()
            if argument.is_plain and name not in others and not name.startswith("callback")
        )


def diffusers_version() -> str:
    return version("diffusers")


@cache
def call_of(pipeline: str) -> Call:
    """The class of that name; ConfigError if the installed diffusers has none with a call."""
    found = dict(_classes(pipeline))
    call, init = _method(found, "__call__"), _method(found, "__init__")
    if call is None:
        raise ConfigError(f"the installed diffusers {diffusers_version()} has no {pipeline}")
    parts = _arguments(init) if init else {}
    return Call(_arguments(call), parts, pipeline in _for_text())


def _pipelines() -> Path:
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        raise ConfigError("diffusers is not installed")
    return Path(spec.origin).parent / "pipelines"


def is_library(name: str) -> bool:
    """Whether a checkpoint's components may be of it: code in checkpoints is never run."""
    return name in ("diffusers", "transformers") or (_pipelines() / name).is_dir()


@cache
def _sources() -> Mapping[str, Path]:
    """Class -> the file that it is in."""
    pattern = re.compile(rb"^class (\w+)\(", re.M)
    return {
        name.decode(): file
        for file in sorted(_pipelines().rglob("*.py"))
        for name in pattern.findall(file.read_bytes())
    }


def _classes(name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """The class, and those of pipelines that it is made of."""
    file = _sources().get(name)
    if file is None:
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield name, node
            for base in node.bases:
                if isinstance(base, ast.Name):
                    yield from _classes(base.id)


def _method(classes: Mapping[str, ast.ClassDef], name: str) -> ast.FunctionDef | None:
    """Its own, else the first that it inherits."""
    for node in classes.values():
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef) and inner.name == name:
                return inner
    return None


def _arguments(method: ast.FunctionDef) -> dict[str, Argument]:
    """All but `self`; what is only caught by `**kwargs` is none."""
    given = method.args
    names = [*given.posonlyargs, *given.args]
    missing = [None] * (len(names) - len(given.defaults))
    pairs = [*zip(names, [*missing, *given.defaults], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {name.arg: _argument(name, default) for name, default in pairs if name.arg != "self"}


def _argument(name: ast.arg, default: ast.expr | None) -> Argument:
    annotation = ast.unparse(name.annotation) if name.annotation else ""
    try:
        value = UNREAD if default is None else ast.literal_eval(default)
    except ValueError:
        value = UNREAD
    return Argument(default is None, value, annotation)


@cache
def _for_text() -> frozenset[str]:
    """Pipelines that diffusers' own `AutoPipeline` takes for text."""
    tree = ast.parse((_pipelines() / "auto_pipeline.py").read_text(encoding="utf-8"))
    tables = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in _TEXT_TABLES
    ]
    names = (inner for table in tables for inner in ast.walk(table) if isinstance(inner, ast.Name))
    return frozenset(name.id for name in names)
