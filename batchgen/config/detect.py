"""`model=auto`: a model's family, dimensions and defaults from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from batchgen.config.build import build
from batchgen.config.checkpoint import INDEX
from batchgen.config.component import config_file, read_json
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.dims import ABSENT, stored_names, stored_value
from batchgen.families.family import Component, FamilySpec, family_names, family_spec

AUTO = "auto"


def detect(model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keys of a model whose checkpoint lies in `folder`; what is set in `model` stays.

    Raises WeightsError for a folder that is no checkpoint or that no family serves, naming those
    that are served.
    """
    index = _index(folder)
    name, spec = _family(index, folder)
    given = {key: value for key, value in model.items() if value is not None}
    known = {field.name for field in fields(spec.Dims)}
    dims = _merged(_dims(spec, folder, index), {k: v for k, v in given.items() if k in known})
    typed: Any = build(spec.Dims, dims, "model")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    stored = read_json(scheduler) if scheduler.is_file() else {}
    defaults = _merged(asdict(spec.defaults(typed, stored)), given.get("request_defaults") or {})
    named = given["name"] if given.get("name") not in (None, AUTO) else folder.name
    found = {"name": named, "family": name, "request_defaults": defaults}
    return {"media": spec.MEDIA, **given, **dims, **found}


def checkpoint_folder(model: Mapping[str, Any]) -> Path:
    """The folder to look into; ConfigError where no folder is given."""
    weights = model.get("weights")
    if weights == "embedded":
        return Path(__file__).parents[1] / "tiny" / "weights"
    if not isinstance(weights, str) or weights == "random":
        raise ConfigError(
            f"model.weights: {weights}, but model=auto needs a folder in diffusers layout"
        )
    return Path(weights)


def _index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    if not file.is_file():
        raise WeightsError(f"{file}: is missing; model=auto needs a folder in diffusers layout")
    return read_json(file)


def _family(index: Mapping[str, Any], folder: Path) -> tuple[str, FamilySpec]:
    for name in family_names():
        spec = family_spec(name)
        if spec.serves(index):
            _check_classes(spec, index, folder)
            return name, spec
    served = ", ".join(sorted({spec.PIPELINE for spec in map(family_spec, family_names())} - {""}))
    kind = index.get("_class_name", "a pipeline without a name")
    raise WeightsError(f"{folder / INDEX}: {kind} with these parts is not served; served: {served}")


def _check_classes(spec: FamilySpec, index: Mapping[str, Any], folder: Path) -> None:
    for component in spec.COMPONENTS:
        entry = index.get(component.name)
        wanted = [component.library, component.class_name]
        if component.kind == "model" and entry != wanted:
            found = ".".join(map(str, entry)) if isinstance(entry, list) else "not there"
            raise WeightsError(
                f"{folder / INDEX}: {component.name} is {found}, but {spec.PIPELINE} is served "
                f"with {component.loads}"
            )


def _dims(spec: FamilySpec, folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint says of each component, and of the pipeline itself."""
    found: dict[str, Any] = dict(spec.settings(index))
    for component in spec.COMPONENTS:
        if (
            component.kind not in ("tokenizer", "processor")
            and component.dims
            and component.dims not in found
        ):
            found[component.dims] = _component(spec, folder, component)
    return found


def _component(spec: FamilySpec, folder: Path, component: Component) -> dict[str, Any]:
    file = config_file(folder, component)
    if not file.is_file():
        raise WeightsError(f"{file}: is missing")
    content = read_json(file)
    names = stored_names(spec.Dims, component.dims)
    found = {field: stored_value(content, name) for field, name in names}
    return {field: value for field, value in found.items() if value is not ABSENT}


def _merged(found: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `found`, key by key."""
    result = dict(found)
    for key, value in given.items():
        inner = result.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        result[key] = value
    return result
