"""Which rows are audited: drawn a second time, without their cache."""

from __future__ import annotations

from dataclasses import replace

from batchgen.caches.strategy import NONE
from batchgen.request import REQUEST_FIELDS, Request

_WITHOUT = {f.name: f.default for f in REQUEST_FIELDS if f.name.startswith("cache_")}


def audited(row_key: str, every: int) -> bool:
    """Whether a row with a cache is one of every so many (0: none is). Its key, which is a hash,
    decides: whoever draws it, in whichever shard, order and attempt, chooses the same."""
    return every > 0 and int(row_key[:16], 16) % every == 0


def has_twin(request: Request, every: int) -> bool:
    """Whether the row has a cache and is audited."""
    return request.cache_strategy != NONE and audited(request.row_key, every)


def twin_of(request: Request) -> Request:
    """The row without its cache, under an index that no row has."""
    return replace(request, row_index=twin_index(request.row_index), **_WITHOUT)


def twin_index(row_index: int) -> int:
    """Of a row's twin, or of a twin's row."""
    return ~row_index
