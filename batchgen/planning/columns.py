"""The columns of a manifest: names, kinds, legal Parquet types."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

Kind = Literal["text", "integer", "number"]

REQUEST_COLUMNS: dict[str, Kind] = {
    "prompt": "text",
    "row_id": "text",
    "negative_prompt": "text",
    "seed": "integer",
    "width": "integer",
    "height": "integer",
    "resolution": "text",
    "aspect_ratio": "text",
    "num_frames": "integer",
    "fps": "integer",
    "num_steps": "integer",
    "guidance_scale": "number",
    "guidance_scale_2": "number",
    "true_cfg_scale": "number",
    "cache_strategy": "text",
    "cache_ratio": "number",
    "cache_warmup": "integer",
    "cache_cooldown": "integer",
    "cache_params": "text",
    "image": "text",
    "lora": "text",
    "tags": "text",
}

LEGAL_TYPES: dict[Kind, str] = {
    "text": "string, large_string, or a dictionary of strings",
    "integer": "int8 .. int64 or uint8 .. uint64 (pandas makes a column with gaps float64: "
    "use astype('Int64') before writing)",
    "number": "float32, float64, or any integer type",
}
CANONICAL: dict[Kind, pa.DataType] = {
    "text": pa.large_string(),  # 64-bit offsets: a batch of very long prompts stays one array
    "integer": pa.int64(),
    "number": pa.float64(),
}


def is_legal(kind: Kind, given: pa.DataType) -> bool:
    """Whether a column of this Arrow type can be read as `kind`; a column of nulls always can."""
    if pa.types.is_null(given):
        return True
    if kind == "text":
        return is_text(given)
    if kind == "integer":
        return bool(pa.types.is_integer(given))
    return bool(pa.types.is_floating(given) or pa.types.is_integer(given))


def is_text(given: pa.DataType) -> bool:
    """Whether a column holds strings, dictionary-encoded or not."""
    if pa.types.is_dictionary(given):
        given = given.value_type
    return bool(
        pa.types.is_string(given)
        or pa.types.is_large_string(given)
        or pa.types.is_string_view(given)
    )
