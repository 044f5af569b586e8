"""`manifest build`: prompts, tables and JSON lines become manifests that plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.config.schema import JobConfig
from batchgen.errors import ManifestError
from batchgen.planning.manifests.building.build import build_manifest
from batchgen.planning.manifests.check import check_manifest
from batchgen.planning.plan import make_plan, read_requests

ROOT = Path(__file__).parents[5]
Build = Callable[..., dict[str, list[object]]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a manifest from a source of the given content; returns its columns."""

    def make(name: str, content: str, **options: object) -> dict[str, list[object]]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        out = tmp_path / "new" / "out.parquet"
        build_manifest(tmp_path / name, out, **options)  # type: ignore[arg-type]
        columns: dict[str, list[object]] = pq.read_table(out).to_pydict()
        return columns

    return make


def test_a_text_file_has_one_prompt_a_line(build: Build) -> None:
    content = "\ufeffa red fox\n\n  ein Fuchs, rot  \r\n#1: 🦊\n"
    assert build("p.txt", content) == {"prompt": ["a red fox", "ein Fuchs, rot", "#1: 🦊"]}


def test_a_table_has_typed_columns_and_empty_cells_are_null(build: Build) -> None:
    content = (
        "row_id,prompt,seed,guidance_scale,tags,mine\r\n"
        '1,"two, ""quoted""\nlines",9223372036854775807,4,NA,7\r\n'
        "2,null,,,,8\r\n"
    )
    assert build("t.csv", content) == {
        "row_id": ["1", "2"],
        "prompt": ['two, "quoted"\nlines', "null"],
        "seed": [2**63 - 1, None],
        "guidance_scale": [4.0, None],
        "tags": ["NA", None],
        "mine": [7, 8],
    }


def test_json_lines_keep_types_and_only_the_columns_they_name(build: Build) -> None:
    content = '{"prompt": "a", "seed": 9007199254740993}\n{"prompt": "ü", "mine": {"x": 1}}\n'
    assert build("t.jsonl", content) == {
        "prompt": ["a", "ü"],
        "seed": [9007199254740993, None],
        "mine": [None, {"x": 1}],
    }


def test_a_folder_of_parts_is_a_source_too(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "parts" / "1.parquet")
    pq.write_table(pa.table({"prompt": ["b"], "seed": [3]}), tmp_path / "parts" / "2.parquet")
    built = build_manifest(tmp_path / "parts", tmp_path / "out.parquet", sweeps={"fps": "8,9"})
    assert (built.rows, built.source_rows) == (4, 2)
    assert pq.read_table(built.path).to_pydict() == {
        "prompt": ["a", "a", "b", "b"],
        "seed": [None, None, 3, 3],
        "fps": [8, 9, 8, 9],
    }


def test_seeds_and_sweeps_multiply_and_ids_stay_unique(build: Build, tmp_path: Path) -> None:
    content = "row_id,prompt\ncat,a cat\ndog,a dog\n"
    columns = build(
        "t.csv", content, seeds=2, sweeps={"guidance_scale": "4, 6.5", "num_steps": "9"}
    )
    assert len(columns["prompt"]) == 8
    assert columns["row_id"][:4] == [
        "cat-guidance_scale4-num_steps9-seed0",
        "cat-guidance_scale4-num_steps9-seed1",
        "cat-guidance_scale6.5-num_steps9-seed0",
        "cat-guidance_scale6.5-num_steps9-seed1",
    ]
    assert columns["seed"] == [0, 1] * 4
    assert columns["guidance_scale"] == [4.0, 4.0, 6.5, 6.5] * 2
    assert check_manifest(tmp_path / "new" / "out.parquet").problems.count == 0


def test_a_sweep_over_text_makes_legal_ids(build: Build, tmp_path: Path) -> None:
    content = "row_id,prompt\nr,p\n"
    options = {"sweeps": {"aspect_ratio": "16:9,9:16", "resolution": "480p"}}
    assert build("t.csv", content, **options)["row_id"] == [
        "r-aspect_ratio16-9-resolution480p",
        "r-aspect_ratio9-16-resolution480p",
    ]
    assert check_manifest(tmp_path / "new" / "out.parquet").problems.count == 0


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("p.md", "a", {}, "cannot read '.md'; legal: .txt, .csv, .tsv, .jsonl, .parquet"),
        ("p", "a", {}, "a file without ending"),
        ("p.txt", "\n \n", {}, "no rows"),
        ("p.csv", "", {}, "first line must name the columns"),
        ("p.csv", "prompt,seed\na,1\nb,x\n", {}, "line 3, seed = 'x': legal: an integer"),
        (
            "p.csv",
            "prompt,seed\na,1,2\n",
            {},
            "line 2: expected 2 columns (prompt, seed), got 3; a cell",
        ),
        (
            "p.jsonl",
            '{"prompt": "a"}\n{"prompt": }\n',
            {},
            "line 2: not JSON: expecting value at character 12",
        ),
        (
            "p.jsonl",
            '{"prompt": "a", "seed": "x"}\n',
            {},
            "line 1, seed = 'x': legal: an integer without quotes",
        ),
        ("p.txt", "a", {"seeds": 0}, "--seeds: 0 is out of range"),
        (
            "p.txt",
            "a",
            {"sweeps": {"num_step": "1"}},
            "num_step: no column that can be varied (did you mean 'num_steps'?); legal: seed, ",
        ),
        ("p.txt", "a", {"sweeps": {"prompt": "b"}}, "prompt: no column that can be varied"),
        ("p.txt", "a", {"sweeps": {"num_steps": "1,x"}}, "are not integers with commas between"),
        ("p.txt", "a", {"sweeps": {"num_steps": ","}}, "no values"),
        ("p.txt", "a", {"sweeps": {"seed": "1"}, "seeds": 2}, "varied twice"),
        ("p.csv", "prompt,seed\na,1\n", {"seeds": 2}, "the source sets this column"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_and_nothing_is_written(
    build: Build, tmp_path: Path, name: str, content: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        build(name, content, **options)
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists() or list((tmp_path / "new").iterdir()) == []


def test_a_missing_source_and_a_target_that_is_the_source_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(ManifestError, match=r"did you mean 'rows\.parquet'"):
        build_manifest(tmp_path / "row.parquet", tmp_path / "out.parquet")
    with pytest.raises(ManifestError, match="is the source"):
        build_manifest(tmp_path / "rows.parquet", tmp_path / "rows.parquet")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ManifestError, match="line 1: byte 0xe9 is not UTF-8"):
        build_manifest(tmp_path / "latin.txt", tmp_path / "out.parquet")


@pytest.mark.parametrize("name", ["demo", "wan_sample", "image_sample"])
def test_the_shipped_manifests_are_what_their_sources_build(name: str, tmp_path: Path) -> None:
    built = build_manifest(ROOT / "manifests" / f"{name}.csv", tmp_path / "out.parquet")
    shipped = pq.read_table(ROOT / "manifests" / f"{name}.parquet")
    assert pq.read_table(built.path).equals(shipped)


def test_the_demo_is_varied(tiny_job: JobConfig, tmp_path: Path) -> None:
    """Sixteen rows that show what a manifest can say: sizes of a clip, steps, guidance, seeds."""
    plan = make_plan(tiny_job, tmp_path / "plan.parquet")
    rows = read_requests(plan.path)
    assert (plan.rows, plan.unique_rows) == (16, 16)
    assert {r.num_frames for r in rows} == {1, 9, 17}
    assert {r.format for r in rows} == {"png", "mp4"}
    assert len({r.num_steps for r in rows}) >= 3
    assert 1.0 in {r.guidance_scale for r in rows}
    assert len({r.guidance_scale for r in rows}) >= 3
    assert any(r.negative_prompt for r in rows)
