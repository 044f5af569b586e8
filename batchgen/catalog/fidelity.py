"""The audited rows of a catalog, summed up by strategy and bucket."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.ledger.fidelity import Fidelity, Spread

_LOW = 5  # percentile
_GROUP = ["cache_strategy", "bucket"]
_KEPT = ["row_id", *_GROUP, "psnr", "ssim"]
COLUMNS = [*_KEPT, "alias_of"]  # that are looked at


@dataclass(slots=True)
class AuditedRows:
    """Collected from parts of the catalog; memory grows with the audited rows alone."""

    _parts: list[pa.Table] = field(default_factory=list)

    def add(self, rows: pa.Table) -> None:
        """Add rows of the catalog; aliases do not count."""
        audited = pc.and_(pc.is_valid(rows["psnr"]), pc.is_null(rows["alias_of"]))
        found = rows.select(_KEPT).filter(audited)
        if found.num_rows:
            self._parts.append(found)

    def join(self, other: AuditedRows) -> None:
        """Add those of the next rows."""
        self._parts += other._parts

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(map(len, self._parts))

    def summary(self) -> tuple[Fidelity, ...]:
        """One entry for each strategy and bucket, in the order of their names."""
        if not self._parts:
            return ()
        rows = pa.concat_tables(self._parts)
        groups = rows.group_by(_GROUP).aggregate([]).sort_by([(n, "ascending") for n in _GROUP])
        return tuple(_fidelity(rows, **group) for group in groups.to_pylist())


def _fidelity(rows: pa.Table, cache_strategy: str, bucket: str) -> Fidelity:
    chosen = pc.and_(
        pc.equal(rows["cache_strategy"], cache_strategy), pc.equal(rows["bucket"], bucket)
    )
    mine = rows.filter(chosen)
    return Fidelity(cache_strategy, bucket, len(mine), _spread(mine, "psnr"), _spread(mine, "ssim"))


def _spread(rows: pa.Table, metric: str) -> Spread:
    values = rows[metric].to_numpy()
    at = int(np.argmin(values))
    low = float(np.percentile(values, _LOW))
    return Spread(float(values.mean()), low, float(values[at]), rows["row_id"][at].as_py())
