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


JOBS = {
    "FLUX.1": "flux1_dev_1024",
    "Wan2.1 1.3B": "wan21_1_3b_480p",
    "Wan2.1 14B": "wan21_14b_720p",
    "Wan2.2 A14B": "wan22_a14b_720p",
    "Qwen-Image": "qwen_image_1328",
    "CogVideoX 5b": "cogvideox_5b_480p",
}
WAYS = [
    (store, mode, "false") for store in ("same", "fp8") for mode in ("resident", "model", "stream")
]
WAYS.append(("fp8", "stream", "true"))


@pytest.mark.parametrize("name", JOBS)
def test_it_has_what_a_job_is_planned_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, as users compose it: each mode, then the same with fp8, then by tiles."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    (line,) = (line for line in table().splitlines() if line.startswith(f"| {name}, "))
    title, *told = [cell.strip() for cell in line.strip("|").split("|")]
    width, height, frames = [*map(int, title.split(", ")[1].split("x")), 1][:3]
    found = []
    for store, mode, tiled in WAYS:
        overrides = [f"system.memory.mode={mode}", f"system.memory.store_dtype={store}"]
        overrides += [f"system.vae.tiled={tiled}", "slurm=h200x8"]
        job = compose_job(ROOT / "jobs" / f"{JOBS[name]}.yaml", overrides).config
        need = need_of(job, Bucket(width, height, frames), job.system.memory.mode)  # type: ignore[arg-type]
        found.append(f"{need.peak_bytes / 1024**3:.1f}")
    assert told == found
