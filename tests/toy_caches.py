"""What rows of small models with random weights need to save something under each strategy."""

from __future__ import annotations

from typing import Any

from batchgen.caches.tables import Key, shipped

_THRESHOLDS = {"teacache": 2.0, "seacache": 0.3, "first_block": 0.3}  # real ones mean nothing here


def knobs(name: str) -> dict[str, Any]:
    """Request fields beside the ratio."""
    if name in _THRESHOLDS:
        return {"cache_params": f'{{"threshold":{_THRESHOLDS[name]}}}'}
    if name == "magcache":
        entry = shipped().find(Key(strategy=name, model="wan2.1-t2v-1.3b"))
        assert entry is not None
        return {"cache_table": entry.digest}
    return {}
