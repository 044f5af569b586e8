"""Plain scalars of a YAML file at keys that take text: text as written, as on the command line.

YAML reads `20240101` as a number, `007` as 7, `16:9` as 969 and `yes` as true. Where a key takes
text and no number, only the text can be meant: it is put in quotes before anybody resolves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args, get_origin

import yaml  # type: ignore[import-untyped]

from batchgen.config.build import hint_of, takes, takes_text
from batchgen.config.composing.aliases import RENAMED

_TAG = "tag:yaml.org,2002:"
_PACKAGE = re.compile(r"^#\s*@package\s+(\S+)\s*$", re.M)
_HEAD = 512  # characters in which Hydra looks for that line


def as_written(text: str, root: yaml.Node | None, group: str) -> str:
    """`text`, whose nodes are `root`, with quotes around every plain scalar that is meant as text.
    `group`: the dotted key that the file stands at, unless its head names a package."""
    named = _PACKAGE.search(text[:_HEAD])
    if named:
        group = "" if named[1] == "_global_" else named[1]
    found: dict[int, tuple[yaml.ScalarNode, bool]] = {}
    for key, node in _scalars(group, root, ()):
        # one that an alias brings to several keys is text if it is text for all
        found[id(node)] = (node, _is_text(key, node) and found.get(id(node), (node, True))[1])
    for node, meant in sorted(found.values(), key=lambda each: -int(each[0].end_mark.index)):
        start = node.end_mark.index - len(node.value)
        before = text[node.start_mark.index : start]
        # not a text of several lines, nor one with a tag of its own
        if meant and text[start : node.end_mark.index] == node.value and "!" not in before:
            word = node.value.replace("'", "''")
            text = f"{text[:start]}'{word}'{text[node.end_mark.index :]}"
    return text


def _scalars(
    key: str, node: yaml.Node | None, above: tuple[int, ...]
) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every scalar value below a node with its dotted key; entries of lists have their list's."""
    if isinstance(node, yaml.ScalarNode):
        yield key, node
    elif node is None or id(node) in above:
        return
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(f"{key}[]", item, (*above, id(node)))
    else:
        for name, value in node.value:
            merged = name.tag == f"{_TAG}merge"
            here = key if merged or not key else f"{key}."
            below = here if merged else f"{here}{name.value}"
            yield from _scalars(below, value, (*above, id(node)))


def _is_text(key: str, node: yaml.ScalarNode) -> bool:
    if node.style is not None or node.tag == f"{_TAG}null" or node.value == "???":
        return False
    if "${" in node.value:
        return False
    listed = key.endswith("[]")
    key = key.removesuffix("[]")
    hint = hint_of(RENAMED.get(key, key))
    if listed:
        hint = get_args(hint)[0] if get_origin(hint) is tuple else None
    return takes_text(hint) and not (node.tag == f"{_TAG}bool" and takes(hint, bool))
