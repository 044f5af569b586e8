"""The simulator counts right, and by it the cut into shards keeps what is promised of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from batchgen.bench.schedule import KINDS as OFFERED
from batchgen.bench.schedule.cases import (
    EQUAL_COST,
    EQUAL_ROWS,
    OURS,
    Case,
    Compared,
    compare,
    cuts,
)
from batchgen.bench.schedule.costs import GIANT_SHARE, KINDS, make_costs
from batchgen.bench.schedule.simulate import Cluster, shard_walls, simulate
from batchgen.cli.main import main

TARGET = 1.05  # makespan over ideal
SIZES = {4: 100, 8: 100, 64: 100, 512: 40}  # nodes -> rows for each replica


def by_strategy(case: Case, seeds: int) -> dict[str, Compared]:
    return {found.strategy: found for found in compare(case, seeds)}


# --------------------------------------------------------------------------------------- simulator
def test_a_run_worked_out_by_hand() -> None:
    """Node 0 is slow: shard 0 takes 2 + 20 s there, the others run one after the other on node 1,
    and shard 2 waits in itself for its long row."""
    costs = np.array([10.0, 10.0, 6.0, 6.0, 8.0, 2.0])
    shard = np.array([0, 0, 1, 1, 2, 2])
    outcome = simulate(costs, shard, Cluster(speeds=(0.5, 1.0), ranks=2, start_up_s=2.0))
    assert outcome.makespan_s == 22.0  # node 1 ends at 2 + 6 + 2 + 8 = 18
    assert outcome.tail_s == 4.0
    assert outcome.ideal_s == 42.0 / (1.5 * 2)
    assert outcome.start_up_share == 6.0 / 44.0
    assert outcome.shard_idle_share == pytest.approx(3.0 / 44.0)
    assert outcome.longest_shard_s == 12.0


def test_replicas_pull_the_longest_row_first() -> None:
    """5 4 3 3 3 on two: 5 + 3 against 4 + 3 + 3; in manifest order 3 3 3 4 5 it would be 11."""
    walls = shard_walls(np.array([3.0, 3.0, 3.0, 4.0, 5.0, 7.0]), np.array([0, 0, 0, 0, 0, 1]), 2)
    assert walls.tolist() == [10.0, 7.0]


def test_shards_start_in_order_where_a_node_is_free_first() -> None:
    costs = np.array([9.0, 5.0, 4.0, 3.0])
    outcome = simulate(costs, np.arange(4), Cluster((1.0, 1.0), ranks=1, start_up_s=1.0))
    assert outcome.makespan_s == 1 + 9 + 1 + 3  # shard 3 follows shard 0, shard 2 is longer at work
    assert outcome.tail_s == 14.0 - 11.0


@pytest.mark.parametrize("kind", list(KINDS))
def test_made_up_costs_are_what_they_are_called(kind: str) -> None:
    costs = make_costs(kind, rows=4000, total_s=1e5, replicas=20, spread=10, seed=1)
    assert costs.sum() == pytest.approx(1e5)
    usual = np.sort(costs)[:4000]
    assert usual[-1] / usual[0] == pytest.approx(10, rel=0.02)
    if kind == "giant":
        assert costs.max() == pytest.approx(GIANT_SHARE * 1e5 / 20)
        assert costs.max() > 10 * usual[-1]


# --------------------------------------------------------------------------------- what is promised
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("nodes", list(SIZES))
def test_the_run_ends_close_to_the_ideal_with_a_node_at_half_speed(nodes: int, kind: str) -> None:
    """Start-ups counted, costs ten times apart, a run as long as 20 waves of good shards."""
    case = Case(nodes=nodes, rows_per_rank=SIZES[nodes], costs=kind)
    found = by_strategy(case, seeds=1 if nodes == 512 else 3)
    assert found[OURS].worst.ratio <= TARGET
    assert found[OURS].worst.ratio < found[EQUAL_ROWS].worst.ratio - 0.03
    assert found[OURS].worst.shards == found[EQUAL_ROWS].worst.shards
    assert found[EQUAL_COST].imbalance <= 1.02


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_holds_over_twenty_real_waves_too(kind: str) -> None:
    """Where the wall-time limit bounds the shards, there are more of them."""
    case = Case(nodes=8, costs=kind, waves=40)
    case = replace(case, most_s=case.waves * 20 * case.start_up_s / 20)
    found = by_strategy(case, seeds=2)
    assert found[OURS].worst.shards >= 20 * case.nodes
    assert found[OURS].worst.ratio <= TARGET
    if kind != "giant":  # one row takes longer by itself
        assert found[OURS].worst.longest_shard_s <= 1.05 * case.most_s


@pytest.mark.parametrize("nodes", [3, 5, 12, 24, 100])
def test_other_cluster_sizes_and_single_replicas(nodes: int) -> None:
    for ranks, rows in ((8, 100), (1, 400), (2, 200)):
        case = Case(nodes=nodes, ranks=ranks, rows_per_rank=rows)
        assert by_strategy(case, seeds=1)[OURS].worst.ratio <= TARGET


def test_it_degrades_gently() -> None:
    """A node slower than foreseen, predictions 20 % off, few and long rows, a short run."""
    for change, bound in (
        ({"slow": 0.4}, 1.08),
        ({"noise": 0.2}, 1.07),
        ({"rows_per_rank": 20}, 1.07),
        ({"waves": 5.0}, 1.15),
        ({"slow": 1.0}, 1.04),
    ):
        case = Case(nodes=16, **change)
        assert by_strategy(case, seeds=2)[OURS].worst.ratio <= bound, change


def test_shards_of_equal_cost_end_by_luck_together_and_shrinking_ones_always() -> None:
    """The last of many equal shards starts anywhere in the tail of the others."""
    sizes = [by_strategy(Case(nodes=n, rows_per_rank=50), seeds=1) for n in range(4, 20)]
    ours = [found[OURS].worst.ratio for found in sizes]
    equal = [found[EQUAL_COST].worst.ratio for found in sizes]
    assert max(ours) <= TARGET < np.mean(equal)
    assert sum(a < b for a, b in zip(ours, equal, strict=True)) >= 12


def test_replicas_hardly_wait_in_a_shard() -> None:
    assert by_strategy(Case(nodes=8), seeds=2)[OURS].worst.shard_idle_share < 0.002


def test_shards_of_the_long_run_keep_the_multiples_of_a_start_up() -> None:
    """Nearly all work is in shards of 20 start-ups and more; none has less than 3."""
    case = Case(nodes=8)
    costs = case.predicted(0)
    work = np.bincount(cuts(case, costs)[OURS], weights=costs) / case.ranks / case.start_up_s
    assert work.min() >= 3 - costs.min() / case.start_up_s
    assert work[work >= 19].sum() > 0.9 * work.sum()


# ------------------------------------------------------------------------------------- command line
def test_the_verb_prints_a_table_and_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--nodes",
        "4",
        "--costs",
        "bimodal",
        "giant",
        "--seeds",
        "1",
        "--rows-per-rank",
        "50",
    ]
    assert main(["bench", "schedule", *options, "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert sum(line.split()[:3] == ["4", "bimodal", "batchgen"] for line in table) == 1
    found = json.loads(last)
    ours = [c for c in found["compared"] if c["strategy"] == "batchgen"]
    assert [c["case"]["costs"] for c in ours] == ["bimodal", "giant"]
    assert found["worst_ratio"] == max(c["ratio"] for c in ours) <= TARGET


def test_the_same_call_gives_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(2):
        assert main(["bench", "schedule", "--nodes", "3", "--seeds", "2", "--noise", "0.1"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_noise_is_in_what_happens_and_not_in_what_was_predicted() -> None:
    quiet, noisy = (by_strategy(Case(nodes=4, noise=n), seeds=1)[OURS] for n in (0.0, 0.3))
    assert noisy.imbalance == quiet.imbalance
    assert noisy.worst.shards == quiet.worst.shards
    assert noisy.worst.shard_idle_share > quiet.worst.shard_idle_share + 0.005


def test_every_kind_of_costs_is_offered() -> None:
    assert list(OFFERED) == list(KINDS)


@pytest.mark.parametrize(
    ("option", "value", "legal"),
    [
        ("--nodes", "0", "an integer from 1 on"),
        ("--ranks", "two", "an integer from 1 on"),
        ("--slow", "0", "a number from 0.001 on"),
        ("--waves", "nan", "a number from 0.001 on"),
        ("--spread", "0.5", "a number from 1 on"),
        ("--costs", "normal", "log-uniform"),
    ],
)
def test_a_bad_option_is_named_with_what_is_legal(
    option: str, value: str, legal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "schedule", option, value])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert option in said and value in said and legal in said
