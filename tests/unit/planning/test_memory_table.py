"""The README's table of what runs in which memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.config.composing.compose import compose_job
from batchgen.planning.memory_table import BEGIN, END, renewed, table
from batchgen.planning.pricing.memory import need_of
from batchgen.request import Bucket

ROOT = Path(__file__).parents[3]


def test_it_is_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    text = (ROOT / "README.md").read_text()
    again = "renew it: python -m batchgen.planning.memory_table README.md"
    assert renewed(text) == text, again
    assert text.count(BEGIN) == text.count(END) == 1


def test_it_has_what_a_job_is_planned_with() -> None:
    """That of the job on a GPU, as users compose it, in every mode."""
    overrides = ["slurm=h200x8", "system.memory.store_dtype=fp8"]
    job = compose_job(ROOT / "jobs" / "flux1_dev_1024.yaml", overrides).config
    (line,) = (line for line in table().splitlines() if line.startswith("| FLUX.1, 1024x1024 |"))
    found = [
        f"{need_of(job, Bucket(1024, 1024, 1), mode).peak_bytes / 1024**3:.1f}"
        for mode in ("resident", "model")
    ]
    assert line.split(" | ")[4:6] == found
