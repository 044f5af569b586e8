"""What a row gets where its column is null: the job's value, else the model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np

from batchgen.config.caching import CacheRules, any_cache, cache_rules
from batchgen.config.capability import served_by, unserved_columns
from batchgen.config.judges import in_key
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, closest
from batchgen.families.family import Stride, family_spec
from batchgen.planning.manifests.building.template import DEFAULT, Template
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.geometry import (
    NamedSizes,
    Policy,
    grids,
    named_sizes,
    off_grid,
    snap,
)
from batchgen.request import (
    MAX_FRAMES,
    MAX_SIDE,
    MAX_STEPS,
    MODEL_FIELDS,
    ROW_DEFAULTS,
    Field,
    ModelDefaults,
)

N = TypeVar("N", int, float)

# Where a media file of format `auto` ends up.
STILL_FORMAT = "png"
CLIP_FORMAT = "mp4"
SINGLE_FRAME_FORMATS = ("png", "jpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Values and rules of one job, for its rows."""

    request: ModelDefaults  # the model's, as the job changes them
    job_seed: int
    seed: int | None
    format: str
    quality: int
    embed_metadata: int  # 0 or 1
    judges: str  # JSON of those that may change a seed; empty: none may
    name: Template | None  # of media files; None: their row ids
    tags: str | None
    caches: CacheRules
    names: NamedSizes
    stride: Stride
    geometry: Policy
    locked: tuple[str, ...]
    unserved: tuple[str, ...]
    model: str = ""  # its name
    needed: tuple[str, ...] = ()  # columns that are null in no row
    images: Mapping[str, str] = field(default_factory=dict)  # of all rows, by column
    loras: str | None = None  # of all rows


def job_defaults(job: JobConfig) -> Defaults:
    """Resolve the job's row defaults over the model's.

    Raises ConfigError for a default that the model cannot draw or two that contradict each other.
    """
    rows = job.row_defaults
    stride = family_spec(job.model.family).stride(job.model)
    names = named_sizes(job.model, rows.resolution, rows.aspect_ratio)
    _check_lists(job)
    width, height = _size(job, names)
    request = replace(_request(job), width=width, height=height, fps=_fps(job))
    _check_grid(job, request, stride)
    return Defaults(
        request=request,
        job_seed=job.seed,
        seed=rows.seed,
        format=job.output.format,
        quality=job.output.quality,
        embed_metadata=int(job.output.embed_metadata),
        judges=in_key(job.output.judges),
        name=_name(job.output.name),
        tags=rows.tags,
        caches=cache_rules(job),
        names=names,
        stride=stride,
        geometry=job.output.geometry,
        locked=job.locked,
        unserved=unserved_columns(served_by(job.model)),
        model=job.model.name,
        needed=served_by(job.model).needs,
        images=_images(job),
        loras=rows.lora,
    )


def _images(job: JobConfig) -> dict[str, str]:
    """The job's images for all rows: paths."""
    found = {name: getattr(job.row_defaults, name) for name in ("image", "last_image")}
    return {name: path for name, path in found.items() if path is not None}


def _name(template: str) -> Template | None:
    return None if template == DEFAULT else Template.parse(template)


def any_model() -> Defaults:
    """Rules without a job: ranges and texts are judged, sizes and unserved columns are not."""
    return Defaults(
        request=ModelDefaults(
            width=1, height=1, num_frames=1, fps=1.0, num_steps=MAX_STEPS, guidance_scale=1.0
        ),
        job_seed=0,
        seed=None,
        format="frames",
        quality=0,
        embed_metadata=0,
        judges="",
        name=None,
        tags=None,
        caches=any_cache(),
        names=NamedSizes({}, "", "", judged=False),
        stride=Stride(1, 1, MAX_SIDE, MAX_FRAMES),
        geometry="error",
        locked=(),
        unserved=(),
    )


def _request(job: JobConfig) -> ModelDefaults:
    """The model's defaults with what the job sets in their place."""
    values = {field.name: _set_by_job(job, field) for field in MODEL_FIELDS}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    request = replace(job.model.request_defaults, **given)
    for name in (one.name for one in MODEL_FIELDS if one.kind == "text"):
        if "\0" in (getattr(request, name) or ""):
            raise ConfigError(f"row_defaults.{name}: holds a NUL character")
    return request


def _set_by_job(job: JobConfig, field: Field) -> object:
    """The job's value for all rows; None where it has none."""
    if field.column.set_by == "row":
        return getattr(job.row_defaults, field.name)
    return attrgetter(field.column.set_by)(job)


def _first(value: N | None, otherwise: N) -> N:
    return otherwise if value is None else value


def _fps(job: JobConfig) -> float:
    by_row, by_output = job.row_defaults.fps, job.output.fps
    if by_row is not None and by_output is not None and by_row != by_output:
        raise ConfigError(f"row_defaults.fps: {by_row:g}, but output.fps: {by_output:g}; set one")
    return float(_first(by_row, _first(by_output, job.model.request_defaults.fps)))


def _size(job: JobConfig, names: NamedSizes) -> tuple[int, int]:
    """Job-wide width and height: named, or given, or the model's."""
    rows, model = job.row_defaults, job.model.request_defaults
    if rows.resolution is None and rows.aspect_ratio is None:
        return _first(rows.width, model.width), _first(rows.height, model.height)
    if rows.width is not None or rows.height is not None:
        raise ConfigError(
            "row_defaults.resolution: set it with aspect_ratio, or width and height, not both"
        )
    size = names.find(rows.resolution, rows.aspect_ratio)
    if size is None:
        key = "resolution" if rows.resolution is not None else "aspect_ratio"
        wanted = f"{names.resolution} {names.aspect_ratio}"
        raise ConfigError(
            f"row_defaults.{key}: {job.model.name} has no size {wanted!r}; {names.rule()}"
        )
    return size


def _check_grid(job: JobConfig, request: ModelDefaults, stride: Stride) -> None:
    """Refuse a size that the model cannot draw and `output.geometry` does not move to one it can:
    what it moves, it moves in each row."""
    for name, grid in grids(stride).items():
        value = getattr(request, name)
        moved = snap(np.array([value]), grid, job.output.geometry)
        if off_grid(moved, grid)[0]:
            own = getattr(job.row_defaults, name) is None
            tier = "model.request_defaults" if own else "row_defaults"
            message = f"{value} is not a size of {job.model.name}; {grid.rule}"
            raise ConfigError(f"{tier}.{name}: {message}")


def _check_lists(job: JobConfig) -> None:
    """`locked` names request columns, `carry_columns` names others, none of them twice."""
    for name in job.locked:
        if name not in ROW_DEFAULTS:
            listed = ", ".join(ROW_DEFAULTS)
            raise ConfigError(
                f"locked: {name!r} is not one of {listed}{closest(name, ROW_DEFAULTS)}"
            )
    for name in job.carry_columns:
        if name in REQUEST_COLUMNS:
            raise ConfigError(f"carry_columns: {name!r} is a request column and is kept anyway")
        kept = name.removeprefix("carry.")
        if kept != name and kept in job.carry_columns:
            raise ConfigError(
                f"carry_columns: {kept!r} and {name!r} may be one column of the catalog; rename one"
            )
    doubled = [name for name in job.carry_columns if job.carry_columns.count(name) > 1]
    if doubled:
        raise ConfigError(f"carry_columns: {doubled[0]!r} appears twice")
