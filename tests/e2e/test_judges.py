"""Judges: what they say is in the catalog, and they fail a row or have it drawn again only where
the job says so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from cli_calls import AT_ONCE, NULL, Done, JobFolder, rows_of

from batchgen.ledger.journal import whole_lines
from batchgen.media import formats
from batchgen.media.quality import exact_psnr, ssim
from batchgen.tiny.score import score
from batchgen.worker.judging import seed_of_retry

JUDGES = '''\
import numpy as np
from batchgen.judges import Skipped


def sharp(frames, request, *, scale=1.0):
    """A number that depends on the seed."""
    assert frames.dtype == np.uint8 and frames.ndim == 4
    return scale * float(frames.mean())


def two(frames, request):
    return {"low": frames.min(), "high": np.float32(255)}


def broken(frames, request):
    raise ZeroDivisionError(f"of {request.row_id}")


def choosy(frames, request):
    if request.row_id == "row-001":
        raise Skipped("not my kind")
    return None if request.row_id == "row-002" else 0.5


def quitter(frames, request):
    raise SystemExit(0)


def strange(frames, request):
    raise OSError("no file \\udcff")  # as of a name that is no UTF-8


def vandal(frames, request):
    frames[:] = 0
    return 1


def nan(frames, request):
    return float("nan")


def even(frames, request):
    return float(request.seed % 2 == 0)


def third_time(frames, request):
    return float(request.seed not in (1, FIRST_RETRY))
'''


@pytest.fixture
def judged(new_job_folder: Callable[..., JobFolder]) -> JobFolder:
    folder: JobFolder = new_job_folder(3)
    text = JUDGES.replace("FIRST_RETRY", str(seed_of_retry(1, 1)))
    (folder.folder / f"{module(folder)}.py").write_text(text)
    return folder


def module(folder: JobFolder) -> str:
    """Another name in each test: Python imports a module once."""
    return "judges_" + "".join(c for c in folder.folder.name if c.isalnum())


def run(folder: JobFolder, *judges: str, also: tuple[str, ...] = ()) -> Done:
    """`judges` as they are typed, `{m}` for the module."""
    typed = ",".join(judge.replace("{m}", module(folder)) for judge in judges)
    return folder.run_here(NULL, "output.format=npy", f"output.judges=[{typed}]", *also)


def frames_of(folder: Path, row: pd.Series) -> np.ndarray:
    file = folder / row.media_path
    return formats.by_extension(file.suffix).read(file)


def test_what_judges_say_are_columns(judged: JobFolder) -> None:
    done = run(
        judged,
        '{call: "{m}:sharp", params: {scale: 2}}',
        '{call: "{m}:two", columns: [low, high]}',
        '{call: "{m}:sharp", columns: [psnr]}',  # a column of the catalog has this name
    )
    assert done.code == 0, done.err
    rows = rows_of(done.run)
    for row in rows.itertuples():
        frames = frames_of(done.run.root, row)
        assert row.sharp == 2 * frames.mean()
        assert (row.low, row.high) == (frames.min(), 255.0)
    assert rows["judge.psnr"].tolist() == (rows.sharp / 2).tolist()
    assert rows.psnr.isna().all()
    assert rows.judge_notes.eq("").all()
    assert rows.judge_s.gt(0).all()
    assert "judge" in pd.read_csv(done.run.time_stats)["Timer Name"].tolist()


def test_what_a_judge_raises_is_recorded_and_costs_nothing(judged: JobFolder) -> None:
    done = run(
        judged,
        '{call: "{m}:broken", policy: fail, at_least: {broken: 1}}',
        '{call: "{m}:choosy"}',
        '{call: "{m}:vandal"}',
        '{call: "{m}:quitter"}',
        '{call: "{m}:nan"}',
    )
    assert done.code == 0, done.err
    rows = rows_of(done.run)
    assert rows.status.eq("ok").all()
    assert rows.broken.isna().all()
    assert rows.choosy.fillna(-1).tolist() == [0.5, -1, -1]
    notes = [text.replace(module(judged), "m").splitlines() for text in rows.judge_notes]
    assert notes[1][:2] == [
        "m:broken: failed: ZeroDivisionError: of row-001",
        "m:choosy: skipped: not my kind",
    ]
    assert notes[2][1] == "m:choosy: skipped: no number"
    assert [lines[-3].split(":")[2] for lines in notes] == [" failed"] * 3  # frames are read-only
    assert notes[0][-2] == "m:quitter: failed: SystemExit: 0"
    assert notes[0][-1] == "m:nan: failed: ValueError: it gives no number for nan: nan"


def test_a_rejected_row_fails_with_its_numbers_and_without_media(judged: JobFolder) -> None:
    done = run(judged, '{call: "{m}:even", policy: fail, at_least: {even: 1}}')
    assert done.code == 1
    rows = rows_of(done.run)
    assert rows.status.tolist() == ["ok", "failed", "ok"]
    assert rows.even.tolist() == [1.0, 0.0, 1.0]
    assert rows.error_type[1] == "Rejected"
    assert rows.error[1] == rows.judge_notes[1]
    assert rows.error[1].endswith(":even: even 0 < 1")
    assert rows.tries[1] == 1
    assert [file.name[:7] for file in sorted(done.run.media.iterdir())] == ["row-000", "row-002"]


def test_a_bound_without_a_policy_is_only_noted(judged: JobFolder) -> None:
    done = run(judged, '{call: "{m}:even", at_most: {even: 0.5}}')
    assert done.code == 0, done.err
    noted = rows_of(done.run).judge_notes.str.endswith(":even: even 1 > 0.5")
    assert noted.tolist() == [True, False, True]


def test_a_row_is_drawn_again_with_seeds_that_follow_from_its_own(judged: JobFolder) -> None:
    again = '{call: "{m}:third_time", policy: retry, retries: 2, at_least: {third_time: 1}}'
    done = run(judged, again)
    assert done.code == 0, done.err
    rows = rows_of(done.run)
    used = seed_of_retry(1, 2)
    assert rows.seed.tolist() == [0, used, 2]
    assert rows.tries.tolist() == [1, 3, 1]
    assert rows.third_time.eq(1).all()
    # the pixels are those of a row that asks for that seed
    plain = judged.run_here(NULL, "output.format=npy", f"row_defaults.seed={used}")
    assert set(rows_of(plain.run).seed) == {0, 1, 2}  # its own column wins: so by a manifest
    frame = pd.read_parquet(judged.folder / "manifest.parquet").assign(seed=used)
    frame.to_parquet(judged.folder / "again.parquet")
    direct = judged.run_here(NULL, "output.format=npy", "manifest=again.parquet")
    assert rows_of(direct.run).frames_sha256[1] == rows.frames_sha256[1]
    # every seed that was tried is in the journal
    lines = [json.loads(x) for f in done.run.journals.rglob("*.jsonl") for x in whole_lines(f)]
    assert [(x["row_index"], x["error"]) for x in lines if x["kind"] == "tried"] == [
        (1, "Rejected"),
        (1, "Rejected"),
    ]


def test_seeds_run_out(judged: JobFolder) -> None:
    done = run(
        judged, '{call: "{m}:third_time", policy: retry, retries: 1, at_least: {third_time: 1}}'
    )
    rows = rows_of(done.run)
    assert rows.status.tolist() == ["ok", "failed", "ok"]
    assert (rows.error_type[1], rows.tries[1]) == ("Rejected", 2)
    assert rows.seed[1] == seed_of_retry(1, 1)


def test_only_judges_that_may_change_the_seed_are_in_the_key(judged: JobFolder) -> None:
    def keys(*judges: str) -> list[str]:
        found: list[str] = rows_of(run(judged, *judges).run).row_key.tolist()
        return found

    plain = rows_of(judged.run_here(NULL, "output.format=npy").run).row_key.tolist()
    assert keys('{call: "{m}:even", policy: fail, at_least: {even: 0}}') == plain
    retry = '{call: "{m}:even", policy: retry, retries: 2, at_least: {even: 0}}'
    assert not set(keys(retry)) & set(plain)
    assert not set(keys(retry)) & set(keys(retry.replace("retries: 2", "retries: 3")))


def test_a_judge_may_join_later(judged: JobFolder) -> None:
    """Finished rows stay; their new column is empty."""
    done = run(judged, '{call: "{m}:even", policy: fail, at_least: {even: 1}}')
    more = f'output.judges=[{{call: "{module(judged)}:sharp"}}]'
    resumed = judged.here("resume", str(done.run.root), more, "--json")
    assert resumed.code == 0, resumed.err
    rows = rows_of(done.run)
    assert rows.status.eq("ok").all()
    assert rows.sharp.notna().tolist() == [False, True, False]
    assert rows.even.tolist()[::2] == [1.0, 1.0]
    changed = f'output.judges=[{{call: "{module(judged)}:even", policy: retry, retries: 1, '
    refused = judged.here("resume", str(done.run.root), changed + "at_least: {even: 1}}]")
    assert refused.code == 2
    assert "3 finished rows would change because of output.judges" in refused.err


def test_a_run_of_an_older_version_goes_on_without_its_manifest(judged: JobFolder) -> None:
    """That its configuration lacks newer keys is no change of settings."""
    done = judged.run_here(NULL, "output.format=npy")
    stored = json.loads(done.run.run_json.read_text())
    del stored["config"]["output"]["judges"]
    done.run.run_json.write_text(json.dumps(stored))
    (judged.folder / "manifest.parquet").unlink()
    resumed = judged.here("resume", str(done.run.root), "slurm.row_retries=2", "--json")
    assert resumed.code == 0, resumed.err


def test_the_judge_of_the_embedded_model_fills_the_score(judged: JobFolder) -> None:
    demo = Path(__file__).parents[2] / "jobs" / "demo.yaml"
    listed = yaml.safe_load(demo.read_text())["output"]["judges"]
    assert listed == [{"call": "batchgen.tiny.score:judge", "columns": ["score"]}]
    done = judged.run_here('output.judges=[{call: "batchgen.tiny.score:judge", columns: [score]}]')
    assert done.code == 0, done.err
    rows = rows_of(done.run)
    for row in rows.itertuples():
        # the file has losses, which do not make a circle of a square
        assert row.score == score(frames_of(done.run.root, row), row.prompt).fraction
    assert rows_of(judged.run_here().run).score.isna().all()


def test_text_that_is_no_utf8_comes_into_log_and_catalog(judged: JobFolder) -> None:
    """In a process of its own: what is logged in this one goes into pytest's reports, whose
    processes take no such text from each other."""
    done = judged.run(NULL, f'output.judges=[{{call: "{module(judged)}:strange"}}]', env=AT_ONCE)
    assert done.code == 0, done.err
    assert "Logging error" not in done.err
    (log,) = done.run.logs.glob("*/*")
    assert log.read_text().count("OSError: no file \\udcff") == 3
    assert rows_of(done.run).judge_notes.str.endswith("no file \\udcff").all()


def test_a_judge_whose_module_ends_the_process_is_refused(judged: JobFolder) -> None:
    """As a script does whose main part has no guard."""
    script = f"{module(judged)}_script"
    (judged.folder / f"{script}.py").write_text("import sys\n\nsys.exit(0)\n")
    done = run(judged, f'{{call: "{script}:main"}}')
    assert done.code == 2
    assert f"'{script}:main' cannot be imported: SystemExit: 0" in done.err
    assert not judged.root.exists()


def test_reference_judges_compare_with_the_row_of_the_same_id(judged: JobFolder) -> None:
    """Equal frames are found by their digest, also where the reference's file has losses."""
    first = judged.run_here(NULL, "output.format=mp4")
    assert first.code == 0, first.err
    frame = pd.read_parquet(judged.folder / "manifest.parquet")
    frame.loc[1, "seed"] = 77
    frame.loc[2, "row_id"] = "another"
    frame.to_parquet(judged.folder / "other.parquet")
    reference = f'params: {{run: "outputs/{first.run.root.name}"}}'
    judges = [f'{{call: "batchgen.judges:{n}", {reference}}}' for n in JUDGES_OF_REFERENCE]
    done = run(judged, *judges, also=("manifest=other.parquet",))
    assert done.code == 0, done.err
    rows, before = rows_of(done.run), rows_of(first.run)
    assert rows.row_id.tolist() == ["another", "row-000", "row-001"]
    assert (rows.reference_psnr[1], rows.reference_ssim[1]) == (math.inf, 1.0)
    ours, theirs = frames_of(done.run.root, rows.loc[2]), frames_of(first.run.root, before.loc[1])
    assert rows.reference_psnr[2] == exact_psnr(ours, theirs)
    assert rows.reference_ssim[2] == ssim(ours, theirs)
    assert rows.loc[0, [*JUDGES_OF_REFERENCE]].isna().all()
    note = f"batchgen.judges:reference_psnr: skipped: {first.run.root} has no finished row"
    assert rows.judge_notes[0].startswith(note)


JUDGES_OF_REFERENCE = ("reference_psnr", "reference_ssim")


@pytest.mark.parametrize(
    ("judge", "answer"),
    [
        ("{call: sharp}", "output.judges[0].call: 'sharp' is not of the form module:function"),
        (
            '{call: "no_such_module_x:f"}',
            "output.judges[0].call: 'no_such_module_x:f' cannot be imported: ModuleNotFoundError",
        ),
        ('{call: "{m}:nothing"}', "has no attribute 'nothing'"),
        ('{call: "{m}:sharp", params: {scle: 2}}', "unexpected keyword argument 'scle'"),
        ('{call: "{m}:sharp", at_least: {x: 2}}', "'x' is none of its columns: sharp"),
        ('{call: "{m}:sharp", columns: ["a b"]}', "columns: 'a b' cannot be a column"),
        ('{call: "{m}:sharp", policy: fail}', "'fail' needs a bound, at_least or at_most"),
        (
            '{call: "{m}:sharp", policy: retry, at_least: {sharp: 1}}',
            "output.judges[0].retries: 0 with policy 'retry'; legal: >= 1",
        ),
        ('{call: "{m}:sharp", retries: 2}', "retries: 2 with policy 'record'; legal: 0"),
        ('{call: "{m}:sharp", policy: skip}', "'skip' is not one of 'record', 'fail', 'retry'"),
        ('{call: "{m}:sharp"},{call: "{m}:sharp"}', "two columns are called 'sharp'"),
        (
            '{cal: "{m}:sharp"}',
            "output.judges[0].cal: unknown key (did you mean 'output.judges[0].call'?)",
        ),
        (
            '{call: "batchgen.judges:reference_psnr", params: {run: outputs/none}}',
            "/outputs/none is not a folder; it takes the path of a run's",
        ),
        (
            '{call: "batchgen.judges:reference_psnr", params: {run: .}}',
            "output.judges[0].params: batchgen.judges:reference_psnr: run: ",
        ),
        (
            '{call: "batchgen.judges:reference_psnr", params: {run: .}}',
            "has no catalog; make it: batchgen collect .",
        ),
    ],
)
def test_what_cannot_judge_is_said_before_anything_is_made(
    judged: JobFolder, judge: str, answer: str
) -> None:
    done = run(judged, judge)
    assert done.code == 2
    assert answer in done.err
    assert not judged.root.exists()
