"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_calls import JobFolder, make_job_folder

from batchgen import failpoints


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Arms failpoints of this process, each from its first pass on."""

    def arm(points: str) -> None:
        monkeypatch.setattr(failpoints, "_passes", Counter())
        monkeypatch.setenv("BATCHGEN_FAILPOINT", points)

    return arm


@pytest.fixture
def new_job_folder(tmp_path: Path) -> Callable[[int | Sequence[dict[str, Any]]], JobFolder]:
    """Makes a working folder for a manifest: a row count, or the rows themselves."""
    return lambda rows: make_job_folder(tmp_path, rows)
