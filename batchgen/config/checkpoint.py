"""A model's dimensions against the config.json files of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batchgen.config.schema import ModelSpec
from batchgen.errors import WeightsError
from batchgen.families.dims import stored_fields
from batchgen.families.family import Component, family_spec

INDEX = "model_index.json"


def check_dimensions(model: ModelSpec) -> None:
    """Raise WeightsError for the first dimension in which spec and checkpoint disagree, with both
    values. A component without config.json is left to the check of its tensors."""
    folder = model.weights_folder
    if folder is None:
        return
    family = family_spec(model.family)
    index = folder / INDEX
    for name, stored in family.settings(read_json(index) if index.is_file() else {}).items():
        if stored != getattr(model.dims, name):
            raise _differs(index, name, stored, f"model.{name}", getattr(model.dims, name))
    for component in family.COMPONENTS:
        file = config_file(folder, component)
        if component.kind == "tokenizer" or not file.is_file():
            continue
        content = read_json(file)
        for field, name, wanted in stored_fields(getattr(model.dims, component.dims)):
            if name in content and content[name] != wanted:
                key = f"model.{component.dims}.{field}"
                raise _differs(file, name, content[name], key, wanted)


def _differs(file: Path, name: str, stored: object, key: str, wanted: object) -> WeightsError:
    return WeightsError(
        f"{file}: {name} is {stored}, but {key} is {wanted}; choose the model that fits the "
        "checkpoint, or set the key"
    )


def config_file(folder: Path, component: Component) -> Path:
    """Where the checkpoint in `folder` describes a component."""
    name = "scheduler_config.json" if component.kind == "scheduler" else "config.json"
    return folder / component.name / name


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file}: is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}
