"""The plan: every field resolved, equal rows once, keys that depend on pixels alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.config.schema import JobConfig
from batchgen.errors import RunStateError
from batchgen.planning.identity import KeyContext, derived_seeds, row_key
from batchgen.planning.plan import (
    Plan,
    make_plan,
    read_costs,
    read_keys,
    read_plan,
    read_requests,
    row_indices,
)
from batchgen.planning.store import ROW_GROUP
from batchgen.request import Bucket, Request

Write = Callable[..., Path]
JobOver = Callable[..., JobConfig]


@pytest.fixture
def plan_of(write_rows: Write, job_over: JobOver, tmp_path: Path) -> Callable[..., Plan]:
    """The plan of a manifest of the given columns under a changed demo job."""

    def make(columns: dict[str, object], out: str = "plan.parquet", **changes: object) -> Plan:
        return make_plan(job_over(write_rows(columns), **changes), tmp_path / out)

    return make


def test_a_prompt_alone_gets_every_field_from_the_model(plan_of: Callable[..., Plan]) -> None:
    (request,) = read_requests(plan_of({"prompt": ["a red circle"]}).path)
    expected = Request(
        row_index=0,
        row_id="00000000",
        row_key=request.row_key,
        prompt="a red circle",
        negative_prompt="",
        seed=derived_seeds(0, ["00000000"])[0],
        width=64,
        height=64,
        num_frames=9,
        fps=8,
        num_steps=20,
        guidance_scale=3.0,
        guidance_scale_2=None,
        solver="unipc",
        sigma_shift=3.0,
        format="mp4",
        quality=8,
        embed_metadata=1,
        cost_s=request.cost_s,
        steps_expected=40.0,
    )
    assert request == expected
    assert request.cost_s > 0


def test_a_row_overrides_the_job_which_overrides_the_model(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(
        {"prompt": ["a", "b"], "num_steps": [5, None], "fps": [None, 12], "seed": [None, 9]},
        row_defaults__num_steps=7,
        row_defaults__seed=3,
        output__fps=10,
        output__format="gif",
        system__sampler__solver="euler",
        system__sampler__sigma_shift=2.5,
    )
    first, second = read_requests(plan.path)
    assert (first.num_steps, first.fps, first.seed) == (5, 10, 3)
    assert (second.num_steps, second.fps, second.seed) == (7, 12, 9)
    assert {(r.format, r.solver, r.sigma_shift) for r in (first, second)} == {("gif", "euler", 2.5)}


def test_auto_format_is_a_still_for_one_frame(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of({"prompt": ["a", "a"], "num_frames": [1, 5]})
    assert [r.format for r in read_requests(plan.path)] == ["png", "mp4"]


def test_named_sizes_stand_in_for_width_and_height(plan_of: Callable[..., Plan]) -> None:
    columns = {
        "prompt": ["a"] * 5,
        "resolution": ["64p", "64P", None, None, None],
        "aspect_ratio": ["4:3", None, "3:4", None, None],
        "width": [None, None, None, 32, None],
    }
    plan = plan_of(columns, row_defaults__resolution="64p", row_defaults__aspect_ratio="4:3")
    sizes = [(r.width, r.height) for r in read_requests(plan.path)]
    assert sizes == [(80, 64), (80, 64), (64, 80), (32, 64), (80, 64)]


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [("round", [(96, 16, 9), (112, 64, 1)]), ("pad", [(112, 16, 9), (112, 64, 5)])],
)
def test_geometry_moves_sizes_to_the_grid_and_records_the_request(
    plan_of: Callable[..., Plan], policy: str, sizes: list[tuple[int, int, int]]
) -> None:
    columns = {"prompt": ["a", "b"], "width": [103, 112], "height": [3, 64], "num_frames": [8, 2]}
    plan = plan_of(columns, output__geometry=policy)
    used = [(r.width, r.height, r.num_frames) for r in read_requests(plan.path)]
    assert used == sizes
    cuts = [r.media_size for r in read_requests(plan.path)]
    assert cuts == (["103x3x8", "112x64x2"] if policy == "pad" else [None, None])
    names = ["requested_width", "requested_height", "requested_num_frames"]
    requested = pq.read_table(plan.path, columns=names).to_pydict()
    assert requested == {
        "requested_width": [103, None],
        "requested_height": [3, None],
        "requested_num_frames": [8, 2],
    }


@pytest.mark.parametrize("policy", ["round", "pad"])
def test_a_jobs_own_size_is_recorded_as_requested_too(
    plan_of: Callable[..., Plan], policy: str
) -> None:
    plan = plan_of({"prompt": ["a"]}, output__geometry=policy, row_defaults__width=103)
    (row,) = pq.read_table(plan.path).to_pylist()
    assert (row["requested_width"], row["requested_height"]) == (103, None)
    assert row["width"] == (112 if policy == "pad" else 96)


def test_a_cut_is_in_the_row_key(plan_of: Callable[..., Plan]) -> None:
    """Rows that are drawn alike are not alike once they are cut; uncut ones are as ever."""
    columns = {"prompt": ["a"] * 3, "seed": [1] * 3, "width": [100, 112, 112]}
    padded = read_requests(plan_of(columns, output__geometry="pad").path)
    assert [r.width for r in padded] == [112] * 3
    assert padded[0].row_key != padded[1].row_key == padded[2].row_key
    plan = plan_of({"prompt": ["a"], "seed": [1], "width": [112]})
    assert read_requests(plan.path)[0].row_key == padded[1].row_key
    assert row_key(plan.key_context, padded[0]) == padded[0].row_key


def test_sizes_far_off_are_refused_even_when_rounding(plan_of: Callable[..., Plan]) -> None:
    with pytest.raises(Exception, match="up to 1024"):
        plan_of({"prompt": ["a"], "width": [5000]}, output__geometry="round")


def test_equal_rows_are_rendered_once(plan_of: Callable[..., Plan]) -> None:
    columns = {
        "prompt": ["a", "b", "a", "a", "a"],
        "row_id": ["w", "x", "y", "z", "v"],
        "seed": [1, 1, 1, 2, 1],
    }
    plan = plan_of(columns)
    table = pq.read_table(plan.path).to_pydict()
    assert table["alias_of"] == [None, None, "w", None, "w"]
    assert (plan.rows, plan.unique_rows, plan.aliases) == (5, 3, 2)
    assert row_indices(plan.path) == {"w": 0, "x": 1, "y": 0, "z": 3, "v": 0}
    costs = read_costs(plan.path)
    assert costs.is_alias.tolist() == [False, False, True, False, True]
    assert costs.cost_s[[2, 4]].tolist() == [0.0, 0.0]
    assert costs.cost_s.sum() == pytest.approx(plan.cost_s_total)
    keys = read_keys(plan.path)
    assert keys[0] == keys[2] == keys[4]
    assert len(set(keys)) == 3


def test_rows_without_seeds_differ_even_with_equal_prompts(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of({"prompt": ["a"] * 100})
    seeds = [r.seed for r in read_requests(plan.path)]
    assert plan.unique_rows == 100
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_and_keys_do_not_depend_on_where_a_row_stands(plan_of: Callable[..., Plan]) -> None:
    """Order, neighbours and the length of the manifest change nothing about a row."""
    columns = {"prompt": ["a", "b", "c"], "row_id": ["r1", "r2", "r3"]}
    whole = {r.row_id: r for r in read_requests(plan_of(columns).path)}
    turned = plan_of({"prompt": ["c", "z", "a"], "row_id": ["r3", "r9", "r1"]}, "other.parquet")
    for request in read_requests(turned.path):
        if request.row_id != "r9":
            twin = whole[request.row_id]
            assert (request.seed, request.row_key) == (twin.seed, twin.row_key)


def test_the_job_seed_moves_derived_seeds_and_leaves_given_ones(
    plan_of: Callable[..., Plan],
) -> None:
    columns = {"prompt": ["a", "a"], "seed": [2**63 - 1, None]}
    before = read_requests(plan_of(columns).path)
    after = read_requests(plan_of(columns, "b.parquet", seed=1).path)
    assert before[0].seed == after[0].seed == 2**63 - 1
    assert before[1].seed != after[1].seed


CHANGES = [
    {"model__dtype": "bfloat16"},
    {"model__text_encoder__max_tokens": 31},
    {"system__sampler__solver": "euler"},
    {"system__sampler__sigma_shift": 4.0},
    {"output__format": "gif"},
    {"output__quality": 7},
    {"output__fps": 9},
    {"row_defaults__num_steps": 21},
    {"row_defaults__guidance_scale": 3.5},
    {"row_defaults__negative_prompt": "blue"},
    {"row_defaults__seed": 5},
    {"row_defaults__num_frames": 13},
    {"model__weights": "random"},
]
NEUTRAL = [
    {"name": "other"},
    {"tag": "t"},
    {"slurm__nodes": 3},
    {"slurm__ranks_per_node": 2},
    {"system__determinism": "strict"},
    {"system__memory__mode": "model"},
    {"system__batch__token_budget": 100},
    {"system__attention": "sdpa"},
    {"output__root_dir": "elsewhere"},
    {"output__log_ranks": [0, 1]},
    {"carry_columns": ["note"]},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
def test_what_decides_pixels_or_file_is_in_the_key(
    plan_of: Callable[..., Plan], change: dict[str, object]
) -> None:
    columns = {"prompt": ["a"], "row_id": ["r"], "seed": [1 if "seed" not in str(change) else None]}
    before = read_keys(plan_of(columns).path)[0]
    assert read_keys(plan_of(columns, "b.parquet", **change).path)[0] != before


@pytest.mark.parametrize("change", NEUTRAL, ids=lambda c: next(iter(c)))
def test_nothing_else_is_in_the_key(
    plan_of: Callable[..., Plan], change: dict[str, object]
) -> None:
    columns: dict[str, object] = {"prompt": ["a"], "seed": [1]}
    before = read_keys(plan_of(columns).path)[0]
    columns["row_id"] = ["another-name"]
    if "carry_columns" in change:
        columns["note"] = ["x"]
    assert read_keys(plan_of(columns, "b.parquet", **change).path)[0] == before


def test_the_column_wise_keys_equal_the_key_of_each_request(plan_of: Callable[..., Plan]) -> None:
    rng = np.random.default_rng(3)
    n = 500
    columns = {
        "prompt": [f"{'é🦊'[i % 2]} prompt {i // 3}" for i in range(n)],
        "negative_prompt": [None if i % 4 else f"bad {i % 7}" for i in range(n)],
        "seed": pa.array(rng.integers(0, 2**63 - 1, n), mask=rng.random(n) < 0.3),
        "num_steps": rng.integers(1, 40, n),
        "guidance_scale": rng.choice([1.0, 2.5, 0.1], n),
        "num_frames": rng.choice([1, 5, 9], n),
    }
    plan = plan_of(columns)
    for request in read_requests(plan.path):
        assert row_key(plan.key_context, request) == request.row_key
        other = replace(request, row_id="x", row_index=7, row_key="", cost_s=9.0)
        assert row_key(plan.key_context, other) == request.row_key


def test_contexts_name_the_settings_in_which_they_differ(plan_of: Callable[..., Plan]) -> None:
    columns: dict[str, object] = {"prompt": ["a"]}
    one = plan_of(columns).key_context
    changes = {"model__dtype": "float16", "model__weights": "random"}
    two = plan_of(columns, "b.parquet", **changes).key_context
    assert one.differences(two) == [
        "model.weights",
        "the tokenizer of model.weights",
        "model.dtype",
    ]
    assert KeyContext.from_json(one.to_json()) == one
    assert one.differences(one) == []


def test_requests_are_read_in_the_order_asked_for_over_all_row_groups(
    plan_of: Callable[..., Plan],
) -> None:
    n = 3 * ROW_GROUP + 11
    plan = plan_of({"prompt": [f"p{i}" for i in range(n)]})
    file = pq.ParquetFile(plan.path)
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert groups == [ROW_GROUP] * 3 + [11]
    wanted = [n - 1, 0, ROW_GROUP, ROW_GROUP - 1, 5, 5, *range(100, 300)]
    found = read_requests(plan.path, wanted)
    assert [r.row_index for r in found] == wanted
    assert [r.prompt for r in found] == [f"p{i}" for i in wanted]
    assert read_requests(plan.path, []) == []
    with pytest.raises(RunStateError, match=f"has {n} rows; asked for {n}"):
        read_requests(plan.path, [n])


def test_a_plan_of_whole_row_groups_has_no_empty_one(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of({"prompt": ["a"] * (2 * ROW_GROUP)})
    assert pq.ParquetFile(plan.path).num_row_groups == 2


def test_rows_of_a_thousand_shapes_are_costed_as_quickly_as_of_one(
    plan_of: Callable[..., Plan],
) -> None:
    sizes = [16 * (1 + i % 64) for i in range(4096)]
    heights = [16 * (1 + i // 64) for i in range(4096)]
    plan = plan_of({"prompt": ["a"] * 4096, "width": sizes, "height": heights})
    assert len(plan.buckets) == 4096
    assert [b.cost_s for b in plan.buckets] == sorted(
        (b.cost_s for b in plan.buckets), reverse=True
    )


def test_many_small_parts_make_whole_row_groups(
    write_rows: Write, job_over: JobOver, tmp_path: Path
) -> None:
    """Row groups tell a reader where a row is; they must not follow the manifest's parts."""
    size = ROW_GROUP // 3 + 1
    for part in range(5):
        write_rows({"prompt": [f"{part} {i}" for i in range(size)]}, f"parts/{part}.parquet")
    plan = make_plan(job_over(tmp_path / "parts"), tmp_path / "plan.parquet")
    last = read_requests(plan.path, [5 * size - 1, ROW_GROUP])
    assert last[0].prompt == f"4 {size - 1}"
    assert last[1].prompt == f"{ROW_GROUP // size} {ROW_GROUP % size}"


def test_a_replaced_plan_is_read_anew(plan_of: Callable[..., Plan]) -> None:
    columns: dict[str, object] = {"prompt": ["a"], "seed": [1]}
    old = read_requests(plan_of(columns).path)[0]
    new = read_requests(plan_of({"prompt": ["b"], "seed": [1]}).path)[0]
    assert (old.prompt, new.prompt) == ("a", "b")


def test_the_header_comes_back_from_the_file(plan_of: Callable[..., Plan]) -> None:
    columns = {
        "prompt": ["a", "b", "c"],
        "num_frames": [1, 9, 9],
        "guidance_scale": [1.0, 3.0, 1.0],
    }
    plan = plan_of(columns)
    assert read_plan(plan.path) == plan
    by_bucket = {item.bucket: item for item in plan.buckets}
    nine = by_bucket[Bucket(64, 64, 9)]
    assert (nine.rows, nine.evaluations, nine.tokens) == (2, 60, 48)
    assert by_bucket[Bucket(64, 64, 1)].evaluations == 20
    assert sum(item.cost_s for item in plan.buckets) == pytest.approx(plan.cost_s_total)


def test_what_is_no_plan_is_refused(write_rows: Write, tmp_path: Path) -> None:
    with pytest.raises(RunStateError, match="no plan"):
        read_costs(tmp_path / "plan.parquet")
    with pytest.raises(RunStateError, match="plan schema None"):
        read_plan(write_rows({"prompt": ["a"]}))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(RunStateError, match="damaged plan"):
        read_costs(tmp_path / "torn.parquet")


def test_pandas_reads_the_plan_with_exact_integers(plan_of: Callable[..., Plan]) -> None:
    columns = {
        "prompt": ["a"] * 2,
        "seed": [2**63 - 1, None],
        "mine": [[1], [2]],
        "tags": ["t", None],
    }
    plan = plan_of(columns, carry_columns=["mine"])
    frame = pd.read_parquet(plan.path)
    assert frame["seed"].dtype == "int64"
    assert frame["seed"][0] == 2**63 - 1
    assert frame["carry.mine"].map(list).tolist() == [[1], [2]]
    assert frame["bucket"].tolist() == ["64x64x9"] * 2
    assert frame["tags"][0] == "t"


def test_planning_twice_gives_the_same_plan_id_and_a_changed_row_another(
    plan_of: Callable[..., Plan],
) -> None:
    columns: dict[str, object] = {"prompt": ["a", "b"], "seed": [1, 2]}
    first, second = plan_of(columns), plan_of(columns, "b.parquet")
    assert first.plan_id == second.plan_id
    assert first.manifest_digest == second.manifest_digest
    third = plan_of({"prompt": ["a", "c"], "seed": [1, 2]}, "c.parquet")
    assert third.plan_id != first.plan_id
    assert third.manifest_digest != first.manifest_digest


@pytest.mark.slow
def test_a_million_rows_are_planned_in_seconds_and_bounded_memory(
    write_rows: Write, job_over: JobOver, tmp_path: Path
) -> None:
    """Measured at 4.5 s and 0.45 GiB on one busy core; the bound leaves room for slow machines."""
    import resource
    import time

    n = 1_000_000
    path = write_rows(
        {
            "row_id": [f"row-{i}" for i in range(n)],
            "prompt": [f"a photo of number {i}" for i in range(n)],
        }
    )
    started = time.process_time()
    plan = make_plan(job_over(path), tmp_path / "plan.parquet")
    assert time.process_time() - started < 20
    assert plan.rows == n
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < 3
