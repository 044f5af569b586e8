"""A job of the embedded model over a manifest that the test writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.config.build import build, to_mapping
from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import JobConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of checkpoints are cached in the user's home: not from tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_job() -> JobConfig:
    """jobs/demo.yaml, composed once."""
    return compose_job(ROOT / "jobs" / "demo.yaml").config


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes a manifest of the given columns; `types` fixes the types of some."""

    def write(
        columns: Mapping[str, Any],
        name: str = "rows.parquet",
        types: Mapping[str, Any] | None = None,
    ) -> Path:
        arrays = {
            key: values
            if isinstance(values, pa.Array)
            else pa.array(values, (types or {}).get(key))
            for key, values in columns.items()
        }
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(arrays), path)
        return path

    return write


@pytest.fixture
def job_over(tiny_job: JobConfig) -> Callable[..., JobConfig]:
    """The demo job over another manifest, with dotted keys changed."""

    def make(manifest: Path, **changes: object) -> JobConfig:
        mapping = to_mapping(replace(tiny_job, manifest=str(manifest)))
        for key, value in changes.items():
            here = mapping
            *parents, last = key.split("__")
            for part in parents:
                here = here[part]
            here[last] = value
        return build(JobConfig, mapping)

    return make
