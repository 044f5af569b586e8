"""`model=auto`: a model's family, dimensions and defaults from its checkpoint.

What no family serves goes through the generic one, if that can draw with it; `model=generic` asks
for it by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from batchgen.config.build import build
from batchgen.config.checkpoints.checkpoint import INDEX, check_folder
from batchgen.config.checkpoints.component import config_file, read_json
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.dims import ABSENT, stored_names, stored_value
from batchgen.families.family import Component, FamilySpec, family_names, family_spec
from batchgen.families.generic import spec as generic
from batchgen.families.generic.checkpoint import count_weights, picture_sizes

log = logging.getLogger(__name__)
AUTO, GENERIC = "auto", "generic"
_USUAL = ("transformer", "unet", "vae", "text_encoder", "tokenizer")  # components of a pipeline


def is_to_be_found(model: Mapping[str, Any]) -> bool:
    """Whether a model's checkpoint is still to be asked what it is."""
    family = model.get("family")
    return family == AUTO or (family == GENERIC and "pipeline" not in model)


def detect(model: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keys of a model whose checkpoint lies in `folder`; what is set in `model` stays.

    Raises WeightsError for a folder that is no checkpoint or that no family serves, naming those
    that are served.
    """
    index = _index(folder)
    name, spec = _generic(index, folder) if model["family"] == GENERIC else _family(index, folder)
    given = {key: value for key, value in model.items() if value is not None}
    known = {field.name for field in fields(spec.Dims)}
    found = _dims(spec, folder, index)
    if name == GENERIC:
        parts = generic.components_in(found["parts"])
        weights = count_weights(folder, parts, given.get("variant"))
        found |= {"part_weights": weights, **picture_sizes(folder)}
    dims = _merged(found, {k: v for k, v in given.items() if k in known})
    typed: Any = build(spec.Dims, dims, "model")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    stored = read_json(scheduler) if scheduler.is_file() else {}
    try:
        own = asdict(spec.defaults(typed, stored))
    except ValueError as error:
        raise WeightsError(f"{scheduler}: {error}") from error
    defaults = _merged(own, given.get("request_defaults") or {})
    named = given["name"] if given.get("name") not in (None, AUTO, GENERIC) else folder.name
    media = generic.media(typed) if name == GENERIC else spec.MEDIA
    last = {"name": named, "family": name, "request_defaults": defaults}
    return {"media": media, **given, **dims, **last}


def checkpoint_folder(model: Mapping[str, Any]) -> Path:
    """The folder to look into; ConfigError where no folder is given."""
    weights = model.get("weights")
    if weights == "embedded":
        return Path(__file__).parents[2] / "tiny" / "weights"
    if not isinstance(weights, str) or weights == "random":
        raise ConfigError(
            f"model.weights: {weights}, but model={model['family']} needs a folder in diffusers "
            "layout"
        )
    return Path(weights)


def _index(folder: Path) -> dict[str, Any]:
    file = folder / INDEX
    if not file.is_file():
        check_folder(folder, _USUAL)
        raise WeightsError(f"{file}: is missing; a model is found in a folder in diffusers layout")
    return read_json(file)


def _family(index: Mapping[str, Any], folder: Path) -> tuple[str, FamilySpec]:
    for name in family_names():
        spec = family_spec(name)
        if spec.serves(index):
            _check_classes(spec, index, folder)
            return name, spec
    kind = index.get("_class_name", "a pipeline without a name")
    if why := generic.refusal(index):
        pipelines = {spec.PIPELINE for spec in map(family_spec, family_names())} - {""}
        raise WeightsError(
            f"{folder / INDEX}: {kind} with these parts is not served; served: "
            f"{', '.join(sorted(pipelines))}; nor does model=generic take it: {why}"
        )
    log.warning("%s: %s goes through the generic family, one row at a time", folder / INDEX, kind)
    return GENERIC, family_spec(GENERIC)


def _generic(index: Mapping[str, Any], folder: Path) -> tuple[str, FamilySpec]:
    if why := generic.refusal(index):
        kind = index.get("_class_name", "a pipeline without a name")
        raise WeightsError(f"{folder / INDEX}: model=generic does not take {kind}: {why}")
    return GENERIC, family_spec(GENERIC)


def _check_classes(spec: FamilySpec, index: Mapping[str, Any], folder: Path) -> None:
    for component in spec.COMPONENTS:
        entry = index.get(component.name)
        wanted = [component.library, component.class_name]
        if component.kind == "model" and entry != wanted:
            found = ".".join(map(str, entry)) if isinstance(entry, list) else "not there"
            raise WeightsError(
                f"{folder / INDEX}: {component.name} is {found}, but {spec.PIPELINE} is served "
                f"with {component.loads}{_instead(index)}"
            )


def _instead(index: Mapping[str, Any]) -> str:
    return "" if generic.refusal(index) else "; model=generic draws with what is there"


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
