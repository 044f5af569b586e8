"""Every bench is found by its name, offered by `batchgen bench`, and runs with its tiny options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from batchgen.bench import bench_named, bench_names
from batchgen.cli.main import main

LONG = {"cache", "gpu"}  # a minute, even so; their own tests look at what they write
SLOW = {*LONG, "budget", "counts", "decode", "forecast", "rate"}  # seconds


def test_the_folder_is_the_registry() -> None:
    assert {"budget", "counts", "forward", "overhead", "rate", "schedule"} <= {*bench_names()}
    assert not [name for name in bench_names() if name.startswith("_")]


@pytest.mark.parametrize("name", bench_names())
def test_a_bench_says_what_it_is_and_adds_its_options(name: str) -> None:
    bench = bench_named(name)
    assert bench.SUMMARY and bench.DESCRIPTION and bench.EPILOG
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    parser.parse_args([])  # each option has a default
    assert parser.parse_args(bench.TINY).tiny
    assert callable(bench.run)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in bench_names()]
)
def test_a_bench_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It prints a table and one JSON object, which is what it writes, if it writes; and it leaves
    nothing else behind."""
    monkeypatch.chdir(tmp_path)
    assert main(["bench", name, *bench_named(name).TINY, "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert len(table) > 2 and found
    if name == "schedule":  # it simulates: there is nothing to keep
        return
    out = tmp_path / "outputs" / f"bench-{name}"
    assert json.loads((out / "figures.json").read_text()) == found
    if name in LONG:
        return
    assert {path.name for path in out.iterdir()} == {"figures.json", "figures.md"}
    assert {*found} >= {"compared", "hardware", "load_average", "versions", "raw"}
    rounds = [len(each) for each in found["raw"].values()]
    assert rounds and min(rounds) >= 1
    shown = "\n".join(table)
    assert found["figures"] and all(each["what"] in shown for each in found["figures"])
    for each in found["figures"]:  # a tiny run proves nothing but counts
        assert each["met"] is (True if each["goal"].startswith("= ") else None), each
