"""Which argument of a pipeline's call a request column fills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.families.generic.call import UNREAD, Call
from batchgen.request import FIELDS, Field

# Column -> names that pipelines have for it; where they differ, the first that a call has.
_NAMES = {
    "negative_prompt": ("negative_prompt",),
    "width": ("width",),
    "height": ("height",),
    "num_frames": ("num_frames", "frames", "video_length"),
    "fps": ("frame_rate", "fps"),
    "num_steps": ("num_inference_steps",),
    **{
        name: (name,)
        for name in (
            "guidance_scale", "guidance_scale_2", "true_cfg_scale", "use_dynamic_cfg",
            "guidance_rescale", "decode_timestep", "decode_noise_scale",
        )
    },
}  # fmt: skip
_EVERY_MODEL = ("negative_prompt", "width", "height", "num_frames", "fps", "num_steps")


def argument_of(call: Call, column: str) -> str | None:
    """The argument that the column fills; None if the call has none."""
    return next((name for name in _NAMES[column] if name in call.arguments), None)


def arguments_of(call: Call) -> dict[str, str]:
    """Column -> argument. A scale that the call leaves to the model (its default is no number) is
    no column: each row has a number."""
    found = {column: argument_of(call, column) for column in _NAMES}
    return {
        column: name
        for column, name in found.items()
        if name is not None
        and (
            column in _EVERY_MODEL
            or FIELDS[column].nullable
            or default_of(call, column) is not None
        )
    }


def default_of(call: Call, column: str) -> Any:
    """The call's default as a value of the column; None if it has none of that kind."""
    name = argument_of(call, column)
    value = call.arguments[name].default if name else UNREAD
    return _as_column(FIELDS[column], value)


def _as_column(field: Field, value: Any) -> Any:
    if field.kind == "text":
        return value if isinstance(value, str) else None
    if not isinstance(value, (int, float)):
        return None
    legal = field.column.range is None or field.column.range.holds(value)
    return (int(value) if field.kind == "integer" else float(value)) if legal else None


def filled(call: Call, values: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a row, from its columns. An empty negative prompt is left to a call that makes
    none of it otherwise (its default is None)."""
    given = {}
    for column, name in arguments_of(call).items():
        value, default = values[column], call.arguments[name].default
        if column == "negative_prompt" and value == "" and default is None:
            continue
        given[name] = _as_argument(value, default)
    return given


def set_by_job(call: Call, params: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments from a job, where pairs are lists."""
    return {
        name: tuple(value) if isinstance(value, list) and call.arguments[name].is_tuple else value
        for name, value in params.items()
    }


def _as_argument(value: Any, default: Any) -> Any:
    """Of the type that the call has: a whole rate of frames may be an integer there."""
    if isinstance(default, bool):
        return bool(value)
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
