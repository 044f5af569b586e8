"""The command line in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from batchgen.cli.main import _parse, main


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`batchgen ... | head -1`"""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "batchgen", "bench", "schedule", "--nodes", "4"]
    done = subprocess.run(
        [*argv, "--seeds", "1", "--costs", "giant"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize("flag", ["--multirun", "-m"])
def test_a_multirun_is_answered_with_the_sweep_of_a_manifest(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "job.yaml", flag, "row_defaults.num_steps=2,4"])
    assert ended.value.code == 2
    assert "batchgen manifest build prompts.txt sweep.parquet num_steps=" in capsys.readouterr().err


def test_a_home_folder_is_one_in_every_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shells leave `--root=~/x` alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a\n")
    assert main(["manifest", "build", "~/prompts.txt", "~/m.parquet"]) == 0
    assert main(["manifest", "check", "~/m.parquet"]) == 0
    capsys.readouterr()
    for argv in (["latest", "--root=~/runs"], ["~/runs/x"]):
        assert main(["status", *argv]) == 2
    assert f"there is no run in {tmp_path}/runs" in capsys.readouterr().err
    assert main(["plan", "~/job.yaml"]) == 2
    assert f"{tmp_path}/job.yaml: no such job file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "~nobody-here/job.yaml"])
    assert "there is no home folder for ~nobody-here" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.txt", "m.parquet"}


def test_overrides_may_stand_behind_options() -> None:
    args = _parse(["plan", "job.yaml", "--json", "~tag", "+seed=1", "row_defaults.num_steps=2"])
    assert args.overrides == ["~tag", "+seed=1", "row_defaults.num_steps=2"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_signal_that_came_is_named_when_a_rank_has_passed_it_on(
    name: str, tmp_path: Path
) -> None:
    code = (
        "import os, signal\n"
        "from batchgen.cli.streams import answer_signals\n"
        "from batchgen.errors import Told\n"
        "from batchgen.paths import RunPaths\n"
        "from batchgen.records import Attempt\n"
        "from batchgen.worker.drain import Drain\n"
        "from pathlib import Path\n"
        "answer_signals()\n"
        "try:\n"
        f"    with Drain(RunPaths(Path({str(tmp_path)!r})), Attempt(1, 0, 0, 0)):\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "except Told as told:\n"
        "    print(told.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{name}\n", "")
