"""A model's dimensions against the config.json files of its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchgen.config.schema import ModelSpec
from batchgen.errors import WeightsError

# Spec field -> name in the component's config.json where they differ.
_RENAMED = {"spatial_factor": "scale_factor_spatial", "temporal_factor": "scale_factor_temporal"}
_NOT_STORED = ("max_tokens",)  # a choice of the pipeline, no weight depends on it


def check_dimensions(model: ModelSpec) -> None:
    """Raise WeightsError for the first dimension in which spec and checkpoint disagree, with both
    values. A component without config.json is left to the check of its tensors."""
    folder = model.weights_folder
    if folder is None:
        return
    for component in ("transformer", "vae", "text_encoder"):
        file = folder / component / "config.json"
        if not file.is_file():
            continue
        stored = _read(file)
        for field, wanted in _dimensions(getattr(model, component)):
            name = _RENAMED.get(field, field)
            if name in stored and stored[name] != wanted:
                raise WeightsError(
                    f"{file}: {name} is {stored[name]}, but model.{component}.{field} is {wanted}; "
                    f"choose the model that fits the checkpoint, or set the key"
                )


def _dimensions(spec: Any) -> Iterator[tuple[str, object]]:
    for name in spec.__slots__:
        if name not in _NOT_STORED:
            value = getattr(spec, name)
            yield name, list(value) if isinstance(value, tuple) else value


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file}: is not JSON: {error}") from error
    return content if isinstance(content, dict) else {}
