"""Mapping -> frozen dataclass, strictly: every wrong key or value is a ConfigError that names it.

The types of `schema.py` are the rules; `limits.py` adds ranges. Nothing is converted in silence
but an integer where a real number is wanted, and YAML's `off`, which a loader reads as false.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from batchgen.config.limits import check_limit
from batchgen.config.schema import JobConfig, ModelSpec, Modules
from batchgen.errors import ConfigError, closest
from batchgen.families.family import family_names, family_spec
from batchgen.request import MANIFEST, ROW_DEFAULTS

T = TypeVar("T")
# End of a key -> unit of its number.
UNITS = {
    "_min": "minutes", "_s": "seconds", "_gib": "GiB", "_mib": "MiB", "_hours": "hours",
    "vram_limit": "GiB", "_gb": "GB", "_gbs": "GB/s", "_tflops": "TFLOP/s",
}  # fmt: skip

# Where a short name belongs when several tiers spell it alike: the first tier that has it.
_TIERS = ("row_defaults", "system", "output", "slurm", "", "model")
# Read under these names, and recorded under other ones.
_SHORTS = {"cache": "row_defaults.cache", "low_mem_level": "system.memory.low_mem_level"}


def build(cls: type[T], mapping: Mapping[str, object], where: str = "") -> T:
    """An instance of the schema class `cls` from a mapping of plain values.

    `where` is the dotted key of the mapping inside the job, for messages. Raises ConfigError for
    an unknown or missing key, a wrong type, an illegal value.
    """
    if cls is ModelSpec:
        mapping = _with_dims(mapping, where)
    hints = _hints(cast(Any, cls))
    for key in mapping:
        if key not in hints:
            raise ConfigError(unknown_key_message(_join(where, str(key))))
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in mapping.items()}
    for spec in fields(cls):  # type: ignore[arg-type]
        required = spec.default is MISSING and spec.default_factory is MISSING
        if required and spec.name not in values:
            raise ConfigError(f"{_join(where, spec.name)}: required, but not set")
    return cls(**values)


def _with_dims(mapping: Mapping[str, object], where: str) -> Mapping[str, object]:
    """The keys of a model with those that its family declares made into the family's `Dims`."""
    if "dims" in mapping:
        raise ConfigError(unknown_key_message(_join(where, "dims")))
    if "family" not in mapping:
        raise ConfigError(f"{_join(where, 'family')}: required, but not set")
    family = str(_convert(str, mapping["family"], _join(where, "family")))
    kind = family_spec(family).Dims
    own = {field.name for field in fields(kind)}
    known = own | {field.name for field in fields(ModelSpec)}
    elsewhere = {f.name for name in family_names() for f in fields(family_spec(name).Dims)}
    for key in mapping:
        if key not in known and key in elsewhere:
            raise ConfigError(f"{_join(where, key)}: models of family {family} have no {key}")
    dims: object = build(kind, {key: mapping[key] for key in mapping if key in own}, where)
    return {**{key: mapping[key] for key in mapping if key not in own}, "dims": dims}


def to_mapping(config: object) -> dict[str, Any]:
    """The inverse of `build`: nested plain mappings and lists, every key present."""
    plain = _plain(asdict(config))  # type: ignore[call-overload]
    assert isinstance(plain, dict)
    if isinstance(config, JobConfig):
        plain["model"] |= plain["model"].pop("dims")
    return plain


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


# ------------------------------------------------------------------------------------ legal keys
def leaf_keys(cls: type = JobConfig, where: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted key of a schema class with its type; a free mapping counts as one leaf."""
    for name, hint in _hints(cls).items():
        if cls is ModelSpec and name == "dims":
            yield from _dims_keys(where)
            continue
        key = _join(where, name)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from leaf_keys(hint, key)
        else:
            yield key, hint


@cache
def hint_of(key: str) -> object | None:
    """The type of a dotted key, also of an entry of a free mapping; None for what is no leaf."""
    for leaf, hint in leaf_keys():
        if key == leaf:
            return hint
        if key.startswith(f"{leaf}.") and get_origin(hint) is dict:
            return _entry(hint, key.removeprefix(f"{leaf}.").split("."))
    return None


def _entry(hint: object, names: list[str]) -> object | None:
    for name in names:
        if get_origin(hint) is dict:
            hint = get_args(hint)[1]
        elif is_dataclass(hint):
            hint = _hints(cast(Any, hint)).get(name)
        else:
            return None
    return None if is_dataclass(hint) else hint


def takes(hint: object, kind: type) -> bool:
    """Whether a key of type `hint` takes values of `kind` (str, int, float, bool or NoneType)."""
    return hint is kind or (get_origin(hint) in (Union, types.UnionType) and kind in get_args(hint))


def takes_text(hint: object) -> bool:
    """Whether a key of type `hint` takes text, and no numbers beside it."""
    return takes(hint, str) and not takes(hint, int) and not takes(hint, float)


def legal_words(key: str) -> list[str]:
    """The words that a dotted key takes, `null` last; none where they cannot be listed."""
    hint = hint_of(key)
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    listed = [option for option in options if get_origin(option) is Literal]
    words = [str(word) for option in listed for word in get_args(option)]
    words += ["true", "false"] if bool in options else []
    return [*words, "null"] if type(None) in options else words


def _dims_keys(where: str) -> Iterator[tuple[str, object]]:
    """Keys that some family declares; which ones a model takes is known when it is built."""
    found: dict[str, object] = {}
    for family in family_names():
        found |= dict(leaf_keys(family_spec(family).Dims, where))
    yield from found.items()


def home_of(name: str) -> str | None:
    """The dotted key whose last part is `name`, in the tier where users set it; None if nowhere."""
    homes = [key for key, _ in leaf_keys() if key.rpartition(".")[2] == name]
    for tier in _TIERS:
        for key in homes:
            if key.partition(".")[0] == tier or (not tier and "." not in key):
                return key
    return None


def unknown_key_message(key: str) -> str:
    """Why `key` is not a key of a job, and which one was probably meant."""
    parent, _, name = key.rpartition(".")
    if name in MANIFEST and name not in ROW_DEFAULTS:
        return f"{key}: unknown key; {name} is a column of the manifest and has no job-wide value"
    home = home_of(name) or _SHORTS.get(name)
    if home is not None and home != key:
        tier, given = home.partition(".")[0], key.partition(".")[0]
        where = "" if tier == given else f"{name} belongs to {_tier_name(home)}; "
        return f"{key}: unknown key; {where}did you mean {home!r}?"
    siblings = legal_children(parent)
    if not siblings:
        return f"{key}: unknown key{closest(key, [k for k, _ in leaf_keys()])}"
    listed = ", ".join(siblings)
    full = f"{parent}." if parent else ""  # a hint is typed as it stands
    near = closest(name, siblings).replace("'", f"'{full}", 1)
    if not near and not parent:  # a column of the manifest, written as if it were a key
        near = closest(name, ROW_DEFAULTS).replace("'", "'row_defaults.", 1)
    return f"{key}: unknown key{near}; legal keys {_under(parent)}: {listed}"


def _tier_name(key: str) -> str:
    return key.partition(".")[0] if "." in key else "the job itself"


def legal_children(parent: str) -> list[str]:
    """Names directly below the dotted key `parent` (`""`: the job itself; `output.judges[0]`: an
    entry of a list)."""
    listed = get_args(dict(leaf_keys()).get(parent.rpartition("[")[0]))
    if listed and is_dataclass(listed[0]):
        return [*_hints(cast(Any, listed[0]))]
    prefix = f"{parent}." if parent else ""
    below = [key.removeprefix(prefix) for key, _ in leaf_keys() if key.startswith(prefix)]
    return list(dict.fromkeys(name.partition(".")[0] for name in below))


def _under(parent: str) -> str:
    return f"of {parent}" if parent else "of a job"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: _legal_names(hint) for name, hint in hints.items()}


def _legal_names(hint: Any) -> Any:
    """The type of a key; where a folder says what is legal, the names found there."""
    marks = getattr(hint, "__metadata__", ())
    if marks and isinstance(marks[0], Modules):
        return Literal.__getitem__(marks[0].names())
    return get_args(hint)[0] if marks else hint  # what else stands beside a type is not for here


# ---------------------------------------------------------------------------------------- values
def _convert(hint: Any, value: object, where: str) -> object:
    """`value` as the type `hint`, checked; raises ConfigError."""
    if is_dataclass(hint):
        return _convert_section(hint, value, where)
    if hint is Any:
        return value  # checked where it was made
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        converted = _convert_union(hint, value, where)
    elif origin is Literal:
        converted = _convert_literal(get_args(hint), value, where)
    elif origin is tuple:
        converted = _convert_tuple(get_args(hint), value, where)
    elif origin is dict:
        converted = _convert_dict(get_args(hint)[1], value, where)
    else:
        converted = _convert_scalar(hint, value, where)
    check_limit(where, converted)
    return converted


def _convert_section(cls: Any, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        legal = ", ".join(legal_children(where)) or "its keys"
        raise ConfigError(f"{where}: {_shown(value)} is not a mapping; it takes the keys {legal}")
    return build(cls, value, where)


def _convert_union(hint: Any, value: object, where: str) -> object:
    options = get_args(hint)
    if value is None and type(None) in options:
        return None
    literal = [a for o in options if get_origin(o) is Literal for a in get_args(o)]
    if value in literal and not isinstance(value, bool):
        return value
    rest = [o for o in options if o is not type(None) and get_origin(o) is not Literal]
    for option in rest:
        if _fits(option, value):
            return _convert(option, value, where)
    legal = [repr(word) for word in literal]
    legal += [f"{_type_name(option)}{_unit(where, option)}" for option in rest]
    legal += ["null"] if type(None) in options else []
    near = closest(value, [str(w) for w in literal]) if isinstance(value, str) else ""
    hint_text = _yaml_hint(rest, value)
    raise ConfigError(f"{where}: {_shown(value)} is not {_one_of(legal)}{near}{hint_text}")


def _fits(option: Any, value: object) -> bool:
    if option is bool:
        return isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if option is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if option is str:
        return isinstance(value, str)
    return True  # a container: let its own conversion find the error


def _convert_literal(legal: tuple[Any, ...], value: object, where: str) -> object:
    if value is False and "off" in legal:  # YAML 1.1 reads a bare `off` as false
        return "off"
    if value in legal and not isinstance(value, bool):
        return value
    near = closest(value, [str(w) for w in legal]) if isinstance(value, str) else ""
    listed = ", ".join(repr(word) for word in legal)
    raise ConfigError(f"{where}: {_shown(value)} is not one of {listed}{near}")


def _convert_tuple(items: tuple[Any, ...], value: object, where: str) -> object:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: {_shown(value)} is not a list")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_convert(items[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(items):
        raise ConfigError(f"{where}: {value!r} must have {len(items)} entries")
    return tuple(
        _convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(items, value, strict=True))
    )


def _convert_dict(item: Any, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {_shown(value)} is not a mapping")
    return {str(k): _convert(item, v, f"{where}.{k}") for k, v in value.items()}


def _convert_scalar(hint: Any, value: object, where: str) -> object:
    if not _fits(hint, value):
        hint_text = _yaml_hint([hint], value)
        what = f"{_type_name(hint)}{_unit(where, hint)}"
        raise ConfigError(f"{where}: {_shown(value)} is not {what}{hint_text}")
    if hint is float:
        assert isinstance(value, (int, float))
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {value!r} is not a finite number")
        return float(value)
    return value


def _shown(value: object) -> str:
    """A value as it would stand in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _yaml_hint(options: list[Any], value: object) -> str:
    """YAML 1.1 turns 16:9 into 969 and yes into true: say how to keep the text."""
    if str in options and isinstance(value, (bool, int, float)):
        return " (write it in quotes if it is text, as in '16:9')"
    return ""


def _type_name(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return names.get(hint, "a list" if get_origin(hint) is tuple else str(hint))


def _unit(key: str, hint: Any) -> str:
    """The unit of a number, as the end of its key names it."""
    unit = next((unit for end, unit in UNITS.items() if key.endswith(end)), "")
    return f" of {unit}" if unit and hint in (int, float) else ""


def _one_of(legal: list[str]) -> str:
    return legal[0] if len(legal) == 1 else f"{', '.join(legal[:-1])} or {legal[-1]}"
