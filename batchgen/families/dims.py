"""Base of the dataclasses that describe a component, with fields named as in its config.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, fields
from typing import Any, get_type_hints

_STORED = "stored"


class ComponentDims:
    """Dimensions of a component. Base class."""

    __slots__ = ()

    def random_extras(self) -> dict[str, Any]:
        """Further entries of config.json for random weights."""
        return {}

    def block_weights(self) -> tuple[int, ...]:
        """Number of weights of each block of an encoder that can stream (`Component.layers`)."""
        return ()


def stored(default: Any, name: str | None) -> Any:
    """A dataclass field that config.json calls `name`. None: config.json does not have it, since no
    weight depends on it."""
    return field(default=default, metadata={_STORED: name})


def stored_names(dims: type, component: str) -> Iterator[tuple[str, str]]:
    """(field, its name in config.json) for each field of a component in a family's `Dims`."""
    for spec in fields(get_type_hints(dims)[component]):
        name = spec.metadata.get(_STORED, spec.name)
        if name is not None:
            yield spec.name, name


def stored_fields(dims: Any) -> Iterator[tuple[str, str, object]]:
    """(field, its name in config.json, its value as in JSON) for each stored dimension."""
    for spec in fields(dims):
        name = spec.metadata.get(_STORED, spec.name)
        if name is not None:
            value = getattr(dims, spec.name)
            yield spec.name, name, list(value) if isinstance(value, tuple) else value


def stored_dims(dims: Any) -> dict[str, Any]:
    """The part of a component's config.json that follows from its dimensions."""
    return {name: value for _, name, value in stored_fields(dims)}
