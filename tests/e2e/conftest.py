"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_calls import JobFolder, make_job_folder


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[int | Sequence[dict[str, Any]]], JobFolder]:
    """Makes a working folder for a manifest: a row count, or the rows themselves."""
    return lambda rows: make_job_folder(tmp_path, rows)
