"""The README's table of what each family serves, made from capabilities.

`python -m batchgen.families.table` prints it; with a file's name it renews the table there, between
the lines that begin and end it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from batchgen.config.build import build
from batchgen.config.schema import ModelSpec
from batchgen.config.userfiles import CONF
from batchgen.errors import ConfigError
from batchgen.families.family import (
    BLOCK_CACHES,
    OUTPUT_CACHES,
    Capabilities,
    family_names,
    family_spec,
)

BEGIN, END = (
    "<!-- families: python -m batchgen.families.table README.md -->",
    "<!-- families end -->",
)
HEAD = (
    "family", "draws", "rows share a forward", "image input", "LoRA", "step caches",
    "ranks share a row", "weights stream", "fp8", "compile", "single file",
)  # fmt: skip
_CACHES = tuple(name for name in (*OUTPUT_CACHES, *BLOCK_CACHES) if name != "none")
_NO = "-"
# What a checkpoint would say of a model that has no preset with dimensions.
_FOUND = {
    "generic": {
        "weights": "random",
        "pipeline": "PixArtSigmaPipeline",
        "parts": {},
        "part_weights": {},
        "request_defaults": {
            **dict.fromkeys(("width", "height"), 1024),
            **dict.fromkeys(("num_frames", "fps"), 1),
            "num_steps": 20,
            "guidance_scale": 4.5,
        },
    }
}


def table() -> str:
    """One line a family, in Markdown; what only some of its packaged models have counts too."""
    lines = [HEAD, ("---",) * len(HEAD)]
    found = presets()
    for name in family_names():
        served = [family_spec(name).capabilities(model) for model in found[name]]
        if not served:
            raise ConfigError(f"family {name} has no packaged model in {CONF / 'model'}")
        lines.append(_cells(name, served))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def presets() -> dict[str, list[ModelSpec]]:
    """The packaged models by family; `auto` has none."""
    found: dict[str, list[ModelSpec]] = defaultdict(list)
    for file in sorted((CONF / "model").glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        family = content["family"]
        if family != "auto":
            found[family].append(build(ModelSpec, content | _FOUND.get(family, {}), "model"))
    return found


def renewed(text: str) -> str:
    """The text with today's table; ConfigError if it has no place for one."""
    return placed(text, BEGIN, END, table())


def placed(text: str, begin: str, end: str, table: str) -> str:
    """The text with a table between these lines; ConfigError if they are not there."""
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ConfigError(f"there is no table: it stands between the lines {begin} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def _cells(name: str, served: Sequence[Capabilities]) -> tuple[str, ...]:
    spec = family_spec(name)
    columns = {column for one in served for column in one.columns}
    needed = set.intersection(*({*one.needs} for one in served))
    images = [column for column in ("image", "last_image") if column in columns]
    shares = [
        axis
        for axis in ("cfg", "ulysses", "ring")
        if any(len(getattr(one, axis)) > 1 for one in served)
    ]
    return (
        f"`{name}`",
        spec.MEDIA if spec.MEDIA != "either" else "image or video",
        _yes(any(one.packs for one in served)),
        ", ".join(f"{c} (needed)" if c in needed else c for c in images) or _NO,
        _yes("lora" in columns),
        _caches({cache for one in served for cache in one.cache_strategies}),
        ", ".join(shares) or _NO,
        _yes(any("stream" in one.memory_modes for one in served)),
        _yes(any("fp8" in one.store_dtypes for one in served)),
        _yes(any(one.compile_modes != ("off",) for one in served)),
        _yes(any(part.original for part in spec.COMPONENTS)),
    )


def _caches(served: set[str]) -> str:
    """Whichever list is shorter: those that it has, or those that it lacks."""
    have, lack = ([c for c in _CACHES if (c in served) == there] for there in (True, False))
    if not have:
        return _NO
    if len(lack) < len(have):
        return f"all but {', '.join(lack)}" if lack else "all"
    return ", ".join(have)


def _yes(there: bool) -> str:
    return "yes" if there else _NO


def print_or_renew(
    files: Sequence[str], table: Callable[[], str], renewed: Callable[[str], str]
) -> None:
    """What is done when the module of a table is run: it is printed, or renewed in files."""
    if not files:
        print(table())
    for file in map(Path, files):
        file.write_text(renewed(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    print_or_renew(sys.argv[1:], table, renewed)
