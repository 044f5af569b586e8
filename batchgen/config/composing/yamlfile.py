"""Reading a YAML file strictly: what is wrong with it is said with file, line and column."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from batchgen.config.composing.yamltext import as_written
from batchgen.errors import ConfigError

_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_MERGE = "tag:yaml.org,2002:merge"  # `<<`, which may stand twice


def read_yaml(path: Path, group: str = "") -> tuple[str, Container]:
    """The text of a YAML file and what it says; at keys that take text, as it is written there.
    `group`: the key at which the file stands in a job. Raises ConfigError with line and column
    for one that cannot be read, is not UTF-8, is not YAML, holds a key twice, or is no mapping."""
    text = _text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_doubled_keys(path, root)
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}: {_place(root.start_mark)}: not a mapping; write key: value")
        text = as_written(text, root, group)
        return text, OmegaConf.load(io.StringIO(text))
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{path}: {_unreadable(text, error)}") from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}: {_said(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: its lists or mappings are nested too deeply") from error
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error


def _text(path: Path) -> str:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path}: is no plain file")  # a pipe would be waited for
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    if raw.startswith(_WIDE):
        raise ConfigError(f"{path}: is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        raise ConfigError(
            f"{path}: {_position(before)}: byte 0x{raw[error.start]:02x} is not UTF-8 "
            f"({chr(raw[error.start])!r} in Latin-1); save the file as UTF-8"
        ) from error


def _refuse_doubled_keys(path: Path, root: yaml.Node | None) -> None:
    """Two keys of one name: which of them was meant, nobody knows."""
    for mapping in _mappings(root):
        first: dict[str, yaml.Mark] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in first:
                raise ConfigError(
                    f"{path}: {_place(key.start_mark)}: the key {key.value!r} is there twice, "
                    f"first in line {first[key.value].line + 1}; keep one"
                )
            first[key.value] = key.start_mark


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Every mapping below `root`, once: anchors may make a node stand in several places."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _said(error: yaml.MarkedYAMLError) -> str:
    """`line 3, column 1: found character '\\t' ...` in the words of the YAML reader."""
    mark = error.problem_mark or error.context_mark
    parts = [_place(mark)] if mark else []
    parts.append(error.problem or error.context or "is not YAML")
    if error.problem and error.context:
        begun = error.context_mark
        since = f" in line {begun.line + 1}" if begun and begun.line != mark.line else ""
        parts[-1] += f" ({error.context}{since})"
    if "'\\t'" in parts[-1]:
        parts[-1] += "; indent with spaces, not tabs"
    return ": ".join(parts)


def _unreadable(text: str, error: yaml.reader.ReaderError) -> str:
    hint = "; is the file UTF-16?" if error.character == 0 else ""
    place = _position(text[: error.position])
    return f"{place}: the character U+{error.character:04X} cannot stand in YAML{hint}"


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _position(before: str) -> str:
    """Line and column of what follows `before`."""
    line = before.count("\n") + 1
    return f"line {line}, column {len(before) - before.rfind(chr(10))}"
