"""What benches share: turns, ratios round by round, goals, the table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from batchgen.bench._figures import (
    Figure,
    add_common,
    at_least,
    at_most,
    over_rounds,
    publish,
    ratios,
    table,
    take_turns,
)


def test_works_take_turns_and_all_samples_are_kept() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> float:
        order.append(name)
        return seconds + len(order)

    raw = take_turns({"a": lambda: work("a", 10.0), "b": lambda: work("b", 20.0)}, 3)
    assert order == ["a", "b"] * 3
    assert raw == {"a": [11.0, 13.0, 15.0], "b": [22.0, 24.0, 26.0]}


def test_ratios_are_those_of_each_round() -> None:
    """A round in which the machine was slow for both does not count against either."""
    assert ratios([2.0, 20.0, 4.0], [1.0, 10.0, 4.0]) == [2.0, 2.0, 1.0]
    assert over_rounds([3.0, 1.0, 2.0]) == (2.0, (1.0, 3.0))


def test_a_goal_is_met_or_not() -> None:
    assert at_least("a", 2.0, "x", 2.0).met and not at_least("a", 1.9, "x", 2.0).met
    assert at_most("a", 2.0, "s", 2.0).met and not at_most("a", 2.1, "s", 2.0).met
    assert at_most("a", 2.0, "s", float("inf")).met is None
    text = table([at_most("long", 2.1, "s", 2.0, spread=(2.0, 3.0)), Figure("plain", 7.0, "")])
    assert "| long | 2.1 s | 2..3 | <= 2 | **no** |  |" in text
    assert "| plain | 7 |  |  |  |  |" in text


def test_what_is_published_names_machine_and_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_common(parser, "made-up")
    args = parser.parse_args(["--out", str(tmp_path / "out"), "--rounds", "7"])
    found = publish(args, "this against that", [at_least("a", 3.0, "x", 2.0)], {"a": [3.0]})
    assert json.loads((tmp_path / "out" / "figures.json").read_text()) == json.loads(
        json.dumps(found)
    )
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "figures.md").read_text() in said
    assert "this against that" in said and "CPUs, load average" in said
    assert found["raw"] == {"a": [3.0]} and "| >= 2 | yes |" in said


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_are_whole_numbers(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_common(parser, "made-up")
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", rounds])
    assert "an integer from 1 on" in capsys.readouterr().err
