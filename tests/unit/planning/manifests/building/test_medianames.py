"""Media files named by a template."""

from __future__ import annotations

import pandas as pd
import pytest
from cli_calls import JobFolder, make_job_folder, rows_of

from batchgen.errors import ConfigError
from batchgen.planning.manifests.building.template import LONGEST, LONGEST_SLUG, Template, slug

NULL = ("model=null-engine", "row_defaults.num_steps=1", "row_defaults.num_frames=1")
ROWS = [
    {"row_id": "a", "prompt": "A Fox, in the snow!", "seed": 7, "tags": "night/1"},
    {"row_id": "b", "prompt": "../../etc/passwd", "seed": 8, "tags": None},
    {"row_id": "c", "prompt": "A Fox, in the snow!", "seed": 7, "tags": "same as a"},
]


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{row_id}", ["a", "b", "a"]),
        ("{prompt}_{seed}", ["a-fox-in-the-snow_7", "etc-passwd_8", "a-fox-in-the-snow_7"]),
        ("x{index}-{tag}", ["x00000000-night-1", "x00000001-", "x00000000-night-1"]),
    ],
)
def test_files_have_the_names_of_the_template(tmp_path, template: str, names: list[str]) -> None:
    work: JobFolder = make_job_folder(tmp_path, ROWS)
    done = work.run_here(*NULL, f"output.name='{template}'")
    assert done.code == 0, done.err
    frame: pd.DataFrame = rows_of(done.run)
    assert list(frame.media_path) == [f"media/{name}-s1t0r0p0.png" for name in names]
    assert all((done.run.root / path).exists() for path in frame.media_path)
    assert work.here("verify", str(done.run.root)).code == 0


def test_two_rows_of_one_name_are_refused_before_anything_is_made(tmp_path) -> None:
    work: JobFolder = make_job_folder(tmp_path, [*ROWS[:2], ROWS[0] | {"row_id": "d", "seed": 9}])
    done = work.here("run", str(work.job), *NULL, "output.name='{prompt}'")
    assert done.code == 2
    assert "row 2, output.name = 'a-fox-in-the-snow': row 0 has it already" in done.err
    assert "add {row_id} or {index}" in done.err
    assert not work.root.exists() or not list(work.root.iterdir())


def test_a_name_of_nothing_is_refused(tmp_path) -> None:
    work: JobFolder = make_job_folder(tmp_path, [{"prompt": "雪"}])
    done = work.here("run", str(work.job), *NULL, "output.name='{prompt}'")
    assert done.code == 2 and "is no file name; add {row_id}" in done.err


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{promt}", r"\{promt\} is not one of .*did you mean 'prompt'"),
        ("media/{row_id}", "'/' cannot be in a file name"),
        ("{row_id", "'{' cannot"),
        ("{seed} {row_id}", "' ' cannot"),
        ("clip", "'clip' is the same for every row"),
        ("{row_id!r}", "is not one of"),
    ],
)
def test_templates_that_name_nothing(template: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Template.parse(template)


def test_long_prompts_are_cut_at_a_word() -> None:
    cut = slug("Some words " * 30)
    assert len(cut) <= LONGEST_SLUG and cut.split("-")[-1] in ("some", "words")
    assert slug("x" * 300) == "x" * LONGEST_SLUG
    filled = Template.parse("{row_id}{prompt}").fill({"row_id": "r" * 128, "prompt": "p"})
    assert len(filled) == LONGEST


def test_a_resume_under_another_name_keeps_what_is_there(tmp_path) -> None:
    work: JobFolder = make_job_folder(tmp_path, ROWS[:2])
    done = work.run_here(*NULL)
    before = list(rows_of(done.run).media_path)
    assert work.here("resume", str(done.run.root), "output.name='{seed}'").code == 0
    assert list(rows_of(done.run).media_path) == before
    again = work.here("retry", str(done.run.root), "--rows", "b")
    assert again.code == 0, again.err
    assert list(rows_of(done.run).media_path) == [before[0], "media/8-s3t0r0p0.png"]
