"""The profiles that come with the project, and what becomes of their keys in a batch script."""

from __future__ import annotations

import shlex
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from batchgen.cli.main import main
from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import DeviceConfig, SlurmConfig
from batchgen.errors import ConfigError
from batchgen.paths import RunPaths
from batchgen.runner.executors import check_profile
from batchgen.runner.executors.slurm import array_count, steward_batch, task_batches
from batchgen.scheduler.batch import after
from batchgen.scheduler.options import check_folder
from batchgen.scheduler.setup.check import probe_batch
from batchgen.scheduler.setup.findings import with_device

ROOT = Path(__file__).parents[3]
PROFILES = sorted(path.stem for path in (ROOT / "slurm").glob("*.yaml"))


def profile(name: str, *overrides: str) -> SlurmConfig:
    return compose_job(ROOT / "jobs" / "demo.yaml", [f"slurm={name}", *overrides]).config.slurm


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_makes_a_script(name: str, tmp_path: Path) -> None:
    slurm = profile(name)
    run = RunPaths(tmp_path)
    (script,) = [batch.script() for batch in task_batches(run, 1, 3, slurm, 1000)]
    for words in (
        f"--array=0-2%{slurm.nodes}" if slurm.nodes < 3 else "--array=0-2",
        f"--ntasks-per-node={slurm.ranks_per_node}",
        f"--signal=USR2@{slurm.signal_delay_s}",
        "--requeue",
    ):
        assert words in script
    steward = steward_batch(run, 1, slurm, rows=9).script()
    assert "--ntasks-per-node=1" in steward and "gpus" not in steward


def test_a_replica_over_two_nodes_is_one_element_of_two_nodes(tmp_path: Path) -> None:
    slurm = profile("devcluster", "slurm.ranks_per_node=2")
    (batch,) = task_batches(RunPaths(tmp_path), 1, 3, slurm, 1000, together=2)
    assert "--nodes=2\n" in batch.script() and "--ntasks-per-node=2\n" in batch.script()


def test_h100x8_shows_every_key_and_what_is_measured_keeps_the_others() -> None:
    """Of a profile with figures of its own, `slurm check --write` loses none."""
    shown = yaml.safe_load((ROOT / "slurm/h100x8.yaml").read_text())
    assert shown.keys() == {field.name for field in fields(SlurmConfig)}
    assert shown["device"].keys() == {field.name for field in fields(DeviceConfig)}
    own = DeviceConfig(**{name: n + 3.5 for n, name in enumerate(shown["device"])} | {"name": "x"})
    written = yaml.safe_load(with_device("device: {name: y}\nnodes: 2\n", own))
    assert written == {"device": asdict(own), "nodes": 2}


def test_h100x8_is_a_whole_node() -> None:
    slurm = profile("h100x8")
    assert slurm.ranks_per_node == slurm.gpus_per_node == 8 and slurm.device.name == "h100"


def test_all_memory_of_a_node_is_for_tasks_alone(tmp_path: Path) -> None:
    """The steward is a small job, whatever its tasks take."""
    slurm, run = profile("devcluster", "slurm.mem_gb=0"), RunPaths(tmp_path)
    assert "--mem=0M\n" in task_batches(run, 1, 1, slurm, 1000)[0].script()
    assert "--mem=4096M\n" in steward_batch(run, 1, slurm, rows=1000).script()


@pytest.mark.parametrize(
    ("mem_gb", "rows", "asked"),
    [
        ("64", 10**6, "--mem=4239M"),
        ("64", 10**8, "--mem=18401M"),  # an index of all commits and a plan of all rows
        ("8", 10**8, "--mem=8192M"),  # no node of the profile has more
        ("0", 10**8, "--mem=18401M"),
    ],
)
def test_a_steward_of_many_rows_gets_more_memory(
    mem_gb: str, rows: int, asked: str, tmp_path: Path
) -> None:
    slurm = profile("devcluster", f"slurm.mem_gb={mem_gb}")
    assert f"{asked}\n" in steward_batch(RunPaths(tmp_path), 1, slurm, rows).script()
    silent = profile("devcluster", "slurm.mem_gb=null")  # nodes without RealMemory refuse any
    assert "--mem" not in steward_batch(RunPaths(tmp_path), 1, silent, rows).script()


@pytest.mark.parametrize(
    "override",
    ["slurm.mem_gb=-1", "slurm.signal_delay_s=-1", "slurm.signal_delay_s=70000",
     "slurm.watchdog_s=-1", "slurm.start_up_s=-1"],
)  # fmt: skip
def test_values_out_of_range(override: str) -> None:
    with pytest.raises(ConfigError, match=r"out of range"):
        profile("devcluster", override)


# ---------------------------------------------------------------------------------- what is refused
def test_a_signal_that_would_come_as_the_tasks_start_is_refused(tmp_path: Path) -> None:
    """Ranks that drain at once render nothing, and the chain would end without naming the cause."""
    too_early = ("slurm.timeout_min=1", "slurm.signal_delay_s=60")
    with pytest.raises(ConfigError, match=r"slurm\.signal_delay_s: 60 .*slurm\.timeout_min"):
        check_profile(profile("devcluster", *too_early))
    check_profile(profile("devcluster", "slurm.timeout_min=1", "slurm.signal_delay_s=59"))
    check_profile(profile("local", *too_early))  # nobody sends a signal there


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_of_the_project_is_accepted(name: str) -> None:
    check_profile(profile(name))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("array=0-3", "shards"), ("signal=USR1@9", r"slurm\.signal_delay_s"), ("output=x", "logs"),
        ("error=x", "logs"), ("job-name=mine", "found by"), ("job_name=mine", "found by"),
        ("time='10'", r"slurm\.timeout_min"), ("exclude=n1", r"slurm\.exclude"), ("wait=x", "run"),
        ("depend=afterok:1", "dependency"), ("dependency='afterok:1?afterok:2'", r"`\?`"),
    ],
)  # fmt: skip
def test_options_that_a_run_rests_on_are_refused(option: str, told: str) -> None:
    slurm = profile("devcluster", f"slurm.extra={{{option.replace('=', ': ')}}}")
    key = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"slurm\.extra\.{key}: .*{told}"):
        check_profile(slurm)


@pytest.mark.parametrize("verb", ["plan", "run", "submit"])
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("slurm=devcluster", "slurm.extra.array=0-3"), "slurm.extra.array"),
        (("slurm=devcluster", "slurm.timeout_min=1", "slurm.signal_delay_s=90"), "signal_delay_s"),
        (("slurm=inline", "slurm.nodes=2"), "slurm.nodes"),
        (("slurm=inline", "slurm.ranks_per_node=2"), "slurm.ranks_per_node"),
    ],
)
def test_plan_refuses_what_submit_refuses(
    verb: str,
    overrides: tuple[str, ...],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = f"output.root_dir={tmp_path}"
    assert main([verb, str(ROOT / "jobs" / "demo.yaml"), root, *overrides]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------- in the scripts
def test_a_dependency_of_ones_own_is_for_the_tasks_and_joins_ours(tmp_path: Path) -> None:
    """If it replaced ours, the steward would start at once and submit another and another."""
    slurm = profile("devcluster", "slurm.extra={dependency: 'afterok:123', nice: '5'}")
    run = RunPaths(tmp_path)
    (tasks,) = task_batches(run, 1, 3, slurm, 1000)
    assert "--dependency=afterok:123\n" in tasks.script()
    assert "--dependency=afterok:123,afterany:7\n" in after(tasks, ["7"]).script()
    steward = after(steward_batch(run, 1, slurm, rows=9), ["7", "8"]).script()
    assert "--dependency=afterany:7:8\n" in steward and "--nice=5\n" in steward


def test_an_option_without_a_value(tmp_path: Path) -> None:
    """And one that a copied profile has is taken back by `false`."""
    extra = "slurm.extra={contiguous: true, overcommit: false, comment: a b}"
    (batch,) = task_batches(RunPaths(tmp_path), 1, 1, profile("devcluster", extra), 9)
    assert "#SBATCH --contiguous\n" in batch.script()
    assert "#SBATCH --comment='a b'\n" in batch.script()
    assert "overcommit" not in batch.script()


def test_only_ranks_get_the_drain_signal(tmp_path: Path) -> None:
    """It would kill the steward and the probe, which have no handler for it."""
    slurm = profile("h100x8", "slurm.signal_delay_s=900")
    assert "--signal=USR2@900\n" in task_batches(RunPaths(tmp_path), 1, 1, slurm, 9)[0].script()
    for batch in (
        steward_batch(RunPaths(tmp_path), 1, slurm, rows=9),
        probe_batch(tmp_path, "x", slurm, 2),
    ):
        assert "--signal" not in batch.script()


def test_ranks_get_the_environment_of_their_batch_script(tmp_path: Path) -> None:
    """Under --export=NONE srun would hand on Slurm's own variables alone."""
    (batch,) = task_batches(RunPaths(tmp_path), 1, 1, profile("cpu"), 9)
    assert batch.script().index("export SLURM_EXPORT_ENV=ALL\n") < batch.script().index("srun ")


@pytest.mark.parametrize(
    ("shards", "window", "arrays"), [(5, 1, 5), (0, 5, 0), (1, 5, 1), (9, 5, 2), (8, 3, 4)]
)
def test_there_is_no_array_without_shards(shards: int, window: int, arrays: int) -> None:
    slurm = profile("devcluster", "slurm.nodes=8")
    assert array_count(shards, window, slurm) == arrays


# ------------------------------------------------------------------------------------------- paths
def test_what_slurm_would_replace_in_a_path_is_escaped(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "%j-100% it's #1 $(x)")
    folder = str(run.root).replace("%", "%%")
    slurm = profile("devcluster")
    batches = (*task_batches(run, 1, 3, slurm, 1000), steward_batch(run, 1, slurm, rows=9))
    for batch, name in zip(batches, ("%A_%a.log", "%j.log"), strict=True):
        path = f"{folder}/{batch.folder.relative_to(run.root)}/{name}"
        script = batch.script()
        for option in ("output", "error"):
            assert f"#SBATCH --{option}={shlex.quote(path)}\n" in script
            assert shlex.quote(f"--{option}={path}") in script.splitlines()[-1]


@pytest.mark.parametrize(
    ("executor", "name", "said"),
    [
        ("slurm", "back\\slash", "with a backslash in it"),
        ("slurm", "new\nline", "with '\\n' in it"),
        ("slurm", "no utf-8 \udcfc", "with '\\udcfc' in it"),
        ("local", "%j-done", "with '%j' in it"),
        ("local", "100%a", "with '%a' in it"),
    ],
)
def test_a_path_that_cannot_be_told_is_refused(executor: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_folder(executor, Path("/data") / name)
    assert said in str(caught.value)


def test_other_paths_are_taken() -> None:
    for executor in ("slurm", "local", "inline"):
        check_folder(executor, Path('/it\'s a "#" $(x) `y` 100% ü节;&*?[1]{x}~\t'))
    check_folder("inline", Path("/%j/back\\slash"))
    check_folder("slurm", Path("/%j"))


def test_a_run_is_refused_before_its_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["--dry-run"]):
        argv = ["submit", str(ROOT / "jobs" / "demo.yaml"), *options]
        assert main([*argv, f"output.root_dir={tmp_path}/%j/x"]) == 2
        assert "cannot start a run below a path with '%j' in it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------- keys of Slurm, elsewhere
@pytest.mark.parametrize(
    ("executor", "override"),
    [
        ("local", "slurm.partition=gpu"),
        ("local", "slurm.mem_gb=4"),
        ("local", "slurm.extra={reservation: week12}"),
        ("local", "slurm.srun_args=[--label]"),
        ("local", "slurm.array_parallelism=4"),
        ("inline", "slurm.cpus_per_rank=4"),
        ("inline", "slurm.exclude=n1"),
        ("inline", "slurm.setup=[module load cuda]"),
    ],
)
def test_a_wish_to_slurm_that_nobody_hears_is_refused(executor: str, override: str) -> None:
    slurm = profile(executor, override)
    with pytest.raises(ConfigError) as caught:
        check_profile(slurm)
    key = override.partition("=")[0]
    assert str(caught.value).startswith(f"{key}: ")
    assert f"means nothing to slurm.executor={executor}" in str(caught.value)


def test_what_a_local_run_uses_is_taken() -> None:
    used = ("slurm.setup=[module load x]", "slurm.gpus_per_node=2", "slurm.timeout_min=9")
    check_profile(profile("local", *used, "slurm.watchdog_s=5", "slurm.max_attempts=1"))


def test_a_line_break_cannot_reach_the_head_of_a_script() -> None:
    for override in ("slurm.account=a\n#SBATCH --wrap=x", "slurm.extra.comment=a\nb"):
        with pytest.raises(ConfigError, match="has a line break, which sbatch does not take"):
            check_profile(profile("devcluster", override))


def test_a_new_profile_gets_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", "init", "local"]) == 2
    assert "'local': is a packaged profile; take another name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
