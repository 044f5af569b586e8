"""What a row gets where its column is null: the job's value, else the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from batchgen.config.capability import served_by, unserved_columns
from batchgen.config.limits import MAX_FRAMES, MAX_SIDE
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, closest
from batchgen.families.family import Stride, family_spec
from batchgen.planning.manifests.columns import REQUEST_COLUMNS
from batchgen.planning.manifests.geometry import (
    NamedSizes,
    Policy,
    frames_rule,
    named_sizes,
    off_grid,
    side_rule,
    snap,
)

N = TypeVar("N", int, float)

# Where a media file of format `auto` ends up.
STILL_FORMAT = "png"
CLIP_FORMAT = "mp4"
SINGLE_FRAME_FORMATS = ("png", "jpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Values and rules of one job, for its rows."""

    job_seed: int
    seed: int | None
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    num_steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    true_cfg_scale: float
    solver: str
    sigma_shift: float
    format: str
    quality: int
    tags: str | None
    names: NamedSizes
    stride: Stride
    geometry: Policy
    locked: tuple[str, ...]
    unserved: tuple[str, ...]


def job_defaults(job: JobConfig) -> Defaults:
    """Resolve the job's row defaults over the model's.

    Raises ConfigError for a default that the model cannot draw or two that contradict each other.
    """
    rows, model = job.row_defaults, job.model.request_defaults
    stride = family_spec(job.model.family).stride(job.model)
    names = named_sizes(job.model, rows.resolution, rows.aspect_ratio)
    _check_lists(job)
    width, height = _size(job, names)
    sampler = job.system.sampler
    return Defaults(
        job_seed=job.seed,
        seed=rows.seed,
        negative_prompt=_text(job),
        width=_on_grid(job, "width", width, stride.pixels, 0, stride.max_side, side_rule(stride)),
        height=_on_grid(
            job, "height", height, stride.pixels, 0, stride.max_side, side_rule(stride)
        ),
        num_frames=_on_grid(
            job,
            "num_frames",
            _first(rows.num_frames, model.num_frames),
            stride.frames,
            1,
            stride.max_frames,
            frames_rule(stride),
        ),
        fps=_fps(job),
        num_steps=_first(rows.num_steps, model.num_steps),
        guidance_scale=float(_first(rows.guidance_scale, model.guidance_scale)),
        guidance_scale_2=model.guidance_scale_2
        if rows.guidance_scale_2 is None
        else rows.guidance_scale_2,
        true_cfg_scale=float(_first(rows.true_cfg_scale, model.true_cfg_scale)),
        solver=sampler.solver or model.solver,
        sigma_shift=float(_first(sampler.sigma_shift, model.sigma_shift)),
        format=job.output.format,
        quality=job.output.quality,
        tags=rows.tags,
        names=names,
        stride=stride,
        geometry=job.output.geometry,
        locked=job.locked,
        unserved=unserved_columns(served_by(job.model)),
    )


def any_model() -> Defaults:
    """Rules without a job: ranges and texts are judged, sizes and unserved columns are not."""
    return Defaults(
        job_seed=0,
        seed=None,
        negative_prompt="",
        width=1,
        height=1,
        num_frames=1,
        fps=1.0,
        num_steps=1,
        guidance_scale=1.0,
        guidance_scale_2=None,
        true_cfg_scale=1.0,
        solver="",
        sigma_shift=1.0,
        format="frames",
        quality=0,
        tags=None,
        names=NamedSizes({}, "", "", judged=False),
        stride=Stride(1, 1, MAX_SIDE, MAX_FRAMES),
        geometry="error",
        locked=(),
        unserved=(),
    )


def _first(value: N | None, otherwise: N) -> N:
    return otherwise if value is None else value


def _text(job: JobConfig) -> str:
    text = job.row_defaults.negative_prompt
    text = job.model.request_defaults.negative_prompt if text is None else text
    if "\0" in text:
        raise ConfigError("row_defaults.negative_prompt: holds a NUL character")
    return text


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


def _on_grid(
    job: JobConfig, name: str, value: int, step: int, offset: int, limit: int, rule: str
) -> int:
    """`value` if the model can draw it, or what `output.geometry` makes of it for each row."""
    policy: Policy = job.output.geometry
    moved = int(snap(np.array([value]), step, offset, policy)[0])
    if off_grid(np.array([moved]), step, offset, limit)[0]:
        own = getattr(job.row_defaults, name) is None
        tier = "model.request_defaults" if own else "row_defaults"
        raise ConfigError(f"{tier}.{name}: {value} is not a size of {job.model.name}; {rule}")
    return value


def _check_lists(job: JobConfig) -> None:
    """`locked` names request columns, `carry_columns` names others, none of them twice."""
    lockable = [name for name in REQUEST_COLUMNS if name not in ("prompt", "row_id")]
    for name in job.locked:
        if name not in lockable:
            listed = ", ".join(lockable)
            raise ConfigError(f"locked: {name!r} is not one of {listed}{closest(name, lockable)}")
    for name in job.carry_columns:
        if name in REQUEST_COLUMNS:
            raise ConfigError(f"carry_columns: {name!r} is a request column and is kept anyway")
    doubled = [name for name in job.carry_columns if job.carry_columns.count(name) > 1]
    if doubled:
        raise ConfigError(f"carry_columns: {doubled[0]!r} appears twice")
