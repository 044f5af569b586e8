"""What rows and jobs give becomes the settings of a row, or an error that says what is legal."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from batchgen.caches.settings import NO_SETTINGS, Given, IllegalSetting, Settings, resolve
from batchgen.caches.strategy import names, strategy

NOBODY = Given()


def only(**given: Any) -> Settings:
    """Of a row of 20 steps under a job that gives nothing."""
    return resolve(Given(**given), NOBODY, 20)


@pytest.mark.parametrize("spelt", ["", "none", " Off ", "DISABLE", "disabled", None])
def test_every_way_to_say_no_cache_is_none(spelt: str | None) -> None:
    assert only(strategy=spelt) == NO_SETTINGS


@pytest.mark.parametrize("nothing", [{"ratio": 0.0}, {"warmup": 0, "cooldown": 0}, {"params": ""}])
def test_values_that_ask_for_nothing_are_no_cache(nothing: dict[str, Any]) -> None:
    """A table filled with zeros where rows have no cache."""
    assert only(**nothing) == NO_SETTINGS
    assert only(strategy="none", **nothing) == NO_SETTINGS


def test_a_ratio_alone_means_planned() -> None:
    assert only(ratio=0.4) == Settings("planned", 0.4)


@pytest.mark.parametrize("spelt", ["uniform", "UNIFORM", "  Uniform\n"])
def test_names_are_found_in_any_case_and_what_is_left_out_has_a_default(spelt: str) -> None:
    assert only(strategy=spelt) == Settings("uniform", 0.5, warmup=0, cooldown=1)


def test_a_ratio_of_zero_keeps_the_strategy() -> None:
    assert only(strategy="uniform", ratio=0.0).strategy == "uniform"


@pytest.mark.parametrize("name", names())
def test_defaults_at_both_ends_leave_half_of_the_steps(name: str) -> None:
    facts = strategy(name).FACTS
    for steps in range(1, 61):
        found = resolve(Given(strategy=name), NOBODY, steps)
        assert found.warmup + found.cooldown <= steps / 2
        assert found.warmup <= facts.warmup and found.cooldown <= facts.cooldown
    roomy = resolve(Given(strategy=name), NOBODY, 1000)
    assert (roomy.warmup, roomy.cooldown) == (facts.warmup, facts.cooldown)


def test_defaults_give_way_to_what_is_given() -> None:
    """easycache computes the first 10 steps and the last one of its own."""
    first = resolve(Given(strategy="easycache", cooldown=6), NOBODY, 20)
    assert (first.warmup, first.cooldown) == (4, 6)
    last = resolve(Given(strategy="easycache", warmup=19), NOBODY, 20)
    assert (last.warmup, last.cooldown) == (19, 0)


def test_a_row_goes_over_its_job_value_by_value() -> None:
    job = Given(strategy="easycache", ratio=0.3, warmup=2, params='{"threshold": 0.1}')
    row = resolve(Given(ratio=0.6), job, 20)
    assert row == Settings("easycache", 0.6, 2, 1, '{"threshold":0.1}')


def test_a_row_without_a_cache_takes_nothing_from_its_job() -> None:
    assert resolve(Given(strategy="off"), Given(strategy="uniform", ratio=0.3), 20) == NO_SETTINGS
    with pytest.raises(IllegalSetting, match="no cache without a cache_strategy"):
        resolve(Given(strategy="off", ratio=0.2), Given(strategy="uniform"), 20)


def test_the_jobs_knobs_are_for_the_jobs_strategy() -> None:
    job = Given(strategy="easycache", ratio=0.3, params='{"threshold": 0.1}')
    assert resolve(Given(strategy="uniform"), job, 20) == Settings("uniform", 0.3, 0, 1)
    same = resolve(Given(strategy="EasyCache"), job, 20)
    assert same.params == '{"threshold":0.1}'


def test_equal_knobs_are_equal_text() -> None:
    ways = ['{"fresh_steps": 17, "use_jvp": 0}', ' {"use_jvp":0.0,"fresh_steps":17.0} ']
    found = {only(strategy="meancache", params=text).params for text in ways}
    assert found == {'{"fresh_steps":17,"use_jvp":0}'}
    assert only(strategy="meancache", params=" {} ").params == ""


@pytest.mark.parametrize(
    ("given", "name", "reason"),
    [
        ({"strategy": "uniforn"}, "strategy", "did you mean 'uniform'"),
        ({"strategy": "uniform", "ratio": 1.01}, "ratio", "legal: >= 0 and <= 1"),
        ({"strategy": "uniform", "ratio": float("nan")}, "ratio", "legal: >= 0 and <= 1"),
        ({"strategy": "uniform", "warmup": -1}, "warmup", "legal: >= 0"),
        ({"strategy": "uniform", "warmup": 20}, "warmup", "must be less than num_steps 20"),
        ({"strategy": "uniform", "cooldown": 20}, "cooldown", "less than num_steps 20"),
        ({"strategy": "uniform", "warmup": 12, "cooldown": 8}, "warmup", "warm-up 12 + cool-down"),
        ({"warmup": 3}, "warmup", "no cache without a cache_strategy"),
        ({"strategy": "none", "params": '{"a": 1}'}, "params", "no cache without a cache_strategy"),
        ({"strategy": "easycache", "params": "threshold"}, "params", "is not JSON"),
        ({"strategy": "easycache", "params": "[1]"}, "params", "is not a JSON object"),
        ({"strategy": "easycache", "params": '{"treshold": 1}'}, "params", "mean 'threshold'"),
        ({"strategy": "uniform", "params": '{"a": 1}'}, "params", "no such knob; legal: none"),
        ({"strategy": "easycache", "params": '{"threshold": -1}'}, "params", "legal: >= 0"),
        ({"strategy": "easycache", "params": '{"threshold": true}'}, "params", "is a number"),
        ({"strategy": "easycache", "params": '{"threshold": NaN}'}, "params", "legal: >= 0"),
        ({"strategy": "easycache", "params": f'{{"threshold": 1{"0" * 400}}}'}, "params", "legal"),
        ({"strategy": "easycache", "params": "[" * 100_000}, "params", "is not JSON"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_legal(
    given: dict[str, Any], name: str, reason: str
) -> None:
    with pytest.raises(IllegalSetting) as caught:
        only(**given)
    assert caught.value.name == name
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"cache_{name}: ")


def test_whatever_is_given_settings_are_legal_or_refused() -> None:
    """All that come out can be given again, and come out as they are."""
    ends = (None, 0, 1, 5, 30)
    for name, ratio, warmup, cooldown, steps in product(
        (None, "none", *names()), (None, 0.0, 0.7, 1.0), ends, ends, (1, 2, 7, 50)
    ):
        try:
            found = resolve(Given(name, ratio, warmup, cooldown), NOBODY, steps)
        except IllegalSetting:
            continue
        assert found.warmup + found.cooldown < steps
        again = Given(found.strategy, found.ratio, found.warmup, found.cooldown, found.params)
        assert resolve(again, NOBODY, steps) == found
        assert json.loads(found.params or "{}") == found.knobs
