"""Step caches in a plan: settings of rows, the gate, keys, expected evaluations and their sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from batchgen.caches import tables
from batchgen.caches.settings import Settings
from batchgen.caches.strategy import names
from batchgen.caches.tables import Entry, Key, Tables, store, user_folder
from batchgen.cli.plans.caches import cache_lines
from batchgen.config.capability import served_by
from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, ManifestError
from batchgen.families.family import BLOCK_CACHES, OUTPUT_CACHES
from batchgen.planfile import PLAN_COLUMNS
from batchgen.planning.fits import Drawing, Fits
from batchgen.planning.identity import check_keys
from batchgen.planning.manifests.check import check_manifest
from batchgen.planning.plan import Plan, make_plan, read_plan, read_requests
from batchgen.planning.pricing.work import planned_work, read_work
from batchgen.request import REQUEST_FIELDS, Request

CACHE_FIELDS = [f.name for f in REQUEST_FIELDS if f.name.startswith("cache_")]


@pytest.fixture
def plan_of(
    write_rows: Callable[..., Path], job_over: Callable[..., JobConfig], tmp_path: Path
) -> Callable[..., Plan]:
    """A plan of rows with these columns: prompts a, b, ... and 20 steps at guidance 3."""

    def plan(columns: dict[str, Any], **changes: object) -> Plan:
        rows = len(next(iter(columns.values())))
        prompts = {"prompt": [chr(ord("a") + row) for row in range(rows)]}
        return make_plan(job_over(write_rows(prompts | columns), **changes), tmp_path / "plan")

    return plan


def requests(plan: Plan) -> list[Request]:
    return read_requests(plan.path)


def settings(request: Request) -> tuple[object, ...]:
    return tuple(getattr(request, name) for name in CACHE_FIELDS[:5])


def test_rows_go_over_the_job_column_by_column(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(
        {
            "cache_strategy": [None, "none", " UNIFORM ", None, None],
            "cache_ratio": [None, None, None, 0.25, None],
            "cache_params": [None, None, None, None, '{"threshold": 0.20}'],
        },
        row_defaults__cache_strategy="EasyCache",
        row_defaults__cache_ratio=0.4,
        row_defaults__cache_warmup=3,
        row_defaults__cache_params='{"threshold": 0.1}',
    )
    assert [settings(request) for request in requests(plan)] == [
        ("easycache", 0.4, 3, 1, '{"threshold":0.1}'),
        ("none", 0.0, 0, 0, ""),
        ("uniform", 0.4, 3, 1, ""),
        ("easycache", 0.25, 3, 1, '{"threshold":0.1}'),
        ("easycache", 0.4, 3, 1, '{"threshold":0.2}'),
    ]


def test_keys_of_rows_without_a_cache_stay_what_they_are(plan_of: Callable[..., Plan]) -> None:
    seeds = {"seed": [1, 2, 3]}
    bare = [request.row_key for request in requests(plan_of(seeds))]
    mixed = requests(plan_of(seeds | {"cache_ratio": [None, 0.5, 0.0]}))
    assert [r.row_key == key for r, key in zip(mixed, bare, strict=True)] == [True, False, True]


def test_every_setting_is_in_the_key_and_ranks_find_the_same(plan_of: Callable[..., Plan]) -> None:
    ways: dict[str, list[Any]] = {
        "cache_strategy": ["uniform", "easycache", *["uniform"] * 3, "easycache"],
        "cache_ratio": [0.5, 0.5, 0.6, 0.5, 0.5, 0.5],
        "cache_warmup": [2, 2, 2, 3, 2, 2],
        "cache_cooldown": [2, 2, 2, 2, 3, 2],
        "cache_params": [None] * 5 + ['{"threshold": 0.1}'],
    }
    plan = plan_of({"prompt": ["a"] * 6, "seed": [1] * 6} | ways)
    rows = requests(plan)
    assert len({request.row_key for request in rows}) == plan.unique_rows == 6
    check_keys(plan.key_context, rows, plan.path)
    with pytest.raises(Exception, match="its values make"):
        check_keys(plan.key_context, [replace(rows[0], cache_table="other")], plan.path)


def test_what_is_spelt_differently_is_one_row(plan_of: Callable[..., Plan]) -> None:
    same = {"cache_strategy": ["planned", " Planned", None], "cache_ratio": [None, 0.5, 0.5]}
    plan = plan_of({"prompt": ["a"] * 3, "seed": [1] * 3} | same)
    assert (plan.rows, plan.unique_rows) == (3, 1)
    assert [forecast.rows for forecast in plan.caches] == [1]


def test_an_older_plan_is_read_without_caches(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of({"seed": [1, 2]})
    table = pq.read_table(plan.path)
    table = table.drop_columns([*CACHE_FIELDS, "steps_expected"])
    older = tmp_path / "older.parquet"
    pq.write_table(table.replace_schema_metadata(table.schema.metadata), older)
    rows = read_requests(older)
    assert {settings(request) for request in rows} == {("none", 0.0, 0, 0, "")}
    assert [request.row_key for request in rows] == [r.row_key for r in requests(plan)]
    check_keys(plan.key_context, rows, older)


# -------------------------------------------------------------------------------------- the price
def test_cost_and_sums_follow_the_ratio(
    plan_of: Callable[..., Plan], tiny_job: JobConfig, tmp_path: Path
) -> None:
    columns = {"cache_ratio": [None, 0.5, 0.5, 0.5], "guidance_scale": [3.0, 3.0, 1.0, 3.0]}
    columns |= {"prompt": ["a", "b", "c", "b"], "seed": [1, 2, 3, 2]}  # the last is an alias
    bare = plan_of({"guidance_scale": columns["guidance_scale"][:3]})
    plan = plan_of(columns)
    rows = requests(plan)
    assert [request.steps_expected for request in rows] == [40.0, 20.0, 10.0, 20.0]
    assert rows[1].cost_s < rows[0].cost_s
    (bucket,) = plan.buckets
    assert (bucket.rows, bucket.steps) == (3, 40)
    assert (bucket.evaluations, bucket.evaluations_total) == (70, 100)
    assert plan.cost_s_total == pytest.approx(sum(request.cost_s for request in rows[:3]))
    forward = bare.buckets[0].denoise_s / bare.buckets[0].evaluations
    assert bare.cost_s_total - plan.cost_s_total == pytest.approx(30 * forward)
    assert {(c.strategy, c.ratio, c.guidance_scale, c.rows, c.share) for c in plan.caches} == {
        ("planned", 0.5, 3.0, 1, 0.5),
        ("planned", 0.5, 1.0, 1, 0.5),
    }
    assert read_plan(plan.path) == plan
    whole = planned_work(plan)
    assert read_work(plan.path, np.arange(3), tiny_job.model) == whole


def test_layouts_are_priced_with_audits_and_know_the_strategies(
    plan_of: Callable[..., Plan], tiny_job: JobConfig
) -> None:
    columns = {"cache_strategy": [None, "pab", "uniform", "uniform"]}
    plan = plan_of(columns, system__cache__audit_every=1)
    (work,) = planned_work(plan)
    rows = requests(plan)
    expected = sum(request.steps_expected for request in rows)
    assert work.evaluations == pytest.approx(expected + 3 * 40, abs=1)
    assert work.caches == ("pab", "uniform")
    (read,) = read_work(plan.path, np.arange(4), tiny_job.model, audit_every=1)
    assert replace(read, steps=work.steps) == work and abs(read.steps - work.steps) <= 1
    (plain,) = read_work(plan.path, np.arange(1), tiny_job.model, audit_every=1)
    assert (plain.evaluations, plain.caches) == (40, ())


@pytest.mark.parametrize("name", names())
def test_every_strategy_is_priced_from_nothing_to_everything(
    plan_of: Callable[..., Plan], name: str
) -> None:
    ratios = [0.0, 0.25, 0.5, 0.75, 1.0]
    steps = [1, 2, 7, 20, 50]
    columns = {"cache_ratio": ratios * 5, "num_steps": [n for n in steps for _ in ratios]}
    rows = requests(plan_of(columns, row_defaults__cache_strategy=name))
    for at, count in enumerate(steps):
        expected = [request.steps_expected for request in rows[at * 5 : at * 5 + 5]]
        assert expected[0] == 2 * count
        assert expected == sorted(expected, reverse=True)
        assert expected[-1] > 0


def test_a_plan_offers_fits_to_rows_that_save_something(plan_of: Callable[..., Plan]) -> None:
    """Rows of one step compute it, fit or none; a threshold of one's own is no published one."""
    short = cache_lines(plan_of({"num_steps": [1, 1]}, row_defaults__cache_strategy="planned"))
    assert "2 rows, 100% computed, no fit" in short["caches"]
    assert "calibrate" not in short["caches"]
    told = cache_lines(plan_of({"num_steps": [18]}, row_defaults__cache_strategy="planned"))
    assert "1 row, 50% computed, no fit" in told["caches"] and "calibrate" in told["caches"]
    own = {"num_steps": [18], "cache_strategy": ["easycache"]}
    own |= {"cache_params": ['{"threshold": 0.1}']}
    said = "no fit: a threshold of their own, or the published one"
    assert cache_lines(plan_of(own))["caches"].endswith(said)


def test_a_plan_tells_what_was_fitted_from_what_was_published(
    plan_of: Callable[..., Plan], write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    asked = {"row_defaults__cache_strategy": "teacache", "row_defaults__num_steps": 50}
    assert cache_lines(plan_of({"seed": [1]}, **asked))["caches"].endswith("computed, with a fit")
    path, job = write_rows({"prompt": ["a"]}), tmp_path / "job.yaml"
    job.write_text(f"defaults: [base, {{model: flux.1-dev}}, _self_]\nmanifest: {path}\n")
    overrides = ["model.weights=random", "row_defaults.cache_strategy=teacache"]
    plan = make_plan(compose_job(job, overrides).config, tmp_path / "plan")
    assert cache_lines(plan)["caches"].endswith("computed, with published coefficients")


# ---------------------------------------------------------------------------------------- refusals
def test_an_illegal_setting_names_row_column_and_value(plan_of: Callable[..., Plan]) -> None:
    columns = {
        "cache_strategy": ["uniform", "off", None, "meancache", "slowcache"],
        "cache_ratio": [0.5, 0.5, 7.0, None, None],
        "cache_warmup": [20, None, None, None, None],
        "cache_params": [None, None, None, '{"fresh_steps": 11.5}', None],
    }
    with pytest.raises(ManifestError) as caught:
        plan_of(columns)
    told = str(caught.value)
    for line in (
        "row 0, cache_warmup = 20: warm-up 20 + cool-down 0 must be less than num_steps 20",
        "row 1, cache_ratio = 0.5: there is no cache without a cache_strategy",
        "row 2, cache_ratio = 7.0: legal: >= 0 and <= 1",
        "row 3, cache_params = '{\"fresh_steps\":11.5}': ",
        "is not a whole number",
        "row 4, cache_strategy = 'slowcache': is not one of none, ",
    ):
        assert line in told
    assert "5 illegal values" in told


@pytest.mark.parametrize(
    ("defaults", "told"),
    [
        ({"strategy": "unifrom"}, "row_defaults.cache_strategy: 'unifrom': is not one of none"),
        ({"strategy": "none", "ratio": 0.5}, "row_defaults.cache_ratio: 0.5: there is no cache"),
        ({"strategy": "uniform", "warmup": 20}, "row_defaults.cache_warmup: 20: warm-up 20"),
        ({"params": "{"}, "row_defaults.cache_params: '{': there is no cache"),
    ],
)
def test_a_job_that_cannot_hold_is_refused(
    plan_of: Callable[..., Plan], defaults: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told.replace("{", r"\{")):
        plan_of({"seed": [1]}, **{f"row_defaults__cache_{k}": v for k, v in defaults.items()})


def test_the_gate_refuses_who_asks(plan_of: Callable[..., Plan]) -> None:
    shut = {"system__cache__enabled": False}
    assert requests(plan_of({"cache_strategy": [None, "off"]}, **shut))
    with pytest.raises(ManifestError, match=r"row 1, cache_strategy = 'planned': system\.cache\."):
        plan_of({"cache_ratio": [None, 0.5]}, **shut)
    with pytest.raises(ConfigError, match=r"row_defaults\.cache_strategy: 'uniform': system\.cac"):
        plan_of({"seed": [1]}, row_defaults__cache_strategy="uniform", **shut)


def test_refusals_that_are_ignored_are_written_down(plan_of: Callable[..., Plan]) -> None:
    ignoring = {"system__cache__enabled": False, "system__cache__on_refused": "ignore"}
    bare = requests(plan_of({"seed": [1, 2, 3]}))
    columns = {"seed": [1, 2, 3], "cache_strategy": [None, "none", "Uniform"]}
    plan = plan_of(columns, row_defaults__cache_ratio=0.5, **ignoring)
    rows = requests(plan)
    assert [request.cache_refused for request in rows] == ["planned", "", "uniform"]
    assert [replace(request, cache_refused="") for request in rows] == bare
    assert (plan.caches, plan.cache_refused) == ((), {"planned": 1, "uniform": 1})
    with pytest.raises(ManifestError, match="is not one of"):
        plan_of({"cache_strategy": ["unifrom"]}, **ignoring)


def test_a_strategy_that_the_model_does_not_serve_is_refused(
    write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    """The engine without tensors has nothing to cache."""
    path = write_rows({"prompt": ["a", "b"], "cache_strategy": ["none", "uniform"]})
    job = tmp_path / "job.yaml"
    job.write_text(f"defaults: [base, {{model: null-engine}}, _self_]\nmanifest: {path}\n")
    told = r"row 1, cache_strategy = 'uniform': is not served by null-engine; served: none, or"
    with pytest.raises(ManifestError, match=told):
        make_plan(compose_job(job).config, tmp_path / "plan")
    config = compose_job(job, ["system.cache.on_refused=ignore"]).config
    rows = read_requests(make_plan(config, tmp_path / "plan").path)
    assert [request.cache_refused for request in rows] == ["", "uniform"]


@pytest.mark.parametrize(
    ("model", "asked", "told"),
    [
        (
            "cogvideox-5b",
            {"cache_ratio": [None, 0.5]},
            r"row 1, cache_strategy = 'planned': crosses gaps between steps, and "
            r"system\.sampler\.solver=sde draws noise at each of them; legal: another solver, none",
        ),
        (
            "hunyuan-dit-1.2",
            {"cache_strategy": ["seacache", "planned"]},
            r"row 1, cache_strategy = 'planned': is not served by hunyuan-dit-1\.2; served: none, ",
        ),
    ],
)
def test_gaps_that_noise_fills_are_refused(
    write_rows: Callable[..., Path],
    tmp_path: Path,
    model: str,
    asked: dict[str, list[Any]],
    told: str,
) -> None:
    """Row by row; other strategies reuse what a step would compute, whatever its solver draws."""
    path = write_rows({"prompt": ["a", "b"]} | asked)
    job = tmp_path / "job.yaml"
    job.write_text(f"defaults: [base, {{model: {model}}}, _self_]\nmanifest: {path}\n")
    with pytest.raises(ManifestError, match=told):
        make_plan(compose_job(job, ["model.weights=random"]).config, tmp_path / "plan")
    if model == "cogvideox-5b":
        ways = ["model.weights=random", "system.sampler.solver=ddim"]
        rows = read_requests(make_plan(compose_job(job, ways).config, tmp_path / "plan").path)
        assert [request.cache_strategy for request in rows] == ["none", "planned"]


def test_a_manifest_is_checked_without_a_job(write_rows: Callable[..., Path]) -> None:
    path = write_rows({"prompt": ["a", "b"], "cache_ratio": [0.5, 2.0], "cache_warmup": [9, 9]})
    (problem,) = check_manifest(path).problems.first
    assert str(problem).startswith("row 1, cache_ratio = 2.0: legal")


# --------------------------------------------------------------------------------------- in general
def test_families_serve_strategies_that_there_are(tiny_job: JobConfig) -> None:
    served = served_by(tiny_job.model).cache_strategies
    assert served == (*OUTPUT_CACHES, *BLOCK_CACHES)
    assert served[0] == "none" and set(served[1:]) <= set(names())


def test_rows_without_a_cache_cost_planning_nothing(plan_of: Callable[..., Plan]) -> None:
    """Columns that no row sets are written as runs of one value: no bytes a row."""
    rows = 8192
    plan = plan_of({"prompt": ["a"] * rows, "seed": list(range(rows))})
    group = pq.ParquetFile(plan.path).metadata.row_group(0)
    for name in CACHE_FIELDS:
        column = group.column(PLAN_COLUMNS.names.index(name))
        assert column.total_compressed_size < 200


# ------------------------------------------------------------------------------------------ tables
@pytest.fixture
def unfitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no tables were shipped."""
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "nothing")


def fit(steps: int = 20, computed: int = 10, **key: Any) -> Entry:
    """A fit for rows of the demo's model, whose leaps stay where they are."""
    scales = {"guidance_scale": 3.0, "guidance_scale_2": 3.0, "true_cfg_scale": 1.0}
    made_for = {"model": "tiny-wan", "solver": "unipc", "sigma_shift": 3.0, **scales, **key}
    leap = [[1.0], [[0.0], [0.0]]]
    content = {"steps": list(range(computed)), "starts": [0], "leaps": [leap] * computed}
    return Entry(
        key=Key(strategy="planned", num_steps=steps, computed=computed, **made_for), content=content
    )


def test_rows_name_the_fit_that_serves_them(unfitted: None, plan_of: Callable[..., Plan]) -> None:
    columns = {
        "cache_ratio": [None, 0.5, 0.5, 0.5, 0.4, 0.5, 0.0],
        "cache_strategy": [None] * 5 + ["uniform", "planned"],
        "guidance_scale": [3.0, 3.0, 5.0, 3.0, 3.0, 3.0, 3.0],
        "num_steps": [18, 18, 18, 17, 18, 18, 18],  # nothing is shipped for these
    }
    before = requests(plan_of(columns))
    assert {request.cache_table for request in before} == {""}
    entry = fit(18, 9)
    store(user_folder(), [entry])
    plan = plan_of(columns)
    rows = requests(plan)
    assert [request.cache_table for request in rows] == ["", entry.digest, *[""] * 5]
    moved = [a.row_key != b.row_key for a, b in zip(before, rows, strict=True)]
    assert moved == [False, True, *[False] * 5]
    fitted = [c for c in plan.caches if c.fitted]
    assert [(c.strategy, c.ratio, c.num_steps, c.rows) for c in fitted] == [("planned", 0.5, 18, 1)]


def test_shipped_fits_serve_frames_about_as_large_as_they_saw(plan_of: Callable[..., Plan]) -> None:
    """Of any length: others end nearer by the solver's own update (`bench/RESULTS.md`)."""
    size = {"width": [64, 64, 128, 32, 96], "height": [64, 64, 64, 32, 96]}
    rows = requests(plan_of(size | {"cache_ratio": [0.5] * 5, "num_frames": [9, 17, 9, 9, 9]}))
    assert [bool(row.cache_table) for row in rows] == [True, True, True, False, False]


def test_a_fit_of_these_weights_goes_before_one_of_the_name(
    unfitted: None, plan_of: Callable[..., Plan]
) -> None:
    weights = plan_of({"seed": [1]}).key_context.weights
    mine = fit(model=weights)
    store(user_folder(), [fit()])
    store(user_folder(), [mine])
    (row,) = requests(plan_of({"cache_ratio": [0.5]}))
    assert row.cache_table == mine.digest


def test_a_fit_serves_rows_whose_experts_begin_where_its_own_did(tmp_path: Path) -> None:
    """One that does not say where is of the model's own boundary."""
    job = tmp_path / "job.yaml"
    job.write_text("defaults: [base, {model: wan2.2-t2v-a14b}, _self_]\nmanifest: none\n")
    leap = [[1.0], [[0.0], [0.0]]]
    content = {"steps": [*range(20)], "starts": [0, 13], "leaps": [leap] * 20}
    drawing = Drawing(40, 4.0, 3.0, 1.0, "unipc", 12.0, 1280, 720, 81)
    scales = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}

    def serves(asked: float | None, made: float | None) -> bool:
        own = [] if asked is None else [f"system.sampler.boundary={asked}"]
        config = compose_job(job, ["model.weights=random", *own]).config
        key = Key(strategy="planned", model="w", computed=20, boundary=made, **scales)
        folder = tmp_path / f"{made}"
        store(folder, [Entry(key=key, content=content)])
        fits = Fits(config, "w", Tables(folder))
        row = fits.row(Settings("planned", 0.5), drawing)
        return fits.find("planned", row, drawing) is not None

    assert serves(None, None) and serves(None, 0.875) and serves(0.875, None)
    assert serves(0.5, 0.5)
    assert not (serves(0.5, None) or serves(0.5, 0.875) or serves(None, 0.5))


def test_a_fit_that_passes_over_steps_that_must_be_computed_is_not_named(
    unfitted: None,
    plan_of: Callable[..., Plan],
) -> None:
    store(user_folder(), [fit()])  # of the first ten steps
    rows = requests(plan_of({"cache_ratio": [0.5, 0.5], "cache_cooldown": [0, 1]}))
    assert [bool(request.cache_table) for request in rows] == [True, False]


@pytest.mark.parametrize("name", ["teacache", "magcache"])
def test_a_row_outside_of_what_was_measured_is_told_before_anything_is_made(
    unfitted: None, plan_of: Callable[..., Plan], name: str
) -> None:
    """Another solver, shift, number of steps or branches than the table's: none serves it."""
    key = Key(strategy=name, model="tiny-wan", solver="unipc", sigma_shift=3.0, num_steps=20)
    measured = Entry(key=replace(key, branches=2), content={"ratios": [1.0] * 19})
    store(user_folder(), [measured])
    asks = {"row_defaults__cache_strategy": name}
    assert [r.cache_table for r in requests(plan_of({"seed": [1]}, **asks))] == [measured.digest]
    for columns, changes in (
        ({"num_steps": [None, 21]}, {}),
        ({"guidance_scale": [None, 1.0]}, {}),
        ({"seed": [1, 2]}, {"system__sampler__solver": "euler"}),
        ({"seed": [1, 2]}, {"system__sampler__sigma_shift": 4.0}),
    ):
        with pytest.raises(ManifestError) as caught:
            plan_of(columns, **asks, **changes)
        told = str(caught.value)
        assert f"cache_strategy = '{name}': there are no coefficients of it for tiny-wan" in told
        assert "system.cache.calibrate=true lets a pilot measure them" in told
    with pytest.raises(ManifestError, match=r"a pilot fits planned, .*, from 4 steps on"):
        plan_of({"num_steps": [3]}, **asks)


def test_coefficients_that_are_used_are_done_without(
    unfitted: None, plan_of: Callable[..., Plan]
) -> None:
    key = Key(strategy="seacache", model="tiny-wan", num_steps=20, branches=2)
    measured = Entry(key=key, content={"thresholds": [[0.5, 0.2]]})
    store(user_folder(), [measured])
    plan = plan_of({"num_steps": [None, 21]}, row_defaults__cache_strategy="seacache")
    assert [row.cache_table for row in requests(plan)] == [measured.digest, ""]
    assert sorted((c.num_steps, c.fitted) for c in plan.caches) == [(20, 1), (21, 0)]


def test_the_embedded_model_comes_with_fits(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of({"cache_ratio": [0.5], "num_steps": [50]})
    assert requests(plan)[0].cache_table
    assert [forecast.fitted for forecast in plan.caches] == [1]
