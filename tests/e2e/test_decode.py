"""Draw now, decode later: latents, and the run that makes pictures of them."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_calls import NULL, JobFolder, make_job_folder, recorded, rows_of
from safetensors.torch import load_file
from toy_flux import flux_spec, save_flux

from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths
from batchgen.runfile import read_run

LATENTS = "output.format=latents"
ROWS: list[dict[str, Any]] = [
    {"row_id": f"row-{i}", "prompt": f"a {colour} circle", "seed": i, "note": f"n{i}"}
    for i, colour in enumerate(("red", "blue", "green"))
]
ROWS.append({**ROWS[0], "row_id": "again"})  # shares the media of row-0
JOB = (
    "carry_columns=[note]",
    "output.judges=[{call: 'batchgen.tiny.score:judge', columns: [score]}]",
)


@dataclass(frozen=True)
class Drawn:
    """One job drawn to pictures, and to latents."""

    work: JobFolder
    direct: RunPaths
    latents: RunPaths

    def decode(self, *overrides: str) -> RunPaths:
        done = self.work.here("decode", str(self.latents.root), *overrides, "--json")
        assert done.code == 0, done.err
        return done.run

    def refused(self, *overrides: str) -> str:
        """What `decode` answers; it leaves no run behind."""
        before = {path.name for path in self.work.root.iterdir()}
        done = self.work.here("decode", str(self.latents.root), *overrides)
        assert (done.code, {path.name for path in self.work.root.iterdir()}) == (2, before)
        return done.err


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Drawn:
    work = make_job_folder(tmp_path_factory.mktemp("drawn"), ROWS)
    direct, latents = work.run_here(*JOB), work.run_here(*JOB, LATENTS, "tag=lat")
    assert (direct.code, latents.code) == (0, 0), direct.err + latents.err
    return Drawn(work, direct.run, latents.run)


def latents_of(run: RunPaths, row_id: str = "row-1") -> Path:
    (path,) = rows_of(run).set_index("row_id").loc[[row_id], "media_path"]
    return run.root / path


def test_a_decoded_run_has_the_files_of_one_that_was_drawn_to_pictures(drawn: Drawn) -> None:
    """Bytes and row keys, what the files say of themselves, aliases and carried columns."""
    run = drawn.decode()
    assert recorded(run) == recorded(drawn.direct)
    mine, theirs = rows_of(run), rows_of(drawn.direct)
    assert mine.score.notna().all()  # judges have seen the frames
    for name in ("alias_of", "note", "score", "bucket", "format", "media_frames"):
        assert mine[name].fillna("").tolist() == theirs[name].fillna("").tolist(), name
    assert mine.steps_computed.sum() == mine.steps_expected.sum() == 0
    assert run.root.name.startswith("lat-decode-")
    assert drawn.work.here("verify", str(run.root)).code == 0


def test_latents_are_not_decoded_and_say_what_they_are(drawn: Drawn) -> None:
    rows = rows_of(drawn.latents)
    assert set(rows.media_path.str[-12:]) == {".safetensors"}
    assert rows.score.isna().all()
    tensors = load_file(latents_of(drawn.latents))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "latents": (1, 8, 2, 4, 4)
    }
    told = drawn.work.here("inspect", str(latents_of(drawn.latents)), "--json").json
    assert told["request"]["prompt"] == "a blue circle"
    assert told["row_key"] == rows.set_index("row_id").row_key["row-1"]
    assert drawn.work.here("verify", str(drawn.latents.root)).code == 0


def test_planning_leaves_out_what_is_not_done(drawn: Drawn) -> None:
    runs = (drawn.direct, drawn.latents, drawn.decode("tag=planned"))
    whole, drawing, decoding = (read_run(run).cost_s_total for run in runs)
    assert min(drawing, decoding) > 0
    assert drawing + decoding == pytest.approx(whole)


def test_other_media_are_made_of_the_same_latents(drawn: Drawn) -> None:
    work = drawn.work
    direct = work.run_here(*JOB, "output.format=gif", "output.quality=3", "tag=gif").run
    assert recorded(drawn.decode("output.format=gif", "output.quality=3")) == recorded(direct)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["row_defaults.num_steps=3"], "row_defaults.num_steps: was decided when the rows were"),
        (["system.sampler.sigma_shift=2"], "system.sampler.sigma_shift: was decided"),
        ([LATENTS], "output.format: latents: is what the rows are"),
        (["output.format=png"], "output.format: png holds one frame, but row 'row-0' has 5"),
        (["model.weights=random"], "model.weights, the tokenizer of model.weights changed since"),
    ],
)
def test_what_decoding_cannot_change(drawn: Drawn, overrides: list[str], message: str) -> None:
    assert message in drawn.refused(*overrides)


def test_a_run_without_latents_is_refused(drawn: Drawn) -> None:
    done = drawn.work.here("decode", str(drawn.direct.root))
    assert done.code == 2
    assert "has no latents: its output.format is auto" in done.err
    done = drawn.work.here("decode", str(drawn.decode().root))
    source = drawn.latents.root
    assert done.code == 2 and f"it decodes those of {source}; `batchgen decode" in done.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([NULL, LATENTS], "output.format: latents: null-engine has none"),
        ([LATENTS, "system.cache.audit_every=2"], "system.cache.audit_every: 2: compares frames"),
        ([LATENTS, "system.cache.min_psnr_db=30"], "system.cache.min_psnr_db: 30.0: compares"),
        (
            [
                LATENTS,
                "output.judges=[{call: 'batchgen.tiny.score:judge', columns: [score], "
                "at_least: {score: 1}, policy: retry, retries: 2}]",
            ],
            "output.judges: batchgen.tiny.score:judge: policy retry draws rows again",
        ),
        (["decode=/tmp"], "decode: /tmp: is set by `batchgen decode RUN` alone"),
    ],
)
def test_what_latents_do_not_go_with(drawn: Drawn, overrides: list[str], message: str) -> None:
    done = drawn.work.run_here(*overrides)
    assert done.code == 2
    assert message in done.err


def test_missing_latents_are_found_before_anything_is_made(drawn: Drawn) -> None:
    path = latents_of(drawn.latents)
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1])
        assert f"row 'row-1': latents {path}: {len(data) - 1} bytes" in drawn.refused()
        path.unlink()
        assert f"row 'row-1': latents {path}: No such file" in drawn.refused()
    finally:
        path.write_bytes(data)


def test_damaged_latents_cost_their_row_alone_until_they_are_back(drawn: Drawn) -> None:
    path = latents_of(drawn.latents)
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        done = drawn.work.here("decode", str(drawn.latents.root), "tag=damaged", "--json")
        assert done.code == 1
        failed = rows_of(done.run).set_index("row_id").loc["row-1"]
        assert (failed.status, failed.error_type) == ("failed", "MediaError")
        assert failed.error.startswith(f"row 'row-1': latents {path}: sha256 ")
    finally:
        path.write_bytes(data)
    assert drawn.work.here("resume", str(done.run.root)).code == 0
    assert recorded(done.run) == recorded(drawn.direct)


def test_rows_that_are_not_ok_are_left_out(drawn: Drawn, tmp_path: Path) -> None:
    rows = [*ROWS[:2], {"row_id": "long", "prompt": "a red circle " * 40, "seed": 0}]
    work = make_job_folder(tmp_path, rows)
    lat = work.run_here(*JOB, LATENTS, "model.prompt_overflow=error")
    assert lat.code == 1
    done = work.here("decode", str(lat.run.root), "--json")
    assert done.code == 0, done.err
    assert rows_of(done.run).row_id.tolist() == ["row-0", "row-1"]


def test_a_decoding_run_keeps_its_settings(drawn: Drawn) -> None:
    run = drawn.decode("tag=kept")
    done = drawn.work.here("resume", str(run.root), "output.quality=3", "--rerender-changed")
    assert done.code == 2
    assert "output.quality cannot be changed in a run that decodes" in done.err
    again = drawn.work.here("retry", str(run.root), "--rows", "row-1", "--json")
    assert again.code == 0, again.err
    assert recorded(run) == recorded(drawn.direct)
    assert rows_of(run).set_index("row_id").attempt["row-1"].startswith("s2")


@pytest.mark.slow
def test_a_killed_decoding_goes_on(drawn: Drawn) -> None:
    """kill -9 when a clip is in its place, before its line is written."""
    killed = drawn.work.call(
        "decode", str(drawn.latents.root), "tag=killed",
        env={"BATCHGEN_FAILPOINT": "journal.before_append:2:kill"},
    )  # fmt: skip
    assert killed.code == -signal.SIGKILL, killed.err
    (folder,) = drawn.work.root.glob("killed-*")
    assert read_status(RunPaths(folder)).left == 2
    done = drawn.work.here("resume", str(folder), "--json")
    assert done.code == 0, done.err
    assert recorded(done.run) == recorded(drawn.direct)
    assert rows_of(done.run).attempt.str[:2].value_counts().to_dict() == {
        "s1": 2,
        "s2": 2,
    }


def test_pictures_of_a_flux(one_thread: None, tmp_path: Path) -> None:
    folder = save_flux(tmp_path / "flux", flux_spec())
    work = make_job_folder(tmp_path, 2)
    model = (
        "model=auto", f"model.weights={folder}", "model.text_encoder_2.max_tokens=32",
        "row_defaults.width=64", "row_defaults.height=64", "row_defaults.num_frames=1",
    )  # fmt: skip
    direct, latents = work.run_here(*model), work.run_here(*model, LATENTS)
    assert (direct.code, latents.code) == (0, 0), direct.err + latents.err
    done = work.here("decode", str(latents.run.root), "--json")
    assert done.code == 0, done.err
    assert recorded(done.run) == recorded(direct.run)
    assert set(rows_of(done.run).media_path.str[-4:]) == {".png"}
