"""`plan` and `manifest` as a user types them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rights import linux, without_rights

from batchgen.cli.main import main

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "jobs" / "demo.yaml")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No earlier runs to calibrate from, and nothing may be left here."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def last_json(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text.strip().splitlines()[-1])
    return found


def test_plan_loads_no_torch_and_prints_what_a_user_needs() -> None:
    """A dry run must work on a login node without a GPU, and start quickly."""
    code = (
        "import sys; from batchgen.cli.main import main\n"
        f"code = main(['plan', {DEMO!r}])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'submitit'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    for word in (
        "64x64x17",
        "16 to render",
        "1, on 1 node of 1 rank",
        "dp first",
        "s of CPUs (",
        "basis",
    ):
        assert word in done.stdout
    assert list(Path().iterdir()) == []


def test_parts_of_the_forecast_are_named_and_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    """What rows take, by size, is less than the forecast: ranks have to start first."""
    assert main(["plan", DEMO, "--json"]) == 0
    out = capsys.readouterr().out
    found = last_json(out)["forecast"]
    assert isinstance(found, dict)
    hours, of_rows, of_start = (found[f"{n}_hours"] for n in ("gpu", "row", "start_up"))
    assert hours == pytest.approx(of_rows + of_start) and of_start > 0
    said = re.sub(r"\s+", " ", out)
    assert f": {3600 * of_rows:.1f} s of rows, {3600 * of_start:.1f} s of start-up; done" in said
    assert sum(map(float, re.findall(r" 64x64x\d+ .*?([\d.]+) s ", said))) == pytest.approx(
        3600 * of_rows, abs=0.2
    )


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", DEMO, "row_defaults.num_steps=4", "--json"]) == 0
    data = last_json(capsys.readouterr().out)
    assert (data["rows"], data["unique_rows"], data["model"]) == (16, 16, "tiny-wan")
    assert data["plan"] is None
    assert len(data["buckets"]) == 3  # type: ignore[arg-type]
    assert data["layout"]["memory"] == "resident"  # type: ignore[call-overload, index]
    assert set(data["forecast"]) >= {"gpu_hours", "low", "high", "basis", "layout", "files"}  # type: ignore[call-overload]


def test_plan_lists_layouts_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    job = str(ROOT / "jobs" / "wan21_14b_720p.yaml")
    assert main(["plan", job, "slurm=h200x8", "slurm.nodes=2", "--layouts", "--json"]) == 0
    out = capsys.readouterr().out
    for part in ("per device-h", " 16 ", "chosen", "ruled out: dp 1", "dp goes first"):
        assert part in out
    layouts = last_json(out)["layouts"]
    assert isinstance(layouts, dict)
    chosen = [each for each in layouts["candidates"] if each["chosen"]]
    assert len(chosen) == 1 and chosen[0]["fits"]
    assert layouts["ruled_out"][0]["why"]
    assert main(["plan", DEMO, "--json"]) == 0
    assert "layouts" not in last_json(capsys.readouterr().out)


def test_layouts_fit_a_terminal_and_show_the_chosen_by_what_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shortest time first where latency is asked for, in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    job = str(ROOT / "jobs" / "flux1_dev_1024.yaml")
    two = ["slurm=h200x8", "slurm.nodes=2", "--layouts"]
    assert main(["plan", job, *two, "system.parallel.objective=latency"]) == 0
    table = capsys.readouterr().out.split("prices within")[0].splitlines()
    assert max(map(len, table)) <= 80
    lasts = [float(found[1]) for line in table if (found := re.search(r"([\d.]+) s ", line))]
    assert len(lasts) > 10 and lasts == sorted(lasts)
    assert sum("chosen" in line for line in table) == 1
    long = str(ROOT / "jobs" / "wan21_14b_720p.yaml")
    assert main(["plan", long, "slurm=h200x8", "slurm.device.matmul_tflops=0.1", "--layouts"]) == 0
    table = capsys.readouterr().out.split("prices within")[0].splitlines()
    first = next(line for line in table if "resident" in line)
    assert max(map(len, table)) <= 80 and "items" in table[2]
    assert " d " in first and "chosen" in "".join(table)


def test_layouts_are_listed_where_none_fits(capsys: pytest.CaptureFixture[str]) -> None:
    job = str(ROOT / "jobs" / "wan21_14b_720p.yaml")
    assert main(["plan", job, "slurm=h200x8", "slurm.device.memory_gib=2", "--layouts"]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("does not fit") > 2 and "chosen" not in captured.out
    assert "a replica does not fit one rank" in captured.err


def test_plan_refuses_above_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    job = str(ROOT / "jobs" / "wan21_14b_720p.yaml")
    assert main(["plan", job, "slurm=h200x8", "--max-gpu-hours", "0.5"]) == 2
    captured = capsys.readouterr()
    assert "is above system.max_gpu_hours=0.5" in captured.err
    assert "1280x720x81" in captured.out  # the table says where the hours go
    assert "weights is random" in captured.out
    assert main(["plan", job, "slurm=h200x8", "--max-gpu-hours", "50"]) == 0


def test_plan_keeps_the_plan_and_the_configuration_when_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--out", "kept.parquet", "--dump-config", "config.json", "--json"]
    assert main(["plan", DEMO, "seed=7", *arguments]) == 0
    assert last_json(capsys.readouterr().out)["plan"] == "kept.parquet"
    assert pq.read_metadata("kept.parquet").num_rows == 16
    dumped = json.loads(Path("config.json").read_text(encoding="utf-8"))
    assert dumped["tier_1_model"]["transformer"]["num_layers"] == 6
    assert dumped["tier_2_system"]["output"]["quality"] == 8
    assert dumped["tier_3_rows"]["rows"] == 16
    assert dumped["job"]["seed"] == 7
    assert dumped["overrides"] == ["seed=7"]
    assert dumped["versions"]["diffusers"].startswith("0.42")
    assert dumped["digests"]["weights"].startswith("sampled:")
    assert dumped["hardware"]["cpus"] >= 1
    assert "git_commit" in dumped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nowhere.yaml"], "no such job file"),
        (["plan", DEMO, "sede=1"], "did you mean 'seed'"),
        (["plan", DEMO, "manifest=nowhere.parquet"], "no such manifest"),
        (["plan", DEMO, "--out", "no/where.parquet"], "--out: no is not a folder"),
        (["plan", DEMO, "--dump-config", "no/c.json"], "--dump-config: no is not a folder"),
        (["manifest", "check", "nowhere.parquet"], "no such manifest"),
        (["manifest", "build", "nowhere.txt", "out.parquet"], "no such file"),
        (["manifest", "build", "p.txt", "out.parquet", "seed"], "write a sweep as column=a,b"),
        (["manifest", "check", "p.parquet", "seed=1"], "add --job JOB"),
    ],
)
def test_a_mistake_exits_with_2_and_one_clear_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(Path().iterdir()) == []


def test_build_then_check_then_plan(capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a red circle\na blue ring\n", encoding="utf-8")
    build = [
        "manifest",
        "build",
        "prompts.txt",
        "new.parquet",
        "guidance_scale=1,4",
        "--seeds",
        "3",
    ]
    assert main(build) == 0
    assert "new.parquet: 12 rows (2 x 6)" in capsys.readouterr().out
    assert main(["manifest", "check", "new.parquet"]) == 0
    assert "12 rows, all legal" in capsys.readouterr().out
    assert main(["plan", DEMO, "manifest=new.parquet", "--json"]) == 0
    assert last_json(capsys.readouterr().out)["unique_rows"] == 12


def test_check_lists_every_bad_row_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"prompt": ["a", "b", "c"], "num_frames": [8, 9, 9], "num_steps": [20, 0, -1]}
    pq.write_table(pa.table(columns), "rows.parquet")
    assert main(["manifest", "check", "rows.parquet", "--json"]) == 2
    data = last_json(capsys.readouterr().out)
    assert (data["rows"], data["illegal"]) == (3, 2)
    assert main(["manifest", "check", "rows.parquet", "--job", DEMO]) == 2
    text = capsys.readouterr().out
    assert "3 illegal values" in text
    assert "row 0, num_frames = 8: legal: 4n+1" in text
    assert main(["manifest", "check", "rows.parquet", "--job", DEMO, "output.geometry=round"]) == 2
    assert "2 illegal values" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["manifest", "model.weights", "output.root_dir"])
@pytest.mark.parametrize("value", ["", "' '"])
def test_an_empty_path_of_a_job_is_not_the_current_folder(
    capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    """As a shell makes it of a variable that is not set."""
    pq.write_table(pa.table({"prompt": ["a"]}), "rows.parquet")
    assert main(["plan", DEMO, f"{key}={value}"]) == 2
    assert f"{key}: is empty (a shell variable that is not set?)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [("check", ""), ("build", "", "out.parquet"), ("build", "rows.parquet", " ")]
)
def test_an_empty_path_of_a_command_is_not_the_current_folder(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]
) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), "rows.parquet")
    assert exit_code(["manifest", *argv]) == 2
    assert "is empty (a shell variable that is not set?)" in capsys.readouterr().err


def test_a_manifest_that_is_a_dead_link_is_called_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Beside the job too, where relative paths are looked for."""
    for folder in (Path.cwd(), tmp_path):
        (folder / f"{folder.name}.parquet").symlink_to("/gone.parquet")
        job = Path(shutil.copy(DEMO, tmp_path / "job.yaml"))
        assert main(["plan", str(job), f"manifest={folder.name}.parquet"]) == 2
        said = capsys.readouterr().err
        assert f"{folder.name}.parquet: a link to /gone.parquet, which is not there" in said


def exit_code(argv: list[str]) -> int:
    """Of a command line that may not even parse."""
    try:
        return main(argv)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_plan_refuses_the_places_where_no_run_can_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words of `run`, which looks there once it makes the folder."""
    Path("file").touch()
    Path("link").symlink_to("/gone/x")
    far = "/".join(["d" * 200] * 20)
    for root, executor in (
        ("file", "inline"),
        ("file/x", "inline"),
        ("link/x", "inline"),
        (f"{tmp_path}/{far}", "inline"),
        ("a%jb", "local"),
        ("a\\b", "slurm"),
    ):
        words = [DEMO, f"output.root_dir={root}", f"slurm={executor}"]
        said = []
        for verb in ("plan", "run"):
            assert main([verb, *words]) == 2
            said.append(capsys.readouterr().err.partition(": ")[2])
        assert said[0] == said[1]
        assert said[0].count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"file", "link"}
    assert main(["plan", DEMO, "output.root_dir=new/folder"]) == 0
    assert not Path("new").exists()


@linux
def test_what_may_not_be_read_or_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    job = tmp_path / "mine.yaml"
    job.write_text(Path(DEMO).read_text())
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a"]}), rows)
    (tmp_path / "parts").mkdir()
    shutil.copy(rows, tmp_path / "parts")
    (tmp_path / "text.csv").write_text("prompt\na\n")
    weights = tmp_path / "weights"
    shutil.copytree(ROOT / "batchgen" / "tiny" / "weights", weights)
    model = weights / "vae" / "diffusion_pytorch_model.safetensors"
    denied = "Permission denied"
    cases = [
        (shut, ["plan", DEMO, f"output.root_dir={shut}/x"], f"root_dir: {shut}/x: ", "written"),
        (shut, ["run", DEMO, f"output.root_dir={shut}/x"], f"root_dir: {shut}/x: ", denied),
        (job, ["plan", str(job)], str(job), denied),
        (rows, ["plan", DEMO, f"manifest={rows}"], str(rows), denied),
        (rows, ["manifest", "check", str(rows)], str(rows), denied),
        (tmp_path / "parts", ["manifest", "check", f"{tmp_path}/parts"], "parts", denied),
        (tmp_path / "text.csv", ["manifest", "build", "../text.csv", "o.parquet"], "csv", denied),
        (shut, ["manifest", "build", "../text.csv", f"{shut}/o.parquet"], "o.parquet", denied),
        (model, ["plan", DEMO, f"model.weights={weights}"], str(model), denied),
        (weights / "vae", ["plan", DEMO, f"model.weights={weights}"], f"{weights}/vae", denied),
        (shut, ["plan", DEMO, "--out", f"{shut}/p.parquet"], "--out", denied),
        (shut, ["plan", DEMO, "--dump-config", f"{shut}/c.json"], "--dump-config", denied),
    ]
    faults = []
    for closed, words, place, reason in cases:
        mode = closed.stat().st_mode
        closed.chmod(0o555 if closed == shut else 0)
        code = without_rights(lambda words=words: main(words))
        closed.chmod(mode)
        said = capsys.readouterr().err
        if code != 2 or place not in said or reason not in said or said.count("\n") != 1:
            faults.append((words, code, said))
    assert not faults, "\n".join(map(str, faults))
    assert not list(shut.iterdir()) and not list(Path().iterdir())


def test_the_configuration_is_dumped_without_keeping_the_plan() -> None:
    assert main(["plan", DEMO, "--dump-config", "config.json"]) == 0
    assert json.loads(Path("config.json").read_text())["tier_3_rows"]["rows"] == 16


def test_plan_says_where_components_live_and_what_changes_pixels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = "system.components.text_encoder.memory=model"
    assert main(["plan", DEMO, own]) == 0
    assert "resident, but text_encoder=model; changes no pixel" in " ".join(
        capsys.readouterr().out.split()
    )
    lossy = ["system.memory.store_dtype=fp8", "system.components.vae.dtype=bfloat16"]
    assert main(["plan", DEMO, *lossy, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["memory_changes_pixels"] == lossy


def test_one_row_is_called_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.txt").write_text("a red circle\n")
    assert main(["manifest", "build", "p.txt", "one.parquet"]) == 0
    assert main(["manifest", "check", "one.parquet"]) == 0
    built, checked = capsys.readouterr().out.splitlines()
    assert built == "one.parquet: 1 row, columns prompt"
    assert checked.startswith("one.parquet: 1 row, all legal")
