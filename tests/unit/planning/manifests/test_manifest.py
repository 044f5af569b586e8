"""Manifests that cannot be used are refused before anything is made, with every bad row named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, ManifestError
from batchgen.planning.manifests.check import check_manifest
from batchgen.planning.plan import make_plan, read_requests

Write = Callable[..., Path]
JobOver = Callable[..., JobConfig]


@pytest.fixture
def refused(job_over: JobOver, tmp_path: Path) -> Callable[..., str]:
    """The message with which planning a manifest is refused; checks that nothing was left."""

    def plan(manifest: Path, **changes: object) -> str:
        out = tmp_path / "out" / "plan.parquet"
        out.parent.mkdir(exist_ok=True)
        with pytest.raises((ManifestError, ConfigError)) as caught:
            make_plan(job_over(manifest, **changes), out)
        assert list(out.parent.iterdir()) == []
        return str(caught.value)

    return plan


# ------------------------------------------------------------------------------------ whole files
def test_files_that_are_no_manifest_are_refused(
    write_rows: Write, refused: Callable[..., str], tmp_path: Path
) -> None:
    good = write_rows({"prompt": ["a"] * 5000}).read_bytes()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(good[:-20])
    assert "cut off" in refused(cut)
    text = tmp_path / "text.parquet"
    text.write_text("a red circle\n")
    assert "not a Parquet file" in refused(text)
    empty = tmp_path / "empty.parquet"
    empty.touch()
    assert "the file is empty" in refused(empty)
    assert "no such manifest (did you mean" in refused(tmp_path / "row.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "without any .parquet file" in refused(folder)
    damaged = bytearray(good)
    damaged[4:200] = bytes(196)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    assert "damaged" in refused(tmp_path / "damaged.parquet")


def test_a_manifest_without_rows_or_without_prompts_is_refused(
    write_rows: Write, refused: Callable[..., str]
) -> None:
    assert "has no rows" in refused(write_rows({"prompt": pa.array([], pa.string())}))
    message = refused(write_rows({"promt": ["a"], "seed": [1]}))
    assert "no column 'prompt' (did you mean 'promt'?); columns: promt, seed" in message


def test_a_column_that_nobody_reads_is_refused_with_where_it_belongs(
    write_rows: Write, refused: Callable[..., str]
) -> None:
    assert "did you mean 'seed'" in refused(write_rows({"prompt": ["a"], "seeds": [1]}))
    message = refused(write_rows({"prompt": ["a"], "solver": ["euler"]}))
    assert "set system.sampler.solver in the job" in message
    assert "list it in carry_columns" in refused(write_rows({"prompt": ["a"], "mine": [1]}))
    path = write_rows({"prompt": ["a"]})
    assert "carry_columns names 'mine'" in refused(path, carry_columns=["mine"])
    assert "request column" in refused(path, carry_columns=["seed"])


@pytest.mark.parametrize(
    ("column", "values", "legal"),
    [
        ("seed", pa.array(["1", None]), "floats that are whole numbers"),
        ("num_steps", pa.array(["20", "20"]), "int8 .. int64"),
        ("width", pa.array([True, False]), "int8 .. int64"),
        ("guidance_scale", pa.array(["3", "4"]), "float32, float64, or any integer"),
        ("prompt", pa.array([1, 2]), "string, large_string"),
        ("prompt", pa.array([b"a", b"b"]), "string, large_string"),
        ("tags", pa.array([["a"], ["b"]]), "string, large_string"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused_with_the_legal_types(
    write_rows: Write, refused: Callable[..., str], column: str, values: pa.Array, legal: str
) -> None:
    columns = {"prompt": ["a", "b"], column: values}
    message = refused(write_rows(columns))
    assert f"column '{column}' has type" in message
    assert legal in message


@pytest.mark.parametrize(
    "prompts",
    [
        pa.array(["a", "b"], pa.large_string()),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array(["a", "b"], pa.string()),
    ],
)
@pytest.mark.parametrize("integer", [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64()])
def test_all_legal_types_give_the_same_requests(
    write_rows: Write, job_over: JobOver, tmp_path: Path, prompts: pa.Array, integer: pa.DataType
) -> None:
    columns = {
        "prompt": prompts,
        "seed": pa.array([7, 8], integer),
        "num_steps": pa.array([9, 9], integer),
        "guidance_scale": pa.array([2, 2], pa.int32()),
        "tags": pa.nulls(2),
    }
    path = write_rows(columns)
    make_plan(job_over(path), tmp_path / "plan.parquet")
    rows = read_requests(tmp_path / "plan.parquet")
    assert [(r.prompt, r.seed, r.num_steps, r.guidance_scale) for r in rows] == [
        ("a", 7, 9, 2.0),
        ("b", 8, 9, 2.0),
    ]


# ----------------------------------------------------------------------------------- single rows
@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("prompt", None, "a prompt is required"),
        ("prompt", "", "more than white space"),
        ("prompt", " \t\u3000\n", "more than white space"),
        ("prompt", "a\0b", "NUL character"),
        ("negative_prompt", "a\0b", "NUL character"),
        ("row_id", "../escape", "A-Z a-z 0-9 . _ -"),
        ("row_id", "a\0b", "A-Z a-z 0-9 . _ -"),
        ("row_id", "line\n", "A-Z a-z 0-9 . _ -"),
        ("row_id", "x" * 129, "(129 characters): legal: 1 to 128"),
        ("row_id", "", "1 to 128"),
        ("num_steps", 0, "legal: >= 1 and <= 1000"),
        ("num_steps", -5, "legal: >= 1 and <= 1000"),
        ("num_steps", 1001, "legal: >= 1 and <= 1000"),
        ("seed", -1, "legal: >= 0 and <= 9223372036854775807"),
        ("fps", 0, "legal: >= 1"),
        ("width", 100, "multiples of 16"),
        ("height", 0, "legal: >= 1"),
        ("height", 1040, "multiples of 16 up to 1024"),
        ("num_frames", 10, "4n+1"),
        ("num_frames", 0, "legal: >= 1"),
        ("guidance_scale", math.nan, "legal: >= 0"),
        ("guidance_scale", math.inf, "legal: >= 0"),
        ("guidance_scale", -0.5, "legal: >= 0"),
        ("resolution", "8k", "legal: 64p 1:1"),
        ("aspect_ratio", "21:9", "legal: 64p 1:1"),
        ("cache_strategy", "teecache", "is not one of none, "),
        ("cache_ratio", 1.5, "legal: >= 0 and <= 1"),
        ("cache_warmup", 5, "there is no cache without a cache_strategy"),
        ("image", "a.png", "not served by tiny-wan yet"),
        ("lora", "style", "style: there is no such file"),
        ("guidance_scale_2", 3.0, "not served by tiny-wan yet"),
    ],
)
def test_an_illegal_value_is_refused_with_row_column_value_and_rule(
    write_rows: Write, refused: Callable[..., str], column: str, value: object, reason: str
) -> None:
    """The bad row is the third; the null rows around it are legal."""
    good = "a" if column == "prompt" else None
    columns: dict[str, object] = {"prompt": ["p"] * 4, column: [good, good, value, good]}
    message = refused(write_rows(columns))
    assert "1 illegal value" in message
    assert f"row 2, {column} = " in message
    assert reason in message


def test_a_seed_over_63_bits_is_refused(write_rows: Write, refused: Callable[..., str]) -> None:
    seeds = pa.array([1, 2**63, None, 2**64 - 1], pa.uint64())
    message = refused(write_rows({"prompt": ["a"] * 4, "seed": seeds}))
    assert "row 1, seed = 9223372036854775808" in message
    assert "row 3, seed = 18446744073709551615" in message
    assert "2 illegal values" in message


def test_every_bad_row_is_counted_and_the_first_twenty_are_shown(
    write_rows: Write, refused: Callable[..., str]
) -> None:
    steps = [0 if i % 1000 == 7 else 20 for i in range(70_000)]
    frames = [9] * 70_000
    frames[12] = 8
    message = refused(
        write_rows({"prompt": ["a"] * 70_000, "num_steps": steps, "num_frames": frames})
    )
    assert "71 illegal values (the first 20 are shown)" in message
    lines = message.splitlines()[1:]
    assert len(lines) == 20
    assert lines[0].startswith("  row 7, num_steps = 0")
    assert lines[1].startswith("  row 12, num_frames = 8")
    assert lines[-1].startswith("  row 18007, num_steps = 0")


def test_duplicate_row_ids_are_listed_with_their_first_use(
    write_rows: Write, refused: Callable[..., str]
) -> None:
    ids = [f"r{i}" for i in range(40_000)]
    ids[39_999] = "r5"
    ids[10] = None  # its id is the row number
    ids[11] = "00000010"
    message = refused(write_rows({"prompt": ["a"] * 40_000, "row_id": ids}))
    assert "2 illegal values" in message
    assert "row 11, row_id = '00000010': row 10 has it already" in message
    assert "row 39999, row_id = 'r5': row 5 has it already" in message


def test_a_column_that_the_job_locks_must_stay_null(
    write_rows: Write, refused: Callable[..., str], job_over: JobOver, tmp_path: Path
) -> None:
    path = write_rows({"prompt": ["a", "b"], "num_steps": [None, 4]})
    assert "row 1, num_steps = 4: the job locks" in refused(path, locked=["num_steps"])
    make_plan(job_over(path, locked=["seed"]), tmp_path / "plan.parquet")
    assert "locked: 'num_step' is not one of" in refused(path, locked=["num_step"])


def test_text_that_is_not_utf8_is_refused_by_row(
    write_rows: Write, refused: Callable[..., str]
) -> None:
    raw = pa.array([b"fine", b"caf\xe9", None], pa.binary())
    prompts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    message = refused(write_rows({"prompt": prompts}))
    assert "row 1, prompt" in message
    assert "is not UTF-8" in message


def test_still_formats_hold_one_frame(write_rows: Write, refused: Callable[..., str]) -> None:
    path = write_rows({"prompt": ["a", "b"], "num_frames": [1, 9]})
    assert "row 1, num_frames = 9: output.format png" in refused(path, output__format="png")
    assert "output.format jpeg" in refused(path, output__format="jpeg")


def test_size_and_named_size_exclude_each_other(
    write_rows: Write, refused: Callable[..., str]
) -> None:
    path = write_rows({"prompt": ["a", "b"], "resolution": ["64p", "64p"], "width": [None, 64]})
    assert "row 1, resolution = '64p': set resolution and aspect_ratio, or" in refused(path)


def test_an_illegal_job_default_is_refused_once_not_per_row(
    write_rows: Write, refused: Callable[..., str]
) -> None:
    path = write_rows({"prompt": ["a"] * 30})
    assert refused(path, row_defaults__width=100).startswith("row_defaults.width: 100")
    assert refused(path, row_defaults__num_frames=8).startswith("row_defaults.num_frames: 8")
    assert "has no size '8k 1:1'" in refused(path, row_defaults__resolution="8k")
    assert "set one" in refused(path, row_defaults__fps=8, output__fps=9)


def test_prompts_of_any_script_and_length_are_kept_to_the_letter(
    write_rows: Write, job_over: JobOver, tmp_path: Path
) -> None:
    prompts = [
        "🦊 in 雪",
        "دائرة حمراء",
        "e\u0301 is not \u00e9",
        "x" * 100_000,
        "  padded\n",
        "\ufeff.",
    ]
    make_plan(job_over(write_rows({"prompt": prompts})), tmp_path / "plan.parquet")
    assert [r.prompt for r in read_requests(tmp_path / "plan.parquet")] == prompts


def test_a_folder_of_parts_is_one_manifest_in_the_order_of_names(
    write_rows: Write, job_over: JobOver, refused: Callable[..., str], tmp_path: Path
) -> None:
    """Parts may lack nullable columns and differ in integer width; hidden files are no parts."""
    write_rows({"prompt": ["c"], "seed": pa.array([3], pa.int32())}, "parts/b/part-2.parquet")
    write_rows({"prompt": ["a", "b"]}, "parts/b/part-1.parquet")
    write_rows({"prompt": ["d"], "mine": ["x"]}, "parts/c.parquet")
    (tmp_path / "parts" / "_SUCCESS").touch()
    (tmp_path / "parts" / ".x.parquet").write_text("not Parquet")
    job = job_over(tmp_path / "parts", carry_columns=["mine"])
    plan = make_plan(job, tmp_path / "plan.parquet")
    assert [r.prompt for r in read_requests(plan.path)] == ["a", "b", "c", "d"]
    assert read_requests(plan.path, [2])[0].seed == 3
    carried = pq.read_table(plan.path, columns=["carry.mine"]).column(0).to_pylist()
    assert carried == [None, None, None, "x"]
    write_rows({"prompt": ["e"], "mine": [1]}, "parts/d.parquet")
    message = refused(tmp_path / "parts", carry_columns=["mine"])
    assert "d.parquet: carried column 'mine' has type int64, but string elsewhere" in message


def test_check_lists_more_than_planning_does_and_judges_sizes_only_with_a_job(
    write_rows: Write, job_over: JobOver
) -> None:
    path = write_rows(
        {"prompt": ["", *["a"] * 40], "num_steps": [0] * 41, "width": [100] * 41, "mine": [1] * 41}
    )
    alone = check_manifest(path)
    assert alone.problems.count == 42
    assert len(alone.problems.first) == 42
    with pytest.raises(ManifestError, match="'mine' is read by nobody"):
        check_manifest(path, job_over(path))
    full = check_manifest(path, job_over(path, carry_columns=["mine"]), limit=5)
    assert full.problems.count == 83
    assert len(full.problems.first) == 5
    assert np.all([problem.row <= 2 for problem in full.problems.first])


def test_carried_columns_of_one_name_in_the_catalog_are_refused(
    tmp_path: Path, job_over: JobOver
) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "status": ["x"], "carry.status": ["y"]}), path)
    with pytest.raises(ConfigError, match=r"'status' and 'carry\.status' may be one column"):
        check_manifest(path, job_over(path, carry_columns=["status", "carry.status"]))
