"""Base of the dataclasses that describe a component, with fields named as in its config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, fields, is_dataclass
from typing import Any, get_type_hints

_STORED, _LATER = "stored", "later"
ABSENT = object()


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
    """A dataclass field that config.json calls `name`: `a.b` is b inside of a. None: config.json
    does not have it, since no weight depends on it."""
    return field(default=default, metadata={_STORED: name})


def later(default: Any) -> Any:
    """A dataclass field that came after models were drawn with: at its default it is in no key of
    random weights, as it was in none before."""
    return field(default=default, metadata={_LATER: True})


def in_key(dims: Any) -> dict[str, Any]:
    """A model's dimensions as keys of random weights have them."""
    found: dict[str, Any] = asdict(dims)
    for part in fields(dims):
        component = getattr(dims, part.name)
        for spec in fields(component) if is_dataclass(component) else ():
            if spec.metadata.get(_LATER) and getattr(component, spec.name) == spec.default:
                del found[part.name][spec.name]
    return found


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
    found: dict[str, Any] = {}
    for _, name, value in stored_fields(dims):
        *above, leaf = name.split(".")
        inner = found
        for part in above:
            inner = inner.setdefault(part, {})
        inner[leaf] = value
    return found


def stored_value(config: Mapping[str, Any], name: str) -> Any:
    """What a config.json says of a dimension; ABSENT if nothing. Older files of models with a part
    for text say it outside of that."""
    found: Any = config
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return config.get(name.removeprefix("text_config."), ABSENT)
        found = found[part]
    return found
