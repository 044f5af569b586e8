"""Which rows are on the contact sheet: all of a small run, a sample of a large one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchgen.media.stored import IN, MediaPlace
from batchgen.report.data import Sheet
from batchgen.report.text import cut, cut_tags

EVEN = 1200  # rows of an even sample; a run of as many is shown whole
_TEXT_BYTES = 500_000  # of all prompts together, and of all tags
_LONGEST = 4000  # bytes of one row's
_ERROR_BYTES = 300


@dataclass(frozen=True, slots=True)
class _Extreme:
    """The rows at one end of a column."""

    column: str
    order: str
    rows: int


_EXTREMES = (
    _Extreme("seconds", "descending", 60),
    _Extreme("score", "ascending", 60),
    _Extreme("score", "descending", 30),
    _Extreme("psnr", "ascending", 60),
)
_FAILED = 200  # the first of them
_COLUMNS = {
    "id": "row_id", "bucket": "bucket", "status": "status",
    "width": "width", "height": "height", "frames": "num_frames", "fps": "fps",
    "steps": "num_steps", "media": "media_path", "predicted": "cost_s", "psnr": "psnr",
    "ssim": "ssim", "score": "score", "total": "steps_total", "computed": "steps_computed",
    "attempt": "attempt", "host": "host",
}  # fmt: skip


@dataclass(slots=True)
class Sample:
    """Takes rows from pieces of the catalog; holds a few thousand at most."""

    rows: int  # of the run
    _even: list[pa.Table] = field(default_factory=list)
    _extreme: dict[_Extreme, pa.Table] = field(default_factory=dict)
    _failed: list[pa.Table] = field(default_factory=list)

    @property
    def every(self) -> int:
        """One of so many rows is in the even sample."""
        return max(1, -(-self.rows // EVEN))

    def add(self, rows: pa.Table) -> None:
        """Add rows of `Source.pieces`."""
        rows = rows.drop_columns(["traceback"])
        places = pc.cast(rows["row_index"], pa.int64())
        left_over = pc.subtract(places, pc.multiply(pc.divide(places, self.every), self.every))
        self._even.append(rows.filter(pc.equal(left_over, 0)))
        if self.every == 1:
            return
        for extreme in _EXTREMES:
            self._extreme[extreme] = _most(rows, extreme, self._extreme.get(extreme))
        wanted = _FAILED - sum(map(len, self._failed))
        statuses = pa.array(["failed", "quarantined"], pa.large_string())
        self._failed.append(rows.filter(pc.is_in(rows["status"], statuses)).slice(0, wanted))

    def sheet(self) -> Sheet:
        """The rows in the manifest's order, each once."""
        return self._columns(self._table())

    def packed(self) -> dict[str, MediaPlace]:
        """Where the media of the sheet's rows are that are in tars, by their path."""
        names = ["media_path", "media_sha256", "media_bytes", "media_offset"]
        table = self._table()
        rows = table.select([name for name in names if name in table.column_names]).to_pylist()
        return {
            row["media_path"]: MediaPlace.of_row(row) for row in rows if IN in row["media_path"]
        }

    def _table(self) -> pa.Table:
        table = pa.concat_tables([*self._even, *self._extreme.values(), *self._failed])
        table = table.sort_by([("row_index", "ascending")])
        index = table["row_index"].to_numpy()
        first = [n == 0 or index[n] != index[n - 1] for n in range(len(index))]
        return table.filter(pa.array(first, pa.bool_()))

    def _columns(self, table: pa.Table) -> Sheet:
        most = min(_LONGEST, _TEXT_BYTES // max(1, len(table)))
        columns: dict[str, Any] = {
            name: table[column].to_pylist() for name, column in _COLUMNS.items()
        }
        ok = table["own"].to_pylist()
        seconds = zip(table["seconds"].to_pylist(), ok, strict=True)
        errors = zip(table["error_type"].to_pylist(), table["error"].to_pylist(), strict=True)
        ratios = zip(
            table["cache_strategy"].to_pylist(), table["cache_ratio"].to_pylist(), strict=True
        )
        columns |= {
            "prompt": [cut(text, most) for text in table["prompt"].to_pylist()],
            "tags": [cut_tags(text or "", most) for text in table["tags"].to_pylist()],
            "seed": [str(seed) for seed in table["seed"].to_pylist()],
            "restored": [steps or 0 for steps in table["steps_restored"].to_pylist()],
            "rung": [text or "" for text in table["memory_rung"].to_pylist()],
            "alias_of": [text or "" for text in table["alias_of"].to_pylist()],
            "seconds": [value if drawn else None for value, drawn in seconds],
            "error": [cut(f"{k}: {text}", _ERROR_BYTES) if k else "" for k, text in errors],
            "cache": ["" if name == "none" else f"{name} {ratio:g}" for name, ratio in ratios],
            "sampled": [n % self.every == 0 for n in table["row_index"].to_pylist()],
        }
        short: dict[str, Any] = {n: tuple(map(_short, values)) for n, values in columns.items()}
        return Sheet(rows=self.rows, every=self.every, **short)


def _short(value: object) -> object:
    """Figures with as many digits as anybody reads."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _most(rows: pa.Table, extreme: _Extreme, held: pa.Table | None) -> pa.Table:
    """The rows at one end among those held and new ones."""
    new = rows.filter(pc.and_(rows["own"], pc.is_valid(rows[extreme.column])))
    table = new if held is None else pa.concat_tables([held, new])
    order = [(extreme.column, extreme.order)]
    return table.take(pc.select_k_unstable(table, min(extreme.rows, len(table)), order))
