"""A folder of parts is read as pandas reads it, or refused by name: no row, no column is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.cli.main import main
from batchgen.config.schema import JobConfig
from batchgen.errors import ManifestError
from batchgen.planning.identity import row_key
from batchgen.planning.manifests.building.build import build_manifest
from batchgen.planning.manifests.check import check_manifest
from batchgen.planning.manifests.manifest import open_manifest
from batchgen.planning.plan import make_plan, read_plan, read_requests

JobOver = Callable[..., JobConfig]


def put(path: Path, *prompts: str, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"prompt": list(prompts), **columns}), path)
    return path


def test_folder_names_are_columns_as_pandas_reads_them(tmp_path: Path, job_over: JobOver) -> None:
    frame = pd.DataFrame(
        {
            "prompt": ["p1", "p2", "p3"],
            "num_steps": [2, 3, 3],
            "guidance_scale": [1.5, 4.0, 4.0],
            "tags": ["a b/ü", "5", "5"],
            "shot": [1, 1, 2],
        }
    )
    folder = tmp_path / "hive"
    frame.to_parquet(folder, partition_cols=["num_steps", "guidance_scale", "tags", "shot"])
    seen = pd.read_parquet(folder)
    assert check_manifest(folder).rows == len(seen) == 3
    plan = make_plan(job_over(folder, carry_columns=["shot"]), tmp_path / "plan.parquet")
    rows = read_requests(plan.path)
    assert [r.prompt for r in rows] == seen["prompt"].tolist()
    assert [r.num_steps for r in rows] == seen["num_steps"].astype(int).tolist()
    assert [r.guidance_scale for r in rows] == [1.5, 4.0, 4.0]
    table = pq.read_table(plan.path).to_pydict()
    assert table["tags"] == ["a b/ü", "5", "5"]
    assert table["carry.shot"] == [1, 1, 2]
    built = build_manifest(folder, tmp_path / "flat.parquet")
    assert pq.read_table(built.path)["num_steps"].to_pylist() == [2, 3, 3]


def test_a_null_a_missing_key_and_a_name_with_zeros_in_folder_names(
    tmp_path: Path, job_over: JobOver
) -> None:
    folder = tmp_path / "hive"
    put(folder / "shot=007" / "a.parquet", "a")
    put(folder / "shot=__HIVE_DEFAULT_PARTITION__" / "b.parquet", "b")
    put(folder / "z.parquet", "c")
    plan = make_plan(job_over(folder, carry_columns=["shot"]), tmp_path / "plan.parquet")
    shots = pq.read_table(plan.path)["carry.shot"].to_pylist()
    assert shots == ["007", None, None]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("num_steps=two", "the folder's name sets num_steps = 'two'; legal: an integer"),
        ("seed=5", "column 'seed' is in the file and in its folder's name"),
        ("fps=8/fps=9", "column 'fps' is set twice by its folders' names"),
    ],
)
def test_folder_names_that_cannot_be_a_column_are_refused(
    tmp_path: Path, place: str, message: str
) -> None:
    put(tmp_path / "hive" / place / "a.parquet", "a", seed=[1])
    with pytest.raises(ManifestError, match=message):
        open_manifest(tmp_path / "hive")


def test_a_column_of_folder_names_that_nobody_reads_is_refused(
    tmp_path: Path, job_over: JobOver
) -> None:
    put(tmp_path / "hive" / "day=2024-05-01" / "a.parquet", "a")
    with pytest.raises(ManifestError, match="column 'day' is read by nobody"):
        make_plan(job_over(tmp_path / "hive"), tmp_path / "plan.parquet")


def test_folder_names_may_be_whole_floats_and_hold_every_column_but_one(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "seed": [1.0, 2.0], "tags": ["x", "y"]})
    frame.to_parquet(tmp_path / "hive", partition_cols=["seed", "prompt"])
    built = build_manifest(tmp_path / "hive", tmp_path / "flat.parquet")
    assert pq.read_table(built.path).to_pydict() == {
        "tags": ["x", "y"],
        "seed": [1, 2],
        "prompt": ["a", "b"],
    }
    job_rows = [batch.num_rows for batch in open_manifest(tmp_path / "hive").batches(["prompt"])]
    assert job_rows == [1, 1]


def test_other_folder_names_are_another_manifest(tmp_path: Path) -> None:
    put(tmp_path / "hive" / "num_steps=2" / "a.parquet", "a")
    before = open_manifest(tmp_path / "hive").digest()
    os.rename(tmp_path / "hive" / "num_steps=2", tmp_path / "hive" / "num_steps=3")
    assert open_manifest(tmp_path / "hive").digest() != before


def test_parquet_files_are_parts_whatever_their_ending(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for name in ("a.parquet", "B.PARQUET", "000000_0", "c.parq", "sub/part-00000.snappy", "d.pq"):
        put(folder / name, name)
    for name in ("_SUCCESS", ".part.crc", "_tmp/x.parquet", ".git/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no data")
    assert check_manifest(folder).rows == len(pd.read_parquet(folder)) == 6


@pytest.mark.parametrize("name", ["README.md", "part-1.csv", "b.parquet.tmp", "b.parquet"])
def test_a_file_among_the_parts_that_is_not_parquet_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "parts" / "a.parquet", "a")
    (tmp_path / "parts" / name).write_text("no data, or half of it")
    with pytest.raises(ManifestError, match=f"{name}: not a Parquet file"):
        open_manifest(tmp_path / "parts")


def test_linked_files_and_folders_are_read(tmp_path: Path) -> None:
    put(tmp_path / "parts" / "y1" / "a.parquet", "a")
    put(tmp_path / "elsewhere" / "b.parquet", "b")
    (tmp_path / "parts" / "y2").symlink_to("../elsewhere")
    (tmp_path / "parts" / "c.parquet").symlink_to("../elsewhere/b.parquet")
    assert check_manifest(tmp_path / "parts").rows == 3


def test_links_that_lead_nowhere_or_in_a_circle_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    put(folder / "a.parquet", "a")
    (folder / "b.parquet").symlink_to("/gone/b")
    with pytest.raises(ManifestError, match="a link to /gone/b, which is not there"):
        open_manifest(folder)
    with pytest.raises(ManifestError, match="a link to /gone/b,"):
        open_manifest(folder / "b.parquet")
    (folder / "b.parquet").unlink()
    (folder / "again").symlink_to("..")
    with pytest.raises(ManifestError, match="again: a link to a folder above it"):
        open_manifest(folder)
    (folder / "again").unlink()
    (tmp_path / "other").mkdir()
    (folder / "over").symlink_to("../other")
    (tmp_path / "other" / "back").symlink_to("../parts")
    with pytest.raises(ManifestError, match="back: a link to a folder above it"):
        open_manifest(folder)
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(ManifestError, match="leads back to itself"):
        open_manifest(tmp_path / "self")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    put(tmp_path / "parts" / "a.parquet", "a")
    os.mkfifo(tmp_path / "parts" / "b.parquet")
    for path in (tmp_path / "parts", tmp_path / "parts" / "b.parquet"):
        with pytest.raises(ManifestError, match=r"b\.parquet: neither a file nor a folder"):
            open_manifest(path)


# ----------------------------------------------------------------------------------------- columns
def test_whole_floats_are_integers_as_pandas_writes_columns_with_gaps(
    tmp_path: Path, job_over: JobOver
) -> None:
    path = tmp_path / "gaps.parquet"
    frame = pd.DataFrame({"prompt": ["a", "b"], "seed": [7, None], "num_steps": [2.0, 3.0]})
    frame.to_parquet(path)
    rows = read_requests(make_plan(job_over(path), tmp_path / "plan.parquet").path)
    assert (rows[0].seed, [r.num_steps for r in rows]) == (7, [2, 3])
    whole = put(tmp_path / "whole.parquet", "a", seed=pa.array([7], pa.int64()))
    same = read_requests(
        make_plan(job_over(whole, row_defaults__num_steps=2), tmp_path / "2.parquet").path
    )
    assert same[0].row_key == rows[0].row_key


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (pa.float64(), 1.5, "seed = 1.5: legal: whole numbers"),
        (pa.float64(), float("nan"), "seed = nan: legal: whole numbers"),
        (pa.float64(), float("inf"), "seed = inf: legal: whole numbers"),
        (pa.float64(), 2.0**60, "keeps whole numbers up to 9007199254740992; write it as int64"),
        (pa.float32(), 2.0**25, "keeps whole numbers up to 16777216; write it as int64"),
    ],
)
def test_a_float_that_is_no_integer_is_refused_by_row(
    tmp_path: Path, kind: pa.DataType, value: float, reason: str
) -> None:
    path = put(tmp_path / "x.parquet", "a", "b", "c", seed=pa.array([1, None, value], kind))
    problems = check_manifest(path).problems
    assert [problem.row for problem in problems.first] == [2]
    assert reason in str(problems.first[0])


def test_categories_are_their_values(tmp_path: Path, job_over: JobOver) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "num_steps": [2, 3], "tags": ["x", None]})
    path = tmp_path / "categories.parquet"
    frame.astype("category").to_parquet(path)
    plan = make_plan(job_over(path), tmp_path / "plan.parquet")
    assert [(r.prompt, r.num_steps) for r in read_requests(plan.path)] == [("a", 2), ("b", 3)]
    assert pq.read_table(plan.path)["tags"].to_pylist() == ["x", None]


def test_kinds_of_one_carried_column_are_put_together(tmp_path: Path, job_over: JobOver) -> None:
    texts = [pa.string(), pa.large_string(), pa.string_view()]
    shots = [pa.array(["x"], kind) for kind in texts] + [pa.array(["x"]).dictionary_encode()]
    takes = [pa.array([1], kind) for kind in (pa.int8(), pa.int64(), pa.uint16(), pa.int64())]
    marks = [pa.array([1]), pa.array([None], pa.float64()), pa.nulls(1), pa.array([0.5])]
    for number, columns in enumerate(zip(shots, takes, marks, strict=True)):
        values = dict(zip(("shot", "take", "mark"), columns, strict=True))
        put(tmp_path / "kinds" / f"{number}.parquet", f"p{number}", **values)
    job = job_over(tmp_path / "kinds", carry_columns=["shot", "take", "mark"])
    table = pq.read_table(make_plan(job, tmp_path / "plan.parquet").path)
    assert table["carry.shot"].to_pylist() == ["x"] * 4
    assert table["carry.take"].to_pylist() == [1] * 4
    assert table["carry.mark"].to_pylist() == [1.0, None, None, 0.5]


def test_a_carried_number_that_no_common_type_holds_is_refused(
    tmp_path: Path, job_over: JobOver
) -> None:
    put(tmp_path / "mixed" / "a.parquet", "a", mine=pa.array([2**60 + 1]))
    put(tmp_path / "mixed" / "b.parquet", "b", mine=pa.array([0.5]))
    with pytest.raises(
        ManifestError, match=r"a\.parquet, row 0: column 'mine' does not fit double"
    ):
        make_plan(job_over(tmp_path / "mixed", carry_columns=["mine"]), tmp_path / "plan.parquet")
    assert not (tmp_path / "plan.parquet").exists()


def test_all_columns_that_nobody_reads_are_named_at_once(tmp_path: Path, job_over: JobOver) -> None:
    put(tmp_path / "parts" / "a.parquet", "a", seeds=[1], mine=["x"])
    put(tmp_path / "parts" / "b.parquet", "b", Fps=[8], solver=["euler"])
    with pytest.raises(ManifestError) as caught:
        make_plan(job_over(tmp_path / "parts"), tmp_path / "plan.parquet")
    head, seeds, mine, rate, solver, last = str(caught.value).splitlines()
    assert "4 columns are read by nobody" in head
    assert "'seeds'" in seeds and "did you mean 'seed'" in seeds
    assert "'mine'" in mine and "a.parquet" in mine
    assert "'Fps'" in rate and "did you mean 'fps'" in rate and "b.parquet" in rate
    assert "set system.sampler.solver" in solver
    assert "carry_columns=[seeds,mine,Fps,solver]" in last


def test_the_index_of_a_pandas_frame_is_called_by_its_name(
    tmp_path: Path, job_over: JobOver
) -> None:
    frame = pd.DataFrame({"prompt": list("abcd")})
    path = tmp_path / "index.parquet"
    frame[frame["prompt"] != "c"].to_parquet(path)
    advice = "__index_level_0__ is the index of a pandas frame: write it with to_parquet"
    with pytest.raises(ManifestError) as caught:
        make_plan(job_over(path), tmp_path / "plan.parquet")
    assert advice in str(caught.value)
    assert advice in check_manifest(path).note


def test_a_frame_rate_may_be_a_fraction_and_whole_ones_keep_their_keys(
    tmp_path: Path, job_over: JobOver
) -> None:
    rates = [pa.array([8, 24]), pa.array([8.0, 23.976])]
    keys = []
    for number, rate in enumerate(rates):
        path = put(tmp_path / f"{number}.parquet", "a", "b", seed=[1, 1], fps=rate)
        rows = read_requests(make_plan(job_over(path), tmp_path / "plan.parquet").path)
        assert [r.fps for r in rows] == rate.to_pylist()
        keys.append([r.row_key for r in rows])
        # what stood in plans before rates could be fractions
        plain = [replace(r, fps=int(r.fps)) for r in rows if r.fps == int(r.fps)]
        context = read_plan(tmp_path / "plan.parquet").key_context
        assert [row_key(context, r) for r in plain] == keys[-1][: len(plain)]
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]
    job = job_over(path, output__fps=12.5)
    other = put(tmp_path / "c.parquet", "a")
    job = replace(job, manifest=str(other))
    assert read_requests(make_plan(job, tmp_path / "plan.parquet").path)[0].fps == 12.5


def test_carried_text_that_is_not_utf8_is_refused(tmp_path: Path, job_over: JobOver) -> None:
    raw = pa.array([b"caf\xe9"], pa.binary())
    mine = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    path = put(tmp_path / "x.parquet", "a", mine=mine)
    with pytest.raises(ManifestError, match=r"x\.parquet: row 0: column 'mine' does not fit"):
        make_plan(job_over(path, carry_columns=["mine"]), tmp_path / "plan.parquet")


def test_rows_of_a_folder_are_named_by_file_and_their_number_in_it(
    tmp_path: Path, job_over: JobOver, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parts"
    put(folder / "a.parquet", *("abc"), row_id=["r0", "r1", "r2"], seed=[1, 2, 3])
    put(folder / "empty.parquet", row_id=pa.array([], pa.string()))
    put(folder / "shot=2" / "b.parquet", *("de"), row_id=["r3", "r1"], seed=[4, -5])
    expected = [
        "  shot=2/b.parquet, row 1, row_id = 'r1': a.parquet, row 1 has it already",
        "  shot=2/b.parquet, row 1, seed = -5: legal: >= 0 and <= 9223372036854775807",
    ]
    with pytest.raises(ManifestError) as planned:
        make_plan(job_over(folder, carry_columns=["shot"]), tmp_path / "plan.parquet")
    with pytest.raises(ManifestError) as built:
        build_manifest(folder, tmp_path / "flat.parquet", seeds=None)
    for message in (str(planned.value), str(built.value)):
        assert message.splitlines() == [f"{folder}: 2 illegal values", *expected]
    assert main(["manifest", "check", str(folder), "--json"]) == 2
    problems = json.loads(capsys.readouterr().out.splitlines()[-1])["problems"]
    assert [(p["row"], p["file"], p["row_in_file"]) for p in problems] == [
        (4, str(folder / "shot=2" / "b.parquet"), 1)
    ] * 2


def test_the_first_carried_value_that_does_not_fit_is_named(
    tmp_path: Path, job_over: JobOver
) -> None:
    values = [1, 2, 2**60 + 1, 4, 2**60 + 3]
    put(tmp_path / "mixed" / "a.parquet", "a", mine=pa.array([0.5]))
    put(tmp_path / "mixed" / "b.parquet", *("bcdef"), mine=pa.array(values))
    with pytest.raises(
        ManifestError, match=r"b\.parquet, row 2: column 'mine' does not fit double"
    ):
        make_plan(job_over(tmp_path / "mixed", carry_columns=["mine"]), tmp_path / "plan.parquet")
    with pytest.raises(
        ManifestError, match=r"b\.parquet, row 2: column 'mine' does not fit double"
    ):
        build_manifest(tmp_path / "mixed", tmp_path / "flat.parquet")
