"""The command line where its surroundings give way: pipes, full or closed outputs, folders that
are gone, users without a name or a home."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_calls import JobFolder, make_job_folder
from quick_cases import first_quick

from batchgen.cli.main import _parse, main
from batchgen.paths import RunPaths
from batchgen.scheduler.setup.info import read_access

NULL = ("model=null-engine", "row_defaults.num_steps=1")
BATCHGEN = f"{sys.executable} -m batchgen"


@pytest.fixture
def job_folder(tmp_path: Path) -> JobFolder:
    return make_job_folder(tmp_path, 2)


def shell(job_folder: JobFolder, line: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, with $B for the command and $JOB for the job."""
    env = {**os.environ, "B": BATCHGEN, "JOB": str(job_folder.job), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", line],
        cwd=job_folder.folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def the_run(job_folder: JobFolder) -> RunPaths:
    (folder,) = job_folder.root.iterdir()
    return RunPaths(folder)


# ------------------------------------------------------------------------------------ streams
def test_a_reader_that_has_seen_enough_is_no_error(job_folder: JobFolder) -> None:
    """`batchgen ... | head -1`"""
    done = shell(
        job_folder, "$B bench schedule --nodes 4 --seeds 1 --costs giant | true; exit $PIPESTATUS"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_exit_code_tells_of_the_rows_though_the_reader_went(job_folder: JobFolder) -> None:
    (job_folder.folder / "limited").write_text("ulimit -S -f 20")  # kB: no room for the catalog
    line = f". ./limited; $B run $JOB {' '.join(NULL)} --json | true; exit ${{PIPESTATUS[0]}}"
    done = shell(job_folder, line)
    assert done.returncode == 1 and "File too large" in done.stderr
    status = shell(
        job_folder, f"$B status {the_run(job_folder).root} --watch | head -n 1; exit $PIPESTATUS"
    )
    assert (status.returncode, status.stderr) == (0, "")


@pytest.mark.parametrize(
    "lost", first_quick(["0<&- >&- 2>&-", ">/dev/full 2>/dev/full", ">&-", "2>&-"], 2)
)
def test_a_finished_run_is_one_whatever_became_of_its_outputs(
    job_folder: JobFolder, lost: str
) -> None:
    done = shell(job_folder, f"$B run $JOB {' '.join(NULL)} --json {lost}")
    assert done.returncode == 0, done.stderr
    assert main(["verify", str(the_run(job_folder).root)]) == 0
    assert main(["status", str(the_run(job_folder).root)]) == 0


def test_a_full_output_is_said_once_where_it_can_be(job_folder: JobFolder) -> None:
    done = shell(job_folder, f"$B plan $JOB {' '.join(NULL)} --json >/dev/full")
    assert done.returncode == 0
    assert done.stderr == "batchgen: stdout cannot be written: No space left on device\n"
    assert shell(job_folder, "$B plan $JOB nope=1 --json >&- 2>&-").returncode == 2


def test_what_an_encoding_cannot_hold_is_escaped(job_folder: JobFolder) -> None:
    odd = job_folder.folder / "节"
    odd.mkdir()
    shutil.copy(job_folder.folder / "manifest.parquet", odd / "m.parquet")
    done = shell(job_folder, "PYTHONIOENCODING=ascii $B manifest check 节/m.parquet")
    assert done.returncode == 0, done.stderr
    assert "\\u8282" in done.stdout


# ------------------------------------------------------------------------------- paths and limits
@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """As `ulimit -f`: a file cannot grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def dangling(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "gone")
    return folder / "link"


def below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "x"


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "dangling": (dangling, "which is not there"),
    "file": (below_a_file, "is no folder"),
    "name too long": (lambda folder: folder / ("a" * 300), "File name too long"),
    "path too long": (lambda folder: folder.joinpath(*["b" * 200] * 25), "paths inside"),
    "not for anybody": (lambda folder: Path("/proc/nobody/x"), "No such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_root_dir_where_no_run_can_be_made(
    kind: str, job_folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    make, reason = BAD[kind]
    root = make(job_folder.folder)
    before = sorted(job_folder.folder.rglob("*"))
    assert main(["run", str(job_folder.job), *NULL, f"output.root_dir={root}"]) == 2
    err = capsys.readouterr().err
    assert "output.root_dir" in err and reason in err and "Traceback" not in err
    assert sorted(job_folder.folder.rglob("*")) == before


@pytest.mark.parametrize("size", [0, 1024, 5000])
def test_a_run_that_does_not_fit_leaves_nothing(
    size: int, job_folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_at_most(size):
        assert main(["run", str(job_folder.job), *NULL]) == 2
    err = capsys.readouterr().err
    where = f"output.root_dir: {job_folder.root}" if size else "TMPDIR: "  # where a job is composed
    assert where in err and "File too large" in err
    assert not job_folder.root.exists()


def test_a_run_that_cannot_be_written_is_left_alone(
    job_folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(job_folder.job), *NULL]) == 0
    run = the_run(job_folder)
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    capsys.readouterr()
    for verb in ("resume", "retry"):
        with files_at_most(0):
            assert main([verb, str(run.root)]) == 2
        assert f"{run.root} cannot be written: File too large" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before


def test_no_row_is_named_by_nothing(
    job_folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what a shell makes of a variable that is not set."""
    assert main(["run", str(job_folder.job), *NULL]) == 0
    run = the_run(job_folder)
    for rows in ("", " ,"):
        assert main(["retry", str(run.root), "--rows", rows]) == 2
        assert f"--rows: {rows!r} names no row" in capsys.readouterr().err


def test_a_job_is_found_by_its_name_and_no_hidden_file_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".hooks.yaml").touch()
    assert main(["plan", "demo"]) == 2
    assert "yaml" not in capsys.readouterr().err
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "demo.yaml").touch()
    assert main(["plan", "demo"]) == 2
    assert "did you mean 'jobs/demo.yaml'?" in capsys.readouterr().err


def test_rows_at_stake_make_it_1(job_folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with files_at_most(20_000):  # room for the plan, not for the catalog's parts
        code = main(["run", str(job_folder.job), *NULL, "carry_columns=[]", "tag=small"])
    err = capsys.readouterr().err
    assert code == 1 and "File too large" in err and "go on with `batchgen resume" in err


def test_files_of_other_verbs_are_named(
    job_folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    long, link = (
        job_folder.folder / ("a" * 300 + ".parquet"),
        dangling(job_folder.folder) / "x.parquet",
    )
    job, manifest = str(job_folder.job), str(job_folder.folder / "manifest.parquet")
    cases = (
        (["manifest", "check", str(long)], "MANIFEST"),
        (["manifest", "build", str(long), "o.parquet"], "SOURCE"),
        (["manifest", "build", manifest, str(long)], str(long)[:50]),
        (["manifest", "build", manifest, str(link)], str(link)),
        (["manifest", "build", manifest, "/dev/null"], "/dev/null"),
        (["plan", job, *NULL, "--out", "/dev/null"], "--out"),
        (["plan", job, *NULL, "--out", str(long)], "--out"),
        (["plan", job, *NULL, "--dump-config", str(long)], "--dump-config"),
        (["status", str(long)], "RUN"),
        (["status", "latest", "--root", str(long)], "--root"),
    )
    for argv, named in cases:
        assert main(argv) == 2, argv
        err = capsys.readouterr().err
        assert named in err and "Traceback" not in err, (argv, err)
    with files_at_most(100):
        for option in ("--out", "--dump-config"):
            assert main(["plan", job, *NULL, option, str(job_folder.folder / "p")]) == 2
            err = capsys.readouterr().err
            assert "File too large" in err and ("TMPDIR" in err or "--out" in err)
    assert not (job_folder.folder / "p").exists()
    assert not list(job_folder.folder.glob(".*"))


CLOSED = """\
import ctypes, sys
libc = ctypes.CDLL(None)
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH: root as anybody
    libc.prctl(24, capability)
import os
os.execv(sys.executable, [sys.executable, "-m", "batchgen", *sys.argv[1:]])
"""


def as_anybody(job_folder: JobFolder, *argv: str) -> subprocess.CompletedProcess[str]:
    """A verb of a user whom permissions bind, in a home that is not there."""
    env = {**os.environ, "HOME": "/proc/nobody", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", CLOSED, *argv],
        cwd=job_folder.folder, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_folders_that_are_closed_to_us(job_folder: JobFolder) -> None:
    closed = job_folder.folder / "closed"
    (closed / "out").mkdir(parents=True)
    shutil.copy(job_folder.folder / "manifest.parquet", closed)
    closed.chmod(0o000)
    try:
        run = ("run", str(job_folder.job), *NULL)
        cases = (
            ((*run, f"output.root_dir={closed}/out"), f"output.root_dir: {closed}/out"),
            ((*run, f"manifest={closed}/manifest.parquet"), f"{closed}/manifest.parquet"),
            (("status", f"{closed}/out"), f"RUN '{closed}/out'"),
        )
        for argv, named in cases:
            done = as_anybody(job_folder, *argv)
            assert done.returncode == 2, done.stderr
            assert named in done.stderr and "Permission denied" in done.stderr
            assert "Traceback" not in done.stderr
        assert not job_folder.root.exists()
    finally:
        closed.chmod(0o755)


def test_a_current_folder_that_is_gone(job_folder: JobFolder) -> None:
    done = shell(job_folder, "mkdir gone && cd gone && rmdir ../gone && $B run $JOB --json")
    assert done.returncode == 2
    assert "the current folder is gone" in done.stderr and "Traceback" not in done.stderr


def test_a_user_without_a_home_and_a_name(
    job_folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container with a number for a user: its cache is nowhere, and Slurm knows it not."""
    for name in ("HOME", "XDG_CACHE_HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_123)
    monkeypatch.chdir(job_folder.folder)
    assert "4000123 has no name" in read_access().problem
    assert main(["plan", str(job_folder.job), *NULL]) == 0
    assert not (job_folder.folder / "~").exists()


# ------------------------------------------------------------------------------- command lines
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
        "from batchgen.errors import EndedBySignal\n"
        "from batchgen.paths import RunPaths\n"
        "from batchgen.records import Attempt\n"
        "from batchgen.worker.drain import Drain\n"
        "from pathlib import Path\n"
        "answer_signals()\n"
        "try:\n"
        f"    with Drain(RunPaths(Path({str(tmp_path)!r})), Attempt(1, 0, 0, 0)):\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "except EndedBySignal as told:\n"
        "    print(told.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{name}\n", "")
