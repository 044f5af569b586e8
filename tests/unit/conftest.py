"""Run folders with a synthetic plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from run_folder import RunFolder


@pytest.fixture
def make_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """Factory: `make_run_folder(rows, aliases={row: original}, extra={column: values}, root=...)`.
    What is half begun is given up soon."""
    from run_folder import make_run_folder

    from batchgen.ledger import submissions

    monkeypatch.setattr(submissions, "HALF_BEGUN_S", 0.3)

    def make(rows: int = 4, root: Path = tmp_path / "demo-1", **options: Any) -> RunFolder:
        return make_run_folder(root, rows, **options)

    return make
