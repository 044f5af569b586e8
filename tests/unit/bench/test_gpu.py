"""The bench of a card, run with tiny dimensions on whatever is here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from batchgen.bench import gpu
from batchgen.bench._figures import Figure
from batchgen.bench.gpu.figures import Kit
from batchgen.bench.gpu.forward import overlap
from batchgen.bench.gpu.packs import choose
from batchgen.engine import figures
from batchgen.errors import ConfigError

CARD_ALONE = {"peaks", "traced", "compiled"}


@pytest.fixture(autouse=True)
def _small_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of the device are not what is tested."""
    monkeypatch.setattr(figures, "_TRIALS", 1)
    monkeypatch.setattr(figures, "_COPY_BYTES", 1 << 20)


def bench(out: Path, *options: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    gpu.add_arguments(parser)
    return gpu.run(parser.parse_args(["--out", str(out), *options]))


@pytest.mark.slow
def test_every_section_says_something(tmp_path: Path) -> None:
    found = bench(tmp_path, "--tiny")
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(found))
    table = (tmp_path / "figures.md").read_text()
    sections = found["sections"]
    assert isinstance(sections, list)
    states = {each["name"]: each["state"] for each in sections}
    assert [*states] == [*gpu.SECTIONS]
    if not torch.cuda.is_available():
        assert {name for name, state in states.items() if state == "not here"} == CARD_ALONE
    for each in sections:
        assert each["state"] in ("ok", "not here"), each
        assert all(figure["what"] in table and figure["value"] > 0 for figure in each["figures"])
    values = {figure["what"]: figure["value"] for each in sections for figure in each["figures"]}
    assert values["Wan 14B streamed has the bits of resident"] == 1
    assert values["Wan 1.3B against WanPipeline"] >= 40


def test_a_section_that_fails_and_one_too_late_cost_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(kit: Kit) -> Iterator[Figure]:
        yield Figure("before", 1.0, "x", ">= 1", True)
        raise torch.OutOfMemoryError("not enough of it")

    def fine(kit: Kit) -> Iterator[Figure]:
        yield Figure("behind", 2.0, "x")

    monkeypatch.setattr(gpu, "_sections", lambda: {"small": failing, "large": fine})
    found = bench(tmp_path, "--tiny", "--sections", "small", "large")
    table = (tmp_path / "figures.md").read_text()
    assert "| small | before | 1 x |" in table and "| large | behind | 2 x |" in table
    assert "| small | failed | | | | OutOfMemoryError: not enough of it |" in table
    assert found["tiny"] is True
    bench(tmp_path, "--tiny", "--sections", "small", "--minutes", "0")
    assert "| small | no time left |" in (tmp_path / "figures.md").read_text()


def test_without_a_card_only_tiny_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device; legal without one: --tiny"):
        bench(tmp_path)


def test_copies_lie_behind_computing_as_far_as_both_last() -> None:
    assert overlap([(0, 10), (20, 30)], [(5, 22), (29, 40)]) == 5 + 2 + 1
    assert overlap([(0, 1)], [(1, 2)]) == 0


def test_the_chosen_pack_is_the_last_that_was_clearly_cheaper() -> None:
    assert choose({1: 10.0, 2: 6.0, 4: 5.9, 8: 1.0}) == 2
    assert choose({1: 10.0, 2: 6.0, 4: 5.0}) == 4
