"""What cuBLAS keeps on a card for the threads that encode texts side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchgen.config.composing.compose import compose_job
from batchgen.planning.pricing.memory import need_of, workspace_bytes
from batchgen.request import Bucket

JOB = Path(__file__).parents[4] / "jobs" / "flux1_dev_1024.yaml"
MIB = 1 << 20


@pytest.mark.parametrize(
    ("config", "mib"),
    [(None, 32), ("", 32), (":4096:2:16:8", 8.125), (":4096:8", 32), (":16:8", 0.125)],
)
def test_a_workspace_is_as_large_as_the_environment_says(config: str | None, mib: float) -> None:
    assert workspace_bytes(config) == mib * MIB


def test_they_are_counted_where_an_encoder_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight, whatever the stage: torch keeps them. A CPU has none."""

    def peak(*overrides: str) -> int:
        job = compose_job(JOB, ["system.memory.mode=stream", *overrides]).config
        return need_of(job, Bucket(1024, 1024, 1), "stream").peak_bytes

    for device, workspaces in ("h200x8", 8), ("local", 0):
        for encoder in "stream", "model":
            own = f"system.components.text_encoder_2.memory={encoder}"
            peaks = []
            for config in ":1024:1", ":2048:2":
                monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", config)
                peaks.append(peak(f"slurm={device}", own))
            count = workspaces if encoder == "stream" else 0
            assert peaks[1] - peaks[0] == count * 3 * MIB
