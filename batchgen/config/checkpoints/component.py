"""Which files of a checkpoint folder a model is loaded from.

What is checked, what is loaded and what a digest is made of all ask here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchgen.errors import WeightsError
from batchgen.families.family import Component

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model")  # one of them is needed
SPELLED = ("vocab.json", "merges.txt")  # or both of these: as CLIP's is published
# Whether the tables beside tokenizer.json are read depends on the version of transformers.
_TOKENIZER_FILES = (
    *TOKENIZERS, "added_tokens.json", "config.json", "merges.txt", "special_tokens_map.json",
    "chat_template.jinja", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
# Keys of a config.json by which the libraries would load other files, or otherwise.
_STEERING = ("transformers_weights", "quantization_config")
_ADAPTER = "adapter_config.json"  # transformers would load it where peft is installed
_LFS = b"version https://git-lfs"


def component_files(folder: Path, component: Component, variant: str | None = None) -> list[Path]:
    """The files that the component is loaded from, and no others, in a fixed order; those of the
    variant, where it has them.

    Raises WeightsError naming what is missing, or what could be read in two ways.
    """
    home = folder / component.name
    if not home.is_dir():
        refuse_dead_link(home)
        refuse_pickled(sorted(folder.glob("*")))
        raise WeightsError(f"{home}: there is no such folder; the model needs {component.name}")
    if component.kind == "tokenizer":
        return _tokenizer_files(home)
    if component.kind == "processor":
        return [present(home / "preprocessor_config.json")]
    if component.kind == "scheduler":
        return [present(config_file(folder, component))]
    if component.kind == "files":
        return _files(home)
    if component.library == "transformers" and (home / _ADAPTER).exists():
        raise WeightsError(f"{home / _ADAPTER}: an adapter in the folder is not served")
    files = weight_files(home, component, variant_of(home, component, variant))
    return [*files, present(config_file(folder, component))]


def config_file(folder: Path, component: Component) -> Path:
    """Where the checkpoint in `folder` describes a component."""
    settings = component.kind == "scheduler"  # scheduler_config.json, guider_config.json
    name = f"{component.name}_config.json" if settings else "config.json"
    return folder / component.name / name


def variant_of(home: Path, component: Component, variant: str | None) -> str | None:
    """The variant, if the component has it; as in the libraries, others are loaded without."""
    files = (_single(home, component, variant), index_file(home, component, variant))
    return variant if any(map(_is_there, files)) else None


def _single(home: Path, component: Component, variant: str | None) -> Path:
    middle = "" if variant is None else f".{variant}"
    return home / f"{_STEMS[component.library]}{middle}.safetensors"


def weight_files(home: Path, component: Component, variant: str | None = None) -> list[Path]:
    """The component's safetensors files, those of its index where there is one.

    Raises WeightsError for missing files, and for pickled ones with the converting command."""
    single, index = _single(home, component, variant), index_file(home, component, variant)
    if _is_there(single) and _is_there(index):
        raise WeightsError(
            f"{home}: has both {single.name} and {index.name}; libraries differ in which one they "
            "take: move the one that is not meant out of the folder"
        )
    if _is_there(index):
        return shards(index)
    if _is_there(single):
        return [single]
    others = sorted(home.iterdir())
    refuse_pickled(others)
    _refuse_other_names(home, single.name, others)
    raise WeightsError(f"{home}: has no weights; {single.name} or {index.name} is needed")


def _refuse_other_names(home: Path, name: str, others: Sequence[Path]) -> None:
    """Raise WeightsError if there are weights that the library does not look for: a variant such as
    `model.fp16.safetensors`, or another library's."""
    found = [p.name for p in others if ".safetensors" in p.name]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise WeightsError(
            f"{home}: has no {name}, only {found[0]}{more}; {_as_variant(name, found[0])}variants "
            "and other names are not loaded by themselves: to use one, copy or link it as "
            f"{name} (shards with their index likewise)"
        )


def _as_variant(name: str, found: str) -> str:
    """How to ask for what was found, if it is a variant of `name`."""
    stem = name.removesuffix(".safetensors")
    match = re.match(rf"{re.escape(stem)}(\.safetensors\.index)?\.([A-Za-z0-9]+)[.-]", found)
    return f"set model.variant={match[2]}; " if match and match[2] != "safetensors" else ""


def index_file(home: Path, component: Component, variant: str | None = None) -> Path:
    """Where the component's index is if its weights are in several files."""
    middle = "" if variant is None else f".{variant}"
    return home / f"{_STEMS[component.library]}.safetensors.index{middle}.json"


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, as an index says; raises WeightsError if the libraries cannot read it."""
    content = read_json(index)
    found = content.get("weight_map")
    if not isinstance(found, dict) or not found or not isinstance(content.get("metadata"), dict):
        raise WeightsError(f"{index}: has no readable weight_map (or no metadata)")
    for name in found.values():
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise WeightsError(f"{index}: weight_map names {name!r}; it must be a file beside it")
    return found


def shards(index: Path) -> list[Path]:
    """The files that an index names; raises WeightsError if one is missing."""
    names = sorted(set(weight_map(index).values()))
    for name in names:
        if not _is_there(index.parent / name):
            raise WeightsError(f"{index.parent / name}: is missing (named by {index.name})")
    return [index.parent / name for name in names]


def _files(home: Path) -> list[Path]:
    """All that are in a folder, but for what only people read."""
    found = [path for path in sorted(home.rglob("*")) if not path.is_dir()]
    files = [path for path in found if path.suffix != ".md" and not path.name.startswith(".")]
    if not files:
        raise WeightsError(f"{home}: is empty")
    refuse_pickled(files)
    for file in files:
        refuse_pointer(present(file))
    return files


def _tokenizer_files(home: Path) -> list[Path]:
    spelled = all([_is_there(home / name) for name in SPELLED])
    if not (spelled or _needs_no_table(home) or any(_is_there(home / t) for t in TOKENIZERS)):
        raise WeightsError(f"{home}: has no tokenizer; one of {', '.join(TOKENIZERS)} is needed")
    return [home / name for name in sorted(_TOKENIZER_FILES) if _is_there(home / name)]


def _needs_no_table(home: Path) -> bool:
    """Whether its tokens are bytes."""
    config = home / "tokenizer_config.json"
    return _is_there(config) and read_json(config).get("tokenizer_class") == "ByT5Tokenizer"


def present(file: Path) -> Path:
    """The file itself; raises WeightsError if it is not there."""
    if not _is_there(file):
        raise WeightsError(f"{file}: is missing")
    return file


def _is_there(path: Path) -> bool:
    """Whether it is a file, or a link to one; raises WeightsError for a link to nothing, and for
    what is no file."""
    refuse_dead_link(path)
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path}: is no plain file")
    return path.is_file()


def refuse_dead_link(path: Path) -> None:
    """Raise WeightsError if `path` is a link to nothing."""
    if path.is_symlink() and not path.exists():
        raise WeightsError(
            f"{path}: is a link to {path.readlink()}, where there is nothing; copy checkpoints "
            "with the files that their links name (cp -rL)"
        )


def refuse_pickled(files: Sequence[Path]) -> None:
    """Raise WeightsError for the first pickled file among `files`: loading it could run code."""
    for file in files:
        if file.suffix in PICKLED:
            target = file.with_suffix(".safetensors")
            raise WeightsError(
                f"{file}: pickled weights are not loaded (they can run code); convert them once: "
                f"batchgen weights convert {file} {target}"
            )


def refuse_pointer(file: Path) -> None:
    """Raise WeightsError for a file that cannot be read, is empty, or only says where git-lfs
    keeps it."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LFS))
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from error
    if not start:
        raise WeightsError(f"{file}: is empty")
    if start == _LFS:
        raise WeightsError(
            f"{file}: is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; raises WeightsError if it is missing or holds anything else."""
    refuse_pointer(present(file))
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: is not JSON: {error}") from error
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: is not a JSON object")
    return content


def read_config(home: Path) -> dict[str, Any]:
    """A model's config.json; raises WeightsError if it would have other files loaded."""
    file = home / "config.json"
    config = read_json(file)
    for key in _STEERING:
        if config.get(key):
            raise WeightsError(f"{file}: {key} is not served; legal: a config.json without it")
    return config
