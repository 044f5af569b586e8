"""One batch of manifest rows: every value checked and every field resolved, column by column."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.config.limits import REQUEST_RANGES
from batchgen.errors import ConfigError
from batchgen.planning.manifests.caching import cache_columns
from batchgen.planning.manifests.columns import CANONICAL, REQUEST_COLUMNS
from batchgen.planning.manifests.defaults import (
    CLIP_FORMAT,
    SINGLE_FRAME_FORMATS,
    STILL_FORMAT,
    Defaults,
)
from batchgen.planning.manifests.geometry import grids, off_grid, snap
from batchgen.planning.manifests.images import Intake, given, shown
from batchgen.planning.manifests.loras import given_loras, shown_set
from batchgen.planning.manifests.problems import Problems
from batchgen.request import FIELDS, MODEL_FIELDS, Bucket, Field, Kind

ROW_ID_RULE = "legal: 1 to 128 characters of A-Z a-z 0-9 . _ -"
_ROW_ID = r"\A[A-Za-z0-9._-]{1,128}\z"
_ROW_NUMBER_DIGITS = 8  # fixed: a manifest that grows must not rename its rows
_INT64_MAX = 2**63 - 1
_EXACT = {16: 2**11, 32: 2**24, 64: 2**53}  # bits of a float -> whole numbers that it tells apart


@dataclass(frozen=True, slots=True)
class ResolvedRows:
    """Rows of one batch with nothing left open but seed and key."""

    first_row: int
    # Fields of the request by name (`seed` is null where it comes from the row id), and
    # `requested_<size>`, null where geometry left the size as it was. Those of step caches are
    # missing where no row of the batch has one.
    columns: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def column(self, name: str) -> pa.Array:
        """A field of all rows."""
        return self.columns.column(name)

    def with_columns(self, found: Mapping[str, pa.Array]) -> ResolvedRows:
        """The same rows with fields that planning has found, or found to be others."""
        columns = dict(zip(self.columns.schema.names, self.columns.columns, strict=True))
        return ResolvedRows(self.first_row, pa.RecordBatch.from_pydict({**columns, **found}))

    def numbers(self, name: str) -> np.ndarray:
        """A field of all rows that is a number in each."""
        return _numpy(self.column(name))


def resolve_rows(
    batch: pa.RecordBatch,
    first_row: int,
    defaults: Defaults,
    problems: Problems,
    intake: Intake,
) -> ResolvedRows:
    """Check a batch, fill in the defaults and take its images in. Illegal values go to `problems`;
    the rows that hold them come back with arbitrary content."""
    problems.in_batch.clear()
    return _Batch(batch, first_row, defaults, problems, intake).resolve()


class _Batch:
    """The columns of one batch in their canonical types while they are checked."""

    def __init__(
        self,
        batch: pa.RecordBatch,
        first_row: int,
        defaults: Defaults,
        problems: Problems,
        intake: Intake,
    ) -> None:
        self.rows = batch.num_rows
        self.first_row = first_row
        self.defaults = defaults
        self.problems = problems
        self.intake = intake
        self.refused: dict[str, np.ndarray] = {}  # where an image is no image
        self.columns: dict[str, pa.Array] = {}
        for name in REQUEST_COLUMNS:
            if name in batch.schema.names:
                self.columns[name] = self._canonical(name, batch.column(name))

    def resolve(self) -> ResolvedRows:
        self._check_locked()
        self._check_unserved()
        self._check_ranges()
        columns = {field.name: self._filled(field) for field in MODEL_FIELDS}
        width, height = self._sizes(_numpy(columns["width"]), _numpy(columns["height"]))
        asked = {"width": width, "height": height, "num_frames": _numpy(columns["num_frames"])}
        drawn = self._on_grid(asked)
        for name, values in drawn.items():
            columns[name] = pa.array(values)
            moved = asked[name] != values
            columns[f"requested_{name}"] = pa.array(asked[name], mask=~moved)
        columns |= {
            "row_id": self._row_ids(),
            "prompt": self._prompts(),
            "seed": self._seeds(),
            "format": self._formats(drawn["num_frames"]),
            "quality": pa.repeat(self.defaults.quality, self.rows),
            "embed_metadata": pa.repeat(self.defaults.embed_metadata, self.rows),
            "judges": pa.repeat(pa.scalar(self.defaults.judges, pa.large_string()), self.rows),
            "media_size": self._media_sizes(asked, drawn),
            "tags": self._tags(),
        }
        columns |= self._images(drawn["num_frames"])
        columns |= self._loras()
        caches = (self.columns, columns["num_steps"], self.first_row)
        columns |= cache_columns(*caches, self.defaults.caches, self.problems)
        return ResolvedRows(self.first_row, pa.RecordBatch.from_pydict(columns))

    # ------------------------------------------------------------------------------------ columns
    def _canonical(self, name: str, column: pa.Array) -> pa.Array:
        """The column as large_string, int64 or float64; values that do not fit become null."""
        kind: Kind = REQUEST_COLUMNS[name]
        wanted = CANONICAL[kind]
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if kind == "image":
            return self._taken(name, column)
        if kind == "lora":
            return self._taken_loras(column)
        if kind == "integer" and pa.types.is_floating(column.type):
            column = self._whole(name, column)
        if pa.types.is_uint64(column.type):
            over = pc.greater(column, pa.scalar(_INT64_MAX, pa.uint64()))
            self._report(over, name, f"legal: {REQUEST_RANGES[name]}", column)
            column = pc.if_else(pc.fill_null(over, False), pa.scalar(None, pa.uint64()), column)
        column = column.cast(wanted)
        return self._valid_text(name, column) if kind == "text" else column

    def _taken(self, name: str, column: pa.Array) -> pa.Array:
        """Images as their digests, null where one is refused; as they were where nobody wants
        them."""
        images = given(column)
        texts = pa.array(map(shown, images), pa.large_string())
        if name in self.defaults.unserved:
            return texts
        taken = self.intake.take(images)
        self.refused[name] = np.array([one.reason != "" for one in taken])
        for row in np.flatnonzero(self.refused[name]).tolist():
            place = [row + self.first_row]
            self.problems.add(place, name, [texts[row].as_py()], taken[row].reason)
        return pa.array([one.digest for one in taken], pa.large_string())

    def _taken_loras(self, column: pa.Array) -> pa.Array:
        """Sets of LoRA files as the request has them, null where one is refused."""
        sets = given_loras(column)
        texts = [*map(shown_set, sets)]
        if "lora" in self.defaults.unserved:
            return pa.array(texts, pa.large_string())
        taken = [self.intake.loras.take(one) for one in sets]
        for row, one in enumerate(taken):
            if one.reason:
                self.problems.add([row + self.first_row], "lora", [texts[row]], one.reason)
        return pa.array([one.text for one in taken], pa.large_string())

    def _whole(self, name: str, column: pa.Array) -> pa.Array:
        """Floats as the integers they stand for (pandas makes a column with gaps float64); values
        that stand for none become null."""
        limit = _EXACT[column.type.bit_width]
        column = column.cast(pa.float64())
        broken = pc.or_(pc.not_equal(column, pc.trunc(column)), pc.invert(pc.is_finite(column)))
        vague = pc.greater(pc.abs(column), limit)
        self._report(broken, name, f"legal: whole numbers {REQUEST_RANGES[name]}", column)
        reason = f"a column of this type keeps whole numbers up to {limit}; write it as int64"
        self._report(pc.and_(vague, pc.invert(broken)), name, reason, column)
        bad = pc.fill_null(pc.or_(broken, vague), False)
        return pc.if_else(bad, pa.scalar(None, pa.float64()), column).cast(pa.int64())

    def _valid_text(self, name: str, column: pa.Array) -> pa.Array:
        """Parquet does not promise UTF-8 in strings, and Arrow does not check it by itself."""
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            raw = column.cast(pa.large_binary()).to_pylist()
            bad = np.array([value is not None and not _is_utf8(value) for value in raw])
            rows = np.flatnonzero(bad)
            self.problems.add(
                rows + self.first_row, name, [repr(raw[i][:40]) for i in rows], "is not UTF-8 text"
            )
            fixed = [
                None if b else v.decode() if v is not None else None
                for b, v in zip(bad, raw, strict=True)
            ]
            return pa.array(fixed, pa.large_string())
        return column

    def _get(self, name: str) -> pa.Array:
        column = self.columns.get(name)
        return pa.nulls(self.rows, CANONICAL[FIELDS[name].kind]) if column is None else column

    def _filled(self, field: Field) -> pa.Array:
        """The column with the job's value where the row has none."""
        column = self._get(field.name)
        default = getattr(self.defaults.request, field.name)
        if field.kind == "text":
            return self._texts(field.name, default)
        return column if default is None else pc.fill_null(column, default)

    def _texts(self, name: str, default: str | None) -> pa.Array:
        column = self._get(name)
        if name in self.columns:
            self._report(pc.match_substring(column, "\0"), name, "holds a NUL character")
        return column if default is None else pc.fill_null(column, default)

    def _tags(self) -> pa.Array:
        default = self.defaults.tags
        return self._get("tags") if default is None else self._texts("tags", default)

    # ------------------------------------------------------------------------------------- checks
    def _report(
        self, bad: pa.Array | np.ndarray, column: str, reason: str, values: pa.Array | None = None
    ) -> None:
        """Note the rows where the mask `bad` is true (null counts as false)."""
        if not isinstance(bad, np.ndarray):
            bad = _numpy(pc.fill_null(bad, False))
        rows = np.flatnonzero(bad)
        if len(rows):
            source = self._get(column) if values is None else values
            shown = [source[int(i)].as_py() for i in rows[: self.problems.keep]]
            self.problems.add(rows + self.first_row, column, shown, reason)

    def _check_locked(self) -> None:
        for name in self.defaults.locked:
            if name in self.columns:
                self._report(
                    self.columns[name].is_valid(), name, "the job locks this column; leave it null"
                )

    def _check_unserved(self) -> None:
        for name in self.defaults.unserved:
            if name in self.columns:
                reason = f"is not served by {self.defaults.model} yet; leave it null"
                self._report(self.columns[name].is_valid(), name, reason)

    def _check_ranges(self) -> None:
        for name, bounds in REQUEST_RANGES.items():
            column = self.columns.get(name)
            if column is None or name in self.defaults.unserved:
                continue
            bad = pc.or_(pc.less(column, bounds.low), pc.greater(column, bounds.high))
            if pa.types.is_floating(column.type):
                bad = pc.or_(bad, pc.invert(pc.is_finite(column)))
            self._report(bad, name, f"legal: {bounds}")

    def _row_ids(self) -> pa.Array:
        """The given ids; the zero-padded row number where there is none."""
        numbers = pa.array(np.arange(self.first_row, self.first_row + self.rows))
        derived = pc.utf8_lpad(numbers.cast(pa.large_string()), _ROW_NUMBER_DIGITS, "0")
        if "row_id" not in self.columns:
            return derived
        given = self.columns["row_id"]
        legal = pc.match_substring_regex(given, _ROW_ID)
        self._report(pc.invert(legal), "row_id", ROW_ID_RULE)
        return pc.coalesce(given, derived)

    def _prompts(self) -> pa.Array:
        column = self._get("prompt")
        blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
        self._report(column.is_null(), "prompt", "a prompt is required")
        self._report(blank, "prompt", "a prompt needs more than white space")
        self._report(pc.match_substring(column, "\0"), "prompt", "holds a NUL character")
        return pc.fill_null(column, "")

    def _seeds(self) -> pa.Array:
        seed = self._get("seed")
        return seed if self.defaults.seed is None else pc.fill_null(seed, self.defaults.seed)

    def _images(self, frames: np.ndarray) -> dict[str, pa.Array]:
        """The image columns that rows or the job set; those that the model needs are there."""
        found = {name: self._image(name) for name in ("image", "last_image")}
        lacks = {name: _numpy(column.is_null()) for name, column in found.items()}
        for name, refused in self.refused.items():
            lacks[name] &= ~refused  # that has been reported
        for name in self.defaults.needed:
            self._report(lacks[name], name, "the model draws from it: give one")
        if "last_image" not in self.defaults.unserved:
            last = _numpy(found["last_image"].is_valid())
            if "image" not in self.defaults.needed:
                self._report(last & lacks["image"], "last_image", "needs an image too")
            self._report(last & (frames == 1), "last_image", "needs a row of more than one frame")
        return {name: column for name, column in found.items() if column.null_count < self.rows}

    def _image(self, name: str) -> pa.Array:
        """The column with the job's image where the row has none."""
        default = self.defaults.images.get(name)
        column = self._get(name)
        if default is None:
            return column
        [taken] = self.intake.take([default])
        if taken.digest is None:
            raise ConfigError(f"row_defaults.{name}: {taken.reason}")
        return pc.fill_null(column, taken.digest)

    def _loras(self) -> dict[str, pa.Array]:
        """The sets of LoRA files that rows or the job give."""
        default, column = self.defaults.loras, self._get("lora")
        if default is None and column.null_count == self.rows:
            return {}
        taken = self.intake.loras.take(default or "")
        if taken.reason:
            raise ConfigError(f"row_defaults.lora: {taken.reason}")
        return {"lora": pc.fill_null(column, taken.text)}

    # ----------------------------------------------------------------------------------- geometry
    def _sizes(self, width: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Width and height of every row: its named size where it has one, else as given."""
        if "resolution" not in self.columns and "aspect_ratio" not in self.columns:
            return width, height
        resolution, aspect = self._get("resolution"), self._get("aspect_ratio")
        named = _numpy(pc.or_(resolution.is_valid(), aspect.is_valid()))
        sized = pc.or_(self._get("width").is_valid(), self._get("height").is_valid())
        both = named & _numpy(sized)
        shown = "resolution" if "resolution" in self.columns else "aspect_ratio"
        self._report(both, shown, "set resolution and aspect_ratio, or width and height, not both")
        width, height = width.copy(), height.copy()
        rows = np.flatnonzero(named & ~both)
        self._look_up(rows, (resolution, aspect), (width, height))
        return width, height

    def _look_up(
        self,
        rows: np.ndarray,
        names: tuple[pa.Array, pa.Array],
        sizes: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Write the sizes that `names` (resolution, aspect ratio) call for into `sizes` (width,
        height) at `rows`; report unknown names."""
        table, defaults = self.defaults.names, self.defaults.request
        columns = [column.take(pa.array(rows)).to_pylist() for column in names]
        keys = list(zip(*columns, strict=True))
        known = {key: table.find(*key) for key in set(keys)}
        found = [known[key] or (defaults.width, defaults.height) for key in keys]
        for axis, values in enumerate(sizes):
            values[rows] = [size[axis] for size in found]
        for row, key in zip(rows.tolist(), keys, strict=True):
            if known[key] is None:
                column = "aspect_ratio" if key[0] is None else "resolution"
                shown = " ".join(part for part in key if part is not None)
                self.problems.add(np.array([row + self.first_row]), column, [shown], table.rule())

    def _on_grid(self, asked: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Sizes as they are drawn; those that the model cannot draw are reported."""
        drawn = {}
        for name, grid in grids(self.defaults.stride).items():
            values = asked[name]
            drawn[name] = snap(values, grid, self.defaults.geometry)
            bounds = REQUEST_RANGES[name]
            assert bounds.low is not None and bounds.high is not None
            in_range = (values >= bounds.low) & (values <= bounds.high)  # the rest is reported
            self._report(off_grid(drawn[name], grid) & in_range, name, grid.rule, pa.array(values))
        return drawn

    def _media_sizes(self, asked: dict[str, np.ndarray], drawn: dict[str, np.ndarray]) -> pa.Array:
        """What padded rows are cut to once they are drawn."""
        padded = np.any([asked[name] != drawn[name] for name in drawn], axis=0)
        if self.defaults.geometry != "pad" or not padded.any():
            return pa.nulls(self.rows, pa.string())
        sizes = zip(*(values.tolist() for values in asked.values()), strict=True)
        return pa.array(map(str, itertools.starmap(Bucket, sizes)), pa.string(), mask=~padded)

    def _formats(self, frames: np.ndarray) -> pa.Array:
        """The media format of every row; `auto` is a still for one frame, else a clip."""
        wanted = self.defaults.format
        if wanted == "auto":
            return pc.if_else(pa.array(frames == 1), STILL_FORMAT, CLIP_FORMAT)
        if wanted in SINGLE_FRAME_FORMATS:
            reason = f"output.format {wanted} holds one frame; legal: 1, or output.format=frames"
            self._report(frames != 1, "num_frames", reason, pa.array(frames))
        return pa.array(np.full(self.rows, wanted), pa.string())


def _numpy(column: pa.Array) -> np.ndarray:
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
