"""The columns of a manifest and the Parquet types that each may have."""

from __future__ import annotations

import pyarrow as pa

from batchgen.request import MANIFEST, Kind

REQUEST_COLUMNS: dict[str, Kind] = {name: field.kind for name, field in MANIFEST.items()}

LEGAL_TYPES: dict[Kind, str] = {
    "text": "string, large_string, string_view, or a dictionary of strings",
    "integer": "int8 .. int64, uint8 .. uint64, or floats that are whole numbers",
    "number": "float32, float64, or any integer type",
    "image": "strings (paths), binary (files), or structs of bytes and path",
    "lora": "strings, or lists of strings",
}
CANONICAL: dict[Kind, pa.DataType] = {
    "text": pa.large_string(),  # 64-bit offsets: a batch of very long prompts stays one array
    "integer": pa.int64(),
    "number": pa.float64(),
    "image": pa.large_string(),
    "lora": pa.large_string(),
}


def is_legal(kind: Kind, given: pa.DataType) -> bool:
    """Whether a column of this Arrow type can be read as `kind`; a column of nulls always can."""
    given = value_type(given)
    if pa.types.is_null(given):
        return True
    if kind == "text":
        return is_text(given)
    if kind == "image":
        return is_text(given) or _is_file(given)
    if kind == "lora":
        return is_text(given) or (_is_list(given) and is_text(given.value_type))
    return bool(pa.types.is_floating(given) or pa.types.is_integer(given))


def value_type(given: pa.DataType) -> pa.DataType:
    """The type of the values of a column: a dictionary (a pandas category) is how they are kept."""
    return given.value_type if pa.types.is_dictionary(given) else given


def is_text(given: pa.DataType) -> bool:
    """Whether a column holds strings, dictionary-encoded or not."""
    given = value_type(given)
    return bool(
        pa.types.is_string(given)
        or pa.types.is_large_string(given)
        or pa.types.is_string_view(given)
    )


def _is_list(given: pa.DataType) -> bool:
    return bool(pa.types.is_list(given) or pa.types.is_large_list(given))


def _is_file(given: pa.DataType) -> bool:
    """Whether values are files, or what datasets libraries write for one."""
    if pa.types.is_struct(given):
        names = {field.name for field in given}
        texts = [is_text(f.type) or pa.types.is_null(f.type) for f in given if f.name == "path"]
        files = [_is_file(f.type) or pa.types.is_null(f.type) for f in given if f.name == "bytes"]
        return bool(names) and names <= {"bytes", "path"} and all(texts + files)
    return bool(
        pa.types.is_binary(given)
        or pa.types.is_large_binary(given)
        or pa.types.is_binary_view(given)
    )


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds a column whose parts have these types, as pandas would put them
    together: strings of every kind are strings, whole numbers of every width integers; None if
    they do not belong together."""
    one, other = _one_kind(one), _one_kind(other)
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = [pa.types.is_integer(t) or pa.types.is_floating(t) for t in (one, other)]
    if not all(numbers):
        return None
    both_whole = pa.types.is_integer(one) and pa.types.is_integer(other)
    return pa.int64() if both_whole else pa.float64()


def plain(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """A column in the type `wanted`, which `common_type` gave for it; ArrowInvalid if a number
    does not fit or a text is not UTF-8, which Parquet does not promise."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(wanted)
    column.validate(full=True)
    return column


def first_misfit(column: pa.Array, wanted: pa.DataType) -> int:
    """The position of the first value for which `plain` fails."""
    start, end = 0, len(column)
    while end - start > 1:
        middle = (start + end) // 2
        try:
            plain(column[start:middle], wanted)
            start = middle
        except pa.ArrowInvalid:
            end = middle
    return start


def _one_kind(given: pa.DataType) -> pa.DataType:
    given = value_type(given)
    return pa.large_string() if is_text(given) else given
