"""`batchgen inspect`: a file of a run, and the row that makes it again."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import JobFolder, rows_of

from batchgen.cli.main import main

NULL = ("model=null-engine", "row_defaults.num_steps=2")


def test_a_row_is_made_again_from_its_file(
    new_job_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work: JobFolder = new_job_folder(2)
    first = work.run_here(*NULL, "output.quality=9", "row_defaults.fps=12")
    assert first.code == 0, first.err
    (path, digest), *_ = rows_of(first.run)[["media_path", "media_sha256"]].itertuples(index=False)
    manifest = tmp_path / "again.parquet"
    shown = work.here("inspect", str(first.run.root / path), "--manifest", str(manifest), "--json")
    assert shown.code == 0, shown.err
    assert "draw it again by: batchgen run JOB manifest=" in shown.out
    again = work.run_here(*NULL, f"manifest={manifest}", *shown.json["overrides"])
    assert again.code == 0, again.err
    made = rows_of(again.run).iloc[0]
    assert (made.media_sha256, made.row_key) == (digest, shown.json["row_key"])
    assert made.row_id != rows_of(first.run).row_id[0]


def test_files_without_a_note_are_told(
    new_job_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = new_job_folder(1).run_here(*NULL, "output.embed_metadata=false")
    (media,) = rows_of(plain.run).media_path
    other = tmp_path / "other.txt"
    other.write_text("x")
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG")
    for file, words in (
        (plain.run.root / media, "carries no metadata"), (other, "'.txt'"), (torn, "torn.png"),
        (tmp_path / "none.png", "is not there"),
    ):  # fmt: skip
        assert main(["inspect", str(file)]) == 2
        assert words in capsys.readouterr().err
