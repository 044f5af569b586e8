"""prompt_2, prompt_3 and the negative ones: columns of the families whose further encoders read
them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaged_jobs import job_of

from batchgen.errors import ConfigError, ManifestError
from batchgen.planning.plan import make_plan, read_keys, read_requests
from batchgen.request import Request

SERVED = {
    "flux.1-dev": ("prompt_2", "negative_prompt_2"),
    "flux.1-schnell": ("prompt_2", "negative_prompt_2"),
    "sd3.5-large": ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"),
}
COLUMNS = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
# HunyuanVideo's pipeline takes a prompt_2 and reads it nowhere
REFUSED = ("tiny-wan", "hunyuan-dit-1.2", "hunyuan-video", "qwen-image", "z-image")


def planned(
    folder: Path, model: str, *overrides: str, **columns: list[str | None]
) -> list[Request]:
    table = pa.table({"prompt": ["p", "p", "p", "p"], "seed": [1] * 4, **columns})
    pq.write_table(table, folder / "rows.parquet")
    job = job_of(f"model={model}", *overrides, "model.weights=random")
    job = replace(job, manifest=str(folder / "rows.parquet"))
    made = make_plan(job, folder / "plan.parquet")
    keys = [key.hex() if isinstance(key, bytes) else key for key in read_keys(made.path).tolist()]
    rows = read_requests(made.path)
    assert [row.row_key for row in rows] == keys
    return rows


@pytest.mark.parametrize(("model", "column"), [(m, c) for m, cs in SERVED.items() for c in cs])
def test_null_and_empty_are_different_texts(model: str, column: str, tmp_path: Path) -> None:
    plain = planned(tmp_path, model)
    rows = planned(tmp_path, model, **{column: [None, "", "q", "p"]})
    assert [getattr(row, column) for row in rows] == [None, "", "q", "p"]
    assert len({row.row_key for row in rows}) == 4
    assert rows[0].row_key == plain[0].row_key, "keys of rows without it are unchanged"
    by_job = planned(tmp_path, model, f"row_defaults.{column}=q", **{column: [None, "", "q", "p"]})
    assert [getattr(row, column) for row in by_job] == ["q", "", "q", "p"]
    assert by_job[0].row_key == rows[2].row_key


@pytest.mark.parametrize(
    ("model", "column"),
    [(model, COLUMNS[number % len(COLUMNS)]) for number, model in enumerate(REFUSED)]
    + [("flux.1-dev", "prompt_3"), ("flux.1-dev", "negative_prompt_3")],
)
def test_a_family_that_does_not_read_it_refuses_it_by_name(
    model: str, column: str, tmp_path: Path
) -> None:
    planned(tmp_path, model, **{column: pa.nulls(4, pa.string())})
    with pytest.raises(ManifestError, match=rf"row 2, {column} = 'q': is not served"):
        planned(tmp_path, model, **{column: [None, None, "q", None]})
    with pytest.raises(ConfigError, match=rf"row_defaults\.{column}: q is not served"):
        planned(tmp_path, model, f"row_defaults.{column}=q")


def test_no_text_holds_a_nul_character(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"row 1, prompt_2 = .* holds a NUL"):
        planned(tmp_path, "flux.1-dev", prompt_2=[None, "a\0b", None, None])
