"""A checkpoint folder against what its model needs, as far as that can be told without torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from batchgen.config.checkpoints.component import (
    TOKENIZERS,
    component_files,
    config_file,
    index_file,
    read_config,
    read_json,
    refuse_dead_link,
    refuse_pickled,
    refuse_pointer,
    variant_of,
    weight_map,
)
from batchgen.config.checkpoints.original import (
    check_original,
    original_files,
    refuse_quantised,
    scaled_weight,
)
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.errors import WeightsError, closest
from batchgen.families.components import FindsComponents, components_of
from batchgen.families.dims import ABSENT, stored_fields, stored_value
from batchgen.families.family import Component, FamilySpec, family_spec

INDEX = "model_index.json"
_LAYOUT = f"a folder in diffusers layout ({INDEX}, transformer/, vae/, ...)"
_LOOSE = ("*.index.json", "*/*.index.json", "*.safetensors", "*/*.safetensors")
_HUB = "models--"  # begins the name of a model's folder in Hugging Face's cache


def check_checkpoint(model: ModelSpec) -> dict[str, list[Path]]:
    """The files that each component of the model is loaded from.

    Raises WeightsError for the first thing in the folder that keeps them from being loaded as they
    are meant. Reads configurations, tokenizer and the headers of safetensors files.
    """
    folder = model.weights_folder
    family = family_spec(model.family)
    if folder is None or not components_of(model):
        return {}
    try:
        return _checked(model, folder, family)
    except OSError as error:
        place = error.filename or folder
        raise WeightsError(f"{place}: cannot be read: {error.strerror} (model.weights)") from error


def check_disk(model: ModelSpec, system: SystemConfig) -> None:
    """Raise WeightsError for a file that is to stay on disk and has scales: weights are multiplied
    with them when they are loaded, once and not for each forward."""
    for part, file in model.files.items():
        own = system.components.get(part)
        if (own.memory if own and own.memory else system.memory.mode) != "disk":
            continue
        if found := scale_of(part, file):
            each, scale = found
            raise WeightsError(
                f"{each}: has {scale}, with which weights are multiplied when they are loaded, so "
                f"that {part} cannot stay on disk; legal: "
                f"system.components.{part}.memory=stream, model, resident"
            )


def scale_of(part: str, file: str) -> tuple[Path, str] | None:
    """The first tensor of `model.files.<part>` that is a scale of weights, and where it is."""
    for each in original_files(f"model.files.{part}", Path(file)):
        for name in _tensor_kinds(each):
            if scaled_weight(name):
                return each, name
    return None


def _checked(model: ModelSpec, folder: Path, family: FamilySpec) -> dict[str, list[Path]]:
    components = components_of(model)
    check_folder(folder, [part.name for part in components])
    _check_index(folder, model, family)
    files = loaded_files(model, folder)
    _check_variant(model, files)
    for part in components:
        if part.name in model.files:
            _check_original(folder / part.name, part, files[part.name])
        else:
            _check_content(folder / part.name, part, files[part.name], model.variant)
    check_dimensions(model)
    return files


def loaded_files(model: ModelSpec, folder: Path) -> dict[str, list[Path]]:
    """The files of each component; where a pipeline of diffusers loads itself, its index too."""
    parts = components_of(model)
    files = {part.name: _files_of(model, folder, part) for part in parts}
    found = isinstance(family_spec(model.family), FindsComponents)
    return files | {INDEX: [folder / INDEX]} if found else files


def _files_of(model: ModelSpec, folder: Path, part: Component) -> list[Path]:
    """A file in the component's place brings no config.json: the folder's counts, if it has one."""
    if part.name not in model.files:
        return component_files(folder, part, model.variant)
    config = config_file(folder, part)
    described = [config] if config.is_file() else []
    return [*original_files(f"model.files.{part.name}", Path(model.files[part.name])), *described]


def check_folder(folder: Path, names: Sequence[str]) -> None:
    """Raise WeightsError for what is no checkpoint with any of these components; it names the
    folder that was meant where that can be told."""
    refuse_dead_link(folder)
    refuse_file(folder)
    if not folder.is_dir():
        near = closest(folder.name, ("random", "embedded"))
        raise WeightsError(
            f"{folder}: there is no such folder (model.weights){near}; legal: {_LAYOUT}, or random"
        )
    if any((folder / name).is_dir() for name in names):
        return
    if snapshots := _snapshots(folder):
        raise WeightsError(
            f"{folder}: is a folder of Hugging Face's cache; model.weights takes a snapshot in it: "
            f"model.weights={snapshots[0]}"
        )
    if folder.name in names and (folder.parent / INDEX).is_file():
        raise WeightsError(
            f"{folder}: is one component of a checkpoint; model.weights takes the whole: "
            f"model.weights={folder.parent}"
        )
    if inside := sorted(folder.glob(f"*/{INDEX}")):
        raise WeightsError(
            f"{folder}: holds checkpoints; model.weights takes one: "
            f"model.weights={inside[0].parent}"
        )
    if loose := [file for kind in _LOOSE for file in sorted(folder.glob(kind))]:
        raise WeightsError(
            f"{folder}: holds {loose[0].relative_to(folder)}, as its makers publish it; "
            f"model.weights takes {_LAYOUT}; a transformer by itself is "
            f"model.files.transformer={loose[0]} beside it"
        )


def refuse_file(path: Path) -> None:
    """WeightsError for a file in the folder's place, with what it may be meant for."""
    if not path.is_file():
        return
    refuse_pickled([path])
    whole = path.parents[1] if len(path.parents) > 1 else path.parent
    in_place = (whole / INDEX).is_file()
    meant = f"model.weights={whole}" if in_place else f"model.files.transformer={path} beside it"
    what = ":" if in_place else "; a transformer by itself is"
    raise WeightsError(f"{path}: is a file; model.weights takes {_LAYOUT}{what} {meant}")


def _snapshots(folder: Path) -> list[Path]:
    """Snapshots below a model's folder in the hub's cache, or below a cache with several models;
    the one that `main` names first."""
    home = folder.parent if folder.name == "snapshots" else folder
    models = [home] if (home / "snapshots").is_dir() else sorted(home.glob(f"{_HUB}*"))
    found = []
    for home in models:
        main = home / "refs" / "main"
        newest = main.read_text().strip() if main.is_file() else ""
        commits = [path for path in (home / "snapshots").glob("*") if path.is_dir()]
        found += sorted(commits, key=lambda path: (path.name != newest, path.name))
    return found


def _check_index(folder: Path, model: ModelSpec, family: FamilySpec) -> None:
    """Refuse a checkpoint that has more to it than the family loads. Without a model_index.json
    its folders tell."""
    known, name = {part.name for part in components_of(model)}, model.family
    file = folder / INDEX
    if file.is_file() or file.is_symlink():
        index = read_json(file)
        named = [key for key, value in index.items() if isinstance(value, list) and any(value)]
    else:
        index = {}
        named = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if more := [part for part in named if part not in known]:
        where = file if index else folder
        raise WeightsError(
            f"{where}: has a component {more[0]}, which model.family {name} does not load: its "
            f"rows would not be this checkpoint's; loaded are {', '.join(sorted(known))}"
        )
    for key in ("boundary_ratio", "expand_timesteps"):
        if index.get(key) and not family.settings({key: index[key]}):
            raise WeightsError(
                f"{file}: {key} is {index[key]}, which model.family {name} does not serve"
            )


def _check_variant(model: ModelSpec, files: dict[str, list[Path]]) -> None:
    """Raise WeightsError for a variant that no component has."""
    marks = (f".{model.variant}.", f".{model.variant}-")
    names = [file.name for some in files.values() for file in some]
    if model.variant is not None and not any(mark in name for mark in marks for name in names):
        raise WeightsError(
            f"{model.weights_folder}: no component has files of the variant {model.variant} "
            "(model.variant)"
        )


def _check_content(home: Path, part: Component, files: list[Path], variant: str | None) -> None:
    if part.kind == "tokenizer":
        _check_tokenizer(home, files)
    elif part.kind in ("processor", "files"):
        for file in files:
            if file.suffix == ".json":
                read_json(file)
    elif part.kind == "scheduler":
        _check_scheduler(files[0], part.predicts)
    else:
        _check_class(home, part)
        index = index_file(home, part, variant_of(home, part, variant))
        _check_tensors(index, [f for f in files if f.suffix == ".safetensors"])


def _check_original(home: Path, part: Component, files: list[Path]) -> None:
    """Of the file's tensors those of the transformer; what they are called is for diffusers."""
    found = [file for file in files if file.suffix == ".safetensors"]
    if found != files:
        _check_class(home, part)
    homes: dict[str, Path] = {}
    for file in found:
        kinds = _tensor_kinds(file)
        check_original(file, kinds)
        if twice := homes.keys() & kinds:
            name = min(twice)
            raise WeightsError(f"{file}: tensor {name} is in {homes[name].name} too")
        homes |= dict.fromkeys(kinds, file)


def _check_class(home: Path, part: Component) -> None:
    key = "model_type" if part.model_type else "_class_name"
    wanted = part.model_type or part.class_name
    kind = read_config(home).get(key, wanted)
    if kind != wanted:
        raise WeightsError(f"{home / 'config.json'}: is a {kind}, the model needs {wanted}")


def _check_tensors(index: Path, files: list[Path]) -> None:
    """Every tensor is in one file, the one that the index names: libraries differ in whom they
    trust."""
    homes: dict[str, str] = {}
    for file in files:
        kinds = _tensor_kinds(file)
        refuse_quantised(file, kinds)
        for name in kinds:
            if name in homes:
                raise WeightsError(f"{file}: tensor {name} is in {homes[name]} too")
            homes[name] = file.name
    if index.is_file() and (named := weight_map(index)) != homes:
        name = min(name for name in named | homes if named.get(name) != homes.get(name))
        raise WeightsError(
            f"{index}: says that tensor {name} is in {named.get(name)}, found in {homes.get(name)}"
        )


def _tensor_kinds(file: Path) -> dict[str, str]:
    """Name -> type of the tensors in a file, from its header."""
    from safetensors import SafetensorError, safe_open

    refuse_pointer(file)
    try:
        with safe_open(file, framework="np") as opened:
            return {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file}: cannot be read as safetensors: {error} (not one, or cut off)"
        ) from error


def _check_scheduler(file: Path, predicts: str) -> None:
    """The family's solvers take what its models predict."""
    kind = read_json(file).get("prediction_type", "flow_prediction")
    if kind != predicts:
        raise WeightsError(f"{file}: prediction_type is {kind!r}; legal: {predicts!r}")


def _check_tokenizer(home: Path, files: list[Path]) -> None:
    for file in files:
        refuse_pointer(file)
        if file.name.endswith("config.json") and read_json(file).get("fast_tokenizer_files"):
            raise WeightsError(f"{file}: fast_tokenizer_files is not served")
    whole = home / TOKENIZERS[0]
    if whole in files:
        _check_tokenizer_json(whole)
    elif (table := next((file for file in files if file.name in TOKENIZERS), None)) and (
        missing := [name for name in ("sentencepiece", "google.protobuf") if not _has(name)]
    ):
        packages = " ".join(name.removeprefix("google.") for name in missing)
        raise WeightsError(
            f"{table}: is read with {' and '.join(missing)}, which this environment lacks: "
            f"`pip install {packages}`, or put the {whole.name} beside it that "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes"
        )


def _check_tokenizer_json(file: Path) -> None:
    from tokenizers import Tokenizer

    read_json(file)
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other class
        raise WeightsError(f"{file}: is not a tokenizer: {error}") from error


def _has(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package above it
        return False


# --------------------------------------------------------------------------------------- dimensions
def check_dimensions(model: ModelSpec) -> None:
    """Raise WeightsError for the first dimension in which spec and checkpoint disagree, with both
    values. A component without config.json is left to the check of its files."""
    folder = model.weights_folder
    if folder is None:
        return
    family = family_spec(model.family)
    index = folder / INDEX
    for name, stored in family.settings(read_json(index) if index.is_file() else {}).items():
        if stored != getattr(model.dims, name):
            raise _differs(index, name, stored, f"model.{name}", getattr(model.dims, name))
    for component in components_of(model):
        file = config_file(folder, component)
        if component.kind == "tokenizer" or not component.dims or not file.is_file():
            continue
        content = read_json(file)
        for field, name, wanted in stored_fields(getattr(model.dims, component.dims)):
            found = stored_value(content, name)
            if found is not ABSENT and found != wanted:
                raise _differs(file, name, found, f"model.{component.dims}.{field}", wanted)


def _differs(file: Path, name: str, stored: object, key: str, wanted: object) -> WeightsError:
    return WeightsError(
        f"{file}: {name} is {stored!r}, but {key} says {wanted!r}; choose the model that fits the "
        "checkpoint, or set the key"
    )
