"""The table of request fields holds together, row keys stay what they are, and a field is one line:
all that knows of fields is made from the table, or held against it here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from batchgen import request as table
from batchgen.catalog.columns import REQUEST
from batchgen.config.build import home_of, leaf_keys, unknown_key_message
from batchgen.config.capability import served_by
from batchgen.config.composing.compose import CONF, compose_job
from batchgen.planfile import PLAN_COLUMNS
from batchgen.planning.identity import KeyContext, row_key
from batchgen.planning.plan import make_plan, read_keys, read_requests
from batchgen.request import (
    ALWAYS_IN_KEY,
    FIELDS,
    MANIFEST,
    REQUEST_FIELDS,
    ROW_DEFAULTS,
    Field,
    Request,
)

ROOT = Path(__file__).parents[2]
CONTEXT = KeyContext(
    family="wan",
    numerics_version=2,
    weights="sampled:aa",
    tokenizer="bb",
    dtype="bfloat16",
    max_tokens=512,
    boundary=None,
    store_dtype="same",
    tiled_vae="off",
    attention="exact",
)
ROW = Request(
    row_index=0,
    row_id="a",
    row_key="",
    prompt="a fox 🦊",
    negative_prompt="blurry, low",
    seed=2**62 + 1,
    width=832,
    height=480,
    num_frames=81,
    fps=16.0,
    num_steps=30,
    guidance_scale=5.0,
    guidance_scale_2=None,
    solver="unipc",
    sigma_shift=3.0,
    format="mp4",
    quality=8,
)
PINNED: list[tuple[dict[str, object], str]] = [
    ({}, "b06c36a69c83bd1342d4cb289eb7b6f1200b29f8966b82d40d628e83667e5857"),
    # their defaults, which must not change: at them these two are in no key
    (
        {"true_cfg_scale": 1.0, "media_size": None},
        "b06c36a69c83bd1342d4cb289eb7b6f1200b29f8966b82d40d628e83667e5857",
    ),
    ({"fps": 23.976}, "46ad5790eacc6ea782c5c1384452e2a9188f7eb8c4a2f58574defee4b34b2cda"),
    ({"guidance_scale_2": 3.0}, "dc66b0b266a59e7548f6f06f8b251d43db39ac451fba71834e061786962daea9"),
    ({"true_cfg_scale": 2.5}, "00209e07ae5f8f5d240a03c87521ee281f311bd464df09ed92a20532a3de7697"),
    (
        {"media_size": "830x480x80"},
        "76e22c79aee8915c1561849d6a90f093926a990d94d909ab00109d94eefa05a7",
    ),
    (
        {"true_cfg_scale": 2.5, "media_size": "830x480x80"},
        "ae336e25e8f662619ab3e1c87a9a9e69cc4a2b0e50e2cc93e916b92fd28039b3",
    ),
]


@pytest.mark.parametrize(("changes", "key"), PINNED, ids=lambda value: str(value)[:40])
def test_keys_of_existing_runs_stay_what_they_are(changes: dict[str, object], key: str) -> None:
    assert row_key(CONTEXT, replace(ROW, **changes)) == key  # type: ignore[arg-type]


def test_places_in_the_key_are_taken_once_and_without_a_gap() -> None:
    places = sorted(f.column.key for f in REQUEST_FIELDS if isinstance(f.column.key, int))
    assert places == list(range(1, len(places) + 1))


def test_what_may_be_left_out_of_a_key_has_a_default() -> None:
    always = ("apart", "no", *range(1, ALWAYS_IN_KEY + 1))
    later = [field for field in REQUEST_FIELDS if field.column.key not in always]
    assert {"true_cfg_scale", "media_size"} <= {field.name for field in later}
    assert not [field.name for field in later if field.default is MISSING]


def test_the_catalog_and_the_plan_hold_every_field() -> None:
    assert not {field.name for field in REQUEST_FIELDS} - set(PLAN_COLUMNS.names)
    shown = {name for name, field in FIELDS.items() if field.column.catalog}
    assert not shown - {column.name for column in REQUEST}


def test_each_key_that_sets_a_field_is_a_key_of_the_job() -> None:
    keys = dict(leaf_keys())
    by = {name: field.column.set_by for name, field in FIELDS.items()}
    named = {name: key for name, key in by.items() if key not in ("row", "row alone", "plan")}
    assert not {name: key for name, key in named.items() if key not in keys}
    assert not {name for name in ROW_DEFAULTS if f"row_defaults.{name}" not in keys}


@pytest.mark.parametrize("name", MANIFEST)
def test_a_column_in_another_tier_is_answered_with_its_own(name: str) -> None:
    answer = unknown_key_message(f"slurm.{name}")
    if name in ROW_DEFAULTS:
        assert home_of(name) == f"row_defaults.{name}"
        assert f"did you mean 'row_defaults.{name}'" in answer
    else:
        assert answer.endswith("is a column of the manifest and has no job-wide value")


def test_families_list_fields_that_few_families_read() -> None:
    """What all families read is not in `Capabilities.columns`, nor is a misspelt field."""
    few = {name for name, field in FIELDS.items() if field.column.read_by == "some"}
    for preset in sorted((CONF / "model").glob("*.yaml")):
        if preset.stem not in ("auto", "generic"):
            job = compose_job(ROOT / "jobs" / "demo.yaml", [f"model={preset.stem}"])
            listed = set(served_by(job.config.model).columns)
            assert not listed - few, preset.name


# ------------------------------------------------------------------------------------------- docs
def test_base_yaml_lists_every_column_that_a_job_may_set() -> None:
    stored = yaml.safe_load((CONF / "base.yaml").read_text(encoding="utf-8"))["row_defaults"]
    assert not set(ROW_DEFAULTS) - set(stored), "missing in row_defaults of base.yaml"
    assert not set(stored) - set(ROW_DEFAULTS), "in row_defaults of base.yaml, but no such field"


def described() -> Iterator[tuple[str, str, str]]:
    """(column, type, range) of each column in the table of manifests/README.md."""
    text = (ROOT / "manifests" / "README.md").read_text(encoding="utf-8")
    for line in text.partition("| column |")[2].splitlines()[2:]:
        if not line.startswith("|"):
            return
        names, kind, bounds, _ = (cell.strip() for cell in line.strip("|").split("|"))
        yield from ((name, kind, bounds) for name in names.split(", "))


def test_the_readme_of_manifests_describes_every_column_as_it_is() -> None:
    found = {name: (kind, bounds) for name, kind, bounds in described()}
    assert not set(MANIFEST) - set(found), "missing in manifests/README.md"
    assert not set(found) - set(MANIFEST), "in manifests/README.md, but no such column"
    assert found == {name: (field.kind, _in_words(field)) for name, field in MANIFEST.items()}


def _in_words(field: Field) -> str:
    bounds = field.column.range
    if bounds is None:
        return ""
    high = "2^63-1" if bounds.high == table.MAX_SEED else f"{bounds.high:g}"
    return f"{bounds.low:g} .. {high} {field.column.unit}".strip()


# ------------------------------------------------------------------------------- one line is enough
NEW = """\
    motion: Annotated[float, Column(Range(0.0, 10.0), "pixels a frame")] = 1.5
    prompt_9: Annotated[str | None, Column(read_by="some", prose=True)] = None
"""
# Runs commands of batchgen, one a line of argv, with another `batchgen.request`.
DRIVER = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("batchgen.request", sys.argv[1])
sys.modules["batchgen.request"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from batchgen.cli.main import main
for line in sys.argv[2:]:
    print("exit", main(json.loads(line)))
"""
JOB = """\
defaults: [base, {{model: null-engine}}, _self_]
manifest: {manifest}
row_defaults: {{num_steps: 1}}
slurm: {{executor: inline}}
"""


def test_a_new_line_is_a_column_of_manifest_plan_key_and_catalog(tmp_path: Path) -> None:
    """Two lines are added to the table and to nothing else: a number that every family reads, and
    a text that the null family does not."""
    source = Path(table.__file__).read_text(encoding="utf-8")
    first = "    width: Annotated["
    assert source.count(first) == 1
    (tmp_path / "request.py").write_text(source.replace(first, NEW + first), encoding="utf-8")
    frame = pd.DataFrame({"prompt": ["a", "b", "c"], "seed": [1, 2, 3]})
    frame.to_parquet(tmp_path / "old.parquet")
    frame.assign(motion=[None, 3, 1.5]).to_parquet(tmp_path / "rows.parquet")
    frame.assign(motion=[0.0, 11.0, 1.0]).to_parquet(tmp_path / "wild.parquet")
    for name in ("old", "rows"):
        job = JOB.format(manifest=tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.yaml").write_text(job, encoding="utf-8")
    plain = make_plan(compose_job(tmp_path / "old.yaml").config, tmp_path / "plan.parquet")
    done = _drive(
        tmp_path,
        ["run", "rows.yaml", "tag=first", "--json"],
        ["run", "rows.yaml", "tag=second", "row_defaults.motion=2", "--json"],
        ["plan", "rows.yaml", "model.request_defaults.motion=-1"],
        ["plan", "rows.yaml", "motion=2"],
        ["plan", "rows.yaml", "locked=[motion]"],
        ["plan", "rows.yaml", "row_defaults.prompt_9=x"],
        ["plan", "rows.yaml", "manifest=wild.parquet"],
    )
    assert re.findall("exit (.)", done.stdout) == ["0", "0", "2", "2", "2", "2", "2"], done.stderr
    for answer in (
        "model.request_defaults.motion: -1.0 is out of range; legal: >= 0 and <= 10",
        "motion belongs to row_defaults; did you mean 'row_defaults.motion'?",
        "the job locks this column",
        "row_defaults.prompt_9: x is not served by null-engine yet; served: null",
        "row 1, motion = 11.0: legal: >= 0 and <= 10",
    ):
        assert answer in done.stderr
    old = read_keys(plain.path).tolist()
    made = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    first_run, second_run = (_catalog(result["run"]) for result in made)
    assert first_run.motion.tolist() == [1.5, 3.0, 1.5]
    assert second_run.motion.tolist() == [2.0, 3.0, 1.5]
    assert first_run.prompt_9.isna().all()
    same = first_run.row_key == old
    assert same.tolist() == [True, False, True], "at its default it is in no key"
    assert (second_run.row_key == old).tolist() == [False, False, True]
    assert second_run.row_key[1] == first_run.row_key[1]
    # a plan that was made without the field is read with its default
    assert [r.seed for r in read_requests(plain.path)] == [1, 2, 3]


def _drive(folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    lines = [json.dumps(command) for command in commands]
    return subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder / "request.py"), *lines],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def _catalog(run: str) -> pd.DataFrame:
    frame = pd.read_parquet(Path(run) / "catalog" / "rows")
    assert frame.status.eq("ok").all()
    return frame
