"""Small things that a person meets every day: hints, units, narrow terminals, bars, the TAB key."""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_calls import NULL, make_job_folder
from rich.console import Console
from rich.progress import Progress, TextColumn
from rights import linux, without_rights
from run_folder import make_run_folder

import batchgen
from batchgen.bars import Bars, Lines, progress_bars
from batchgen.cli.completion import SHELLS, export_forms, job_files, override_words, script
from batchgen.cli.main import main
from batchgen.errors import RunStateError
from batchgen.ledger.status import read_status
from batchgen.progress import heard_by, tell
from batchgen.runner.find import find_run
from batchgen.words import rank_time, rank_time_within

BOOLEANS = ("true", "false")
DETERMINISMS = ("strict", "throughput")
JOB = str(Path(__file__).parents[3] / "jobs" / "demo.yaml")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["statu", "latest"], "VERB: 'statu' is not one of manifest, plan, .*'status'"),
        (["plan", JOB, "steps=3"], r"steps: unknown key \(did you mean 'row_defaults.num_steps'"),
        (["plan", JOB, "num_steps=3"], r"did you mean 'row_defaults.num_steps'"),
        (["plan", JOB, "sytem.compile=off"], "did you mean 'system"),
        (["plan", JOB, "slurm.timeout_min=2h"], "'2h' is not an integer of minutes"),
        (["plan", JOB, "system.memory.vram_limit=8GB"], "'8GB' is not a number of GiB or null"),
        (["plan", JOB, "--max-gpu-hours", "2h"], "'2h' is not a number of hours"),
        (["manifest", "build", "prompts.txt"], r"required: OUT\n"),
        (["status", JOB], "demo.yaml is a job, not a run; its latest run: 'latest'"),
        (["plan", JOB, "--layout-all", "a=b"], r"^usage: batchgen plan .*--layouts'"),
        (["slurm", "check", "x", "--nodez=1"], r"^usage: batchgen slurm check .*'--nodes'"),
        (["status", "latest", "twice"], r"^usage: batchgen status .* arguments: twice\n$"),
        (["inspect", "nowhere.png"], "is not there; FILE is a file of a run's media/"),
        (["run"], r"required: JOB\n"),
        (["bench"], "cache +speed and error"),
        (["bench", "scal"], r"bench: error: argument WHAT: 'scal' is not one of .*'scale'\?"),
        (["manifest", "chek", "x"], r"argument ACTION: 'chek' is not one of .*'check'\?"),
        ([], "exit codes: 0 all rows ok"),
    ],
)
def test_hints_hint_at_the_right_thing(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(argv) == 2
    except SystemExit as ended:
        assert ended.code == 2
    assert re.search(said, "".join(capsys.readouterr()), re.DOTALL)


def test_a_run_is_found_behind_a_path_and_else_it_says_where_it_looked(tmp_path: Path) -> None:
    old, new = (tmp_path / f"demo-2026010{n}-120000-abcdef" for n in (1, 2))
    make_run_folder(new, 1)
    make_run_folder(old, 1)
    assert find_run(tmp_path / "latest").root == new
    assert find_run("latest", tmp_path).root == new
    assert find_run(tmp_path / "demo-20260101").root == old
    with pytest.raises(RunStateError, match="fits several runs: demo-20260101"):
        find_run(tmp_path / "demo")
    with pytest.raises(RunStateError, match=f"no run 'x' in {tmp_path}; the latest of 2 is demo-"):
        find_run("x", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunStateError, match=f"no run in {tmp_path}/empty.* --root FOLDER"):
        find_run("latest", tmp_path / "empty")
    make_run_folder(tmp_path / "elsewhere" / "other-1", 1)
    there = tmp_path / "elsewhere"
    with pytest.raises(RunStateError, match=f"There are runs in {there}. .*: --root {there}, or"):
        find_run("latest", tmp_path / "empty")


def test_below_the_folder_of_the_runs_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run_folder(tmp_path / "outputs" / "demo-1", 1)
    (tmp_path / "jobs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "jobs" / "mine")
    above = tmp_path / "outputs"
    with pytest.raises(RunStateError, match=f"There are runs in {above}. .*: --root {above}, or"):
        find_run("latest")


@linux
def test_a_folder_that_one_may_not_read_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "another").mkdir(mode=0)
    with pytest.raises(RunStateError, match=r"there is no run in .*/outputs"):
        without_rights(lambda: find_run("latest", tmp_path / "outputs"))


def test_time_of_ranks_is_said_in_units_that_fit() -> None:
    assert rank_time(0.01, "cpu") == "36.0 s of CPUs"
    assert rank_time(2, "cpu") == "2.00 CPU-hours"
    assert rank_time(1234.5, "NVIDIA H200") == "1,234.5 GPU-hours"
    assert rank_time_within(12, 6, 24, "h200") == "12.00 GPU-hours (6.00 to 24.00)"
    assert rank_time_within(0.09, 0.08, 0.11, "h200") == "5.4 min of GPUs (4.8 min to 6.6 min)"


def test_a_plan_says_where_shards_go_and_times_in_one_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The time of the last row is in the reason and in the table of layouts."""
    job, model = make_job_folder(tmp_path, 4), ("model=wan2.1-t2v-14b", "slurm.executor=slurm")
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(Path(JOB).parents[1])
    size = [f"row_defaults.{each}" for each in ("width=1280", "height=720", "num_frames=81")]
    said = {}
    for more in ((), ("slurm.nodes=2",), ("slurm.nodes=2", "system.parallel.objective=latency")):
        asked = ["slurm=h200x8", *model, *size, "row_defaults.num_steps=50", *more, "--layouts"]
        assert main(["plan", str(job.job), *asked]) == 0
        out = capsys.readouterr().out
        (last,) = re.findall(r"resident +1 +\S+ +(\S+ \w+) +\S+ +chosen", out)
        assert f"the last row after {last}, against" in out
        said[len(more)] = re.findall("shards +(.*?) *\n", out)[0]
    assert said == {
        0: "1, on 1 node of 8 ranks",
        1: "1, on 1 node of 8 ranks; 1 of 2 nodes without work",
        2: "2, 2 at once, each on 1 node of 8 ranks",
    }


def test_a_plan_fits_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job_folder(tmp_path, 3)
    monkeypatch.setenv("COLUMNS", "48")
    assert main(["plan", str(job.job), NULL]) == 0
    table = capsys.readouterr().out.split("job ")[0]
    assert "32x32x5" in table and "tokens" not in table
    assert max(map(len, table.splitlines())) <= 48


def test_a_status_is_as_wide_as_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words that do not fit go below; a path stays whole, to be copied."""
    monkeypatch.chdir(tmp_path)
    folder = make_run_folder(tmp_path / "outputs" / "demo-1", 1)
    folder.fail(folder.journal(folder.submit()), 0, "words of an error " * 6)
    shown = {}
    for columns in ("", "50"):
        monkeypatch.setenv("COLUMNS", columns)
        main(["status", "latest", "--offline"])
        shown[columns] = re.sub("[0-9.]+", "1", capsys.readouterr().out)  # it is alive
    assert max(map(len, shown[""].splitlines())) > 100
    assert max(map(len, shown["50"].splitlines())) <= 50
    assert shown["50"].split() == shown[""].split()


def test_bars_are_drawn_for_long_work_alone_and_only_where_somebody_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with Progress(TextColumn("{task.description} {task.completed}"), console=console) as progress:
        bars, soon = Bars(progress, soon_s=-1), Bars(progress, soon_s=3600)
        with heard_by(bars.more):
            tell("collect", 5, 8)
            tell("collect", 9, 8)  # begun anew
        soon.more("verify", 1, 8)
        tell("unheard", 1, 1)
    assert "collect 8" in screen.getvalue()
    assert "verify" not in screen.getvalue() and "unheard" not in screen.getvalue()
    with progress_bars():
        tell("collect", 1, 1)
    assert capsys.readouterr().err == ""


class Cell:
    """The output of a notebook's cell, as `IPython.display.display` fills it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> Line:
        assert raw and display_id
        self.lines.append(data["text/plain"])
        return Line(self, len(self.lines) - 1)


class Line:
    def __init__(self, cell: Cell, at: int) -> None:
        self.cell, self.at = cell, at

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        self.cell.lines[self.at] = data["text/plain"]


class ZMQInteractiveShell:
    """By its name a notebook's kernel is known."""


class Shell(ZMQInteractiveShell):
    """Colab's."""


def test_a_notebook_has_a_line_for_each_kind_of_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cell = make_run_folder(tmp_path / "demo-1", 2), Cell()
    monkeypatch.setattr(Lines.__init__, "__defaults__", (-1.0,))
    batchgen.collect(folder.run.root)
    python = SimpleNamespace(get_ipython=Shell, display=cell)
    monkeypatch.setitem(sys.modules, "IPython", python)
    assert cell.lines == []
    batchgen.collect(folder.run.root)
    assert cell.lines == ["collect  2 of 2"]
    lines = Lines(cell.display, soon_s=3600)
    lines.more("verify", 1, 8)
    lines.watch(read_status(folder.run))
    assert cell.lines[1:] == ["render   0 of 2"]
    assert "".join(capsys.readouterr()) == ""


def test_the_tab_key_offers_verbs_runs_jobs_and_keys(tmp_path: Path) -> None:
    make_run_folder(tmp_path / "outputs" / "demo-1", 1)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "mine.yaml").touch()
    assert job_files(f"{tmp_path}/jobs/mi") == [f"{tmp_path}/jobs/mine.yaml"]
    assert all("batchgen" in script(shell) for shell in SHELLS)
    answer, line = tmp_path / "answer", "batchgen status de"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    command = [sys.executable, "-m", "batchgen"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **asked}, check=False)
    assert (done.returncode, answer.read_text().strip()) == (0, "demo-1")


def test_the_tab_key_offers_what_a_key_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also profiles of one's own, in the current folder and beside the job."""
    for folder, name in ((tmp_path / "slurm", "here"), (tmp_path / "b" / "slurm", "beside")):
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").touch()
    monkeypatch.chdir(tmp_path)
    job = argparse.Namespace(job=Path("b/jobs/mine.yaml"))
    offered = partial(override_words, parsed_args=job)
    assert {"seed=", "model=", "slurm=", "system.determinism="} <= {*offered("s")}
    assert offered("system.determinism=") == [f"system.determinism={w}" for w in DETERMINISMS]
    assert offered("system.cache.enabled=t") == [f"system.cache.enabled={w}" for w in BOOLEANS]
    assert "system.memory.vram_limit=null" in offered("system.memory.vram_limit=")
    assert {*offered("slurm=")} == {f"slurm={w}" for w in ("inline", "local", "here", "beside")}
    assert "model=tiny-wan" in override_words("model=", argparse.Namespace())
    assert offered("manifest=b/s") == ["manifest=b/slurm/"]
    assert offered("seed=") == offered("no.key=") == []
    assert "webdataset" in export_forms()
