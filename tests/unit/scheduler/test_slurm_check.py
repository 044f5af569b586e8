"""The probe of two nodes, played by two threads, and what is made of good and bad reports."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchgen.config.build import build
from batchgen.config.schema import DeviceConfig, SlurmConfig
from batchgen.durable import write_json
from batchgen.records import RankInfo
from batchgen.scheduler.setup import probe
from batchgen.scheduler.setup.findings import (
    CheckLine,
    NodeClock,
    device_block,
    judge,
    measured_device,
    with_device,
)
from batchgen.scheduler.setup.probe import Environment, NodeReport, RankReport, Table

SLURM = SlurmConfig(executor="slurm", ranks_per_node=2, gpus_per_node=2, mem_gb=8)
GPU_SLURM = replace(SLURM, device=DeviceConfig(name="h100"))
HERE = Environment("/venv/bin/python", "3.12.1", "/venv/batchgen", "0.1.0")
FIGURES = {"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.2, "matmul_tflops": 712.3}


# --------------------------------------------------------------------------------------- two nodes
def play(folder: Path, patience_s: float = 20.0) -> list[NodeReport]:
    """Both nodes of a probe at once, and a login node that asks for the time."""
    write_json(folder / "probe.json", {"nodes": 2, "slurm": asdict(SLURM)})
    (folder / "clock.login").touch()
    ranks = [RankInfo(0, 4, 0, 0, 0, "n1"), RankInfo(2, 4, 0, 0, 0, "n2")]
    with ThreadPoolExecutor(2) as pool:
        started = [
            pool.submit(probe._node, Table(folder, side, patience_s), rank)
            for side, rank in zip("ab", ranks, strict=True)
        ]
        return [each.result() for each in started]


@pytest.fixture(autouse=True)
def no_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "sbatch_problem", lambda slurm: "")


def said(findings: list[CheckLine]) -> dict[str, tuple[str, str]]:
    return {f.what: (f.verdict, f.said) for f in findings}


def test_two_nodes_on_a_good_folder(tmp_path: Path) -> None:
    nodes = play(tmp_path)
    assert [node.problem for node in nodes] == ["", ""]
    assert sorted(nodes[0].races_won + nodes[1].races_won) == list(range(probe.RACES))
    assert len(nodes[0].append_s) == probe.LINES and nodes[1].reads > 0
    verdicts = said(judge(SLURM, HERE, ranks(), nodes, []))
    for what in ("mkdir race", "rename", "append"):
        assert verdicts[what][0] == "ok"


def test_a_mkdir_that_is_not_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **k: real(self, exist_ok=True))
    verdict, text = said(judge(SLURM, HERE, ranks(), play(tmp_path), []))["mkdir race"]
    assert verdict == "fail" and text.startswith("100 of 100")


def test_a_rename_that_is_not_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(path: Path, data: bytes) -> None:
        with path.open("wb", buffering=0) as file:
            for start in range(0, max(len(data), 1), 4000):
                file.write(data[start : start + 4000])
                os.sched_yield()

    real = probe.write_bytes_atomic
    monkeypatch.setattr(
        probe,
        "write_bytes_atomic",
        lambda path, data: (in_place if path.name == "replaced" else real)(path, data),
    )
    verdict, text = said(judge(SLURM, HERE, ranks(), play(tmp_path), []))["rename"]
    assert verdict == "fail" and "torn" in text


def test_nodes_that_do_not_share_the_folder(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    write_json(alone / "probe.json", {"nodes": 2, "slurm": asdict(SLURM)})
    (alone / "clock.login").touch()
    report = probe._node(Table(alone, "a", 0.2), RankInfo(0, 4, 0, 0, 0, "n1"))
    assert report.problem == "n1: hello.b was not seen within 0 s"
    verdict, text = said(judge(SLURM, HERE, ranks(), [report, report], []))["shared folder"]
    assert verdict == "fail" and text == report.problem


# ----------------------------------------------------------------------------------------- verdicts
def ranks(**changed: Any) -> list[RankReport]:
    """Two CPU nodes of two ranks; `changed` on rank 3."""
    found = [
        RankReport(
            rank=n,
            world_size=4,
            local_rank=n % 2,
            host=f"n{1 + n // 2}",
            visible="0,1",
            figures={"name": "cpu", "memory_gib": 64.0, "matmul_tflops": 0.1, "h2d_gbs": 8.0},
            **asdict(HERE),
        )
        for n in range(4)
    ]
    return [*found[:3], replace(found[3], **changed)]


def gpu_ranks(**changed: Any) -> list[RankReport]:
    figures = {**FIGURES, "h2d_gbs": 51.26}
    found = [replace(r, device=f"GPU-{r.local_rank}", figures=figures) for r in ranks()]
    return [*found[:3], replace(found[3], **changed)]


def nodes(**changed: Any) -> list[NodeReport]:
    half = range(0, probe.RACES, 2)
    first = NodeReport("n1", "/tmp", 50.0, 900.0, "", tuple(half), 0, 0, (0.1,))
    second = replace(first, host="n2", races_won=tuple(n + 1 for n in half), reads=99)
    return [first, replace(second, **changed)]


def judged(slurm: SlurmConfig, reports: list[RankReport], **changed: Any) -> dict[str, Any]:
    clock = NodeClock("n1", asked=100.0, told=100.2, read=100.5)
    return said(judge(slurm, HERE, reports, nodes(**changed), [clock]))


def test_all_is_well() -> None:
    assert {v for v, _ in judged(SLURM, ranks()).values()} == {"ok"}
    found = judged(GPU_SLURM, gpu_ranks())
    assert {v for v, _ in found.values()} == {"ok"}
    assert found["device"][1] == "4 x NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("changed", "what", "verdict", "words"),
    [
        ({"version": "0.2.0"}, "batchgen", "fail", "0.1.0 here, n2: 0.2.0"),
        ({"python_version": "3.11.0"}, "python", "warn", "n2: 3.11.0"),
        ({"package": "/other"}, "package", "warn", "n2: /other"),
        ({"world_size": 1}, "ranks", "fail", "n1: 2, n2: 2"),
        ({"local_rank": 0}, "ranks", "fail", "n1: 2, n2: 2"),
        ({"host": "n1"}, "ranks", "fail", "n1: 3, n2: 1"),
        ({"problem": "ImportError: libcudart"}, "device", "fail", "n2: ImportError: libcudart"),
        ({"device": ""}, "device", "fail", "1 of 4 ranks see no GPU"),
        ({"device": "GPU-0"}, "device", "warn", "several ranks share a GPU on n2"),
        ({"figures": {"name": "NVIDIA L4"}}, "device", "warn", "3 x NVIDIA H100"),
    ],
)
def test_a_rank_that_differs(changed: dict[str, Any], what: str, verdict: str, words: str) -> None:
    found = judged(GPU_SLURM, gpu_ranks(**changed))[what]
    assert found[0] == verdict and words in found[1]


@pytest.mark.parametrize(
    ("changed", "what", "verdict", "words"),
    [
        ({"sbatch": "sbatch: error: Access denied\nmore"}, "sbatch", "warn", "Access denied"),
        ({"scratch_gib": 0.5}, "scratch", "warn", "0 GiB free in /tmp"),
        ({"shared_gib": 1.0}, "space", "warn", "1 GiB free"),
        ({"append_s": (31.0,)}, "append", "warn", "31.00 s"),
        ({"races_won": (0, 1)}, "mkdir race", "fail", "of 100 won by both"),
        ({"torn": 3}, "rename", "fail", "3 of 99"),
    ],
)
def test_a_node_that_differs(changed: dict[str, Any], what: str, verdict: str, words: str) -> None:
    found = judged(SLURM, ranks(), **changed)[what]
    assert found[0] == verdict and words in found[1]


@pytest.mark.parametrize(
    ("told", "skew", "verdict"),
    [
        (99.0, -1, "ok"),
        (97.0, -3, "warn"),
        (100.7, 0, "ok"),
        (104.0, 3, "warn"),
        (161.0, 60, "fail"),
    ],
)
def test_clocks(told: float, skew: float, verdict: str) -> None:
    """An answer between asking and reading proves nothing wrong."""
    clock = NodeClock("n1", asked=100.0, told=told, read=101.0)
    assert clock.skew_s == skew
    found = said(judge(SLURM, HERE, ranks(), nodes(), [clock]))["clock"]
    assert found[0] == verdict
    assert said(judge(SLURM, HERE, ranks(), nodes(), []))["clock"][0] == "warn"


def test_one_node_alone() -> None:
    alone = judge(SLURM, HERE, ranks()[:2], nodes()[:1], [])
    assert said(alone)["shared folder"] == ("warn", "not tried: only one node")


# ------------------------------------------------------------------------------------------ figures
def test_figures_of_a_device() -> None:
    device = measured_device(GPU_SLURM, gpu_ranks())
    assert device is not None and device.name == "h100"  # runs are found by it: kept
    assert (device.memory_gib, device.matmul_tflops, device.h2d_gbs) == (79.0, 712.0, 51.0)
    cpu = measured_device(SLURM, ranks())
    assert cpu is not None and cpu.memory_gib == 4.0  # half of the node's 8 GB, not of the machine
    assert measured_device(SLURM, [replace(r, figures=None) for r in ranks()]) is None


@pytest.mark.parametrize("form", ["flow", "block", "absent"])
def test_figures_go_into_a_profile(form: str) -> None:
    """The rest of the file, comments too, stays as it is."""
    before = {
        "flow": "device: {name: cpu, memory_gib: 1}  # old\n",
        "block": "device:  # old\n  name: cpu\n  # told by nobody\n  memory_gib: 1\n",
        "absent": "",
    }[form]
    text = f"# mine\nnodes: 3   # three\n{before}qos: high\n"
    device = DeviceConfig(name="h100", memory_gib=79.0, matmul_tflops=712.0)
    after = with_device(text, device)
    assert after.startswith("# mine\nnodes: 3   # three\n") and "qos: high\n" in after
    assert "old" not in after and device_block(device) in after
    assert build(SlurmConfig, yaml.safe_load(after)).device == device


def test_sbatch_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert "sbatch" in probe.sbatch_problem(SLURM)
    refusing = tmp_path / "sbatch"
    refusing.write_text("#!/bin/sh\necho 'sbatch: error: no' >&2; exit 1\n")
    refusing.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert probe.sbatch_problem(SLURM) == "sbatch: error: no"
    # of a steward elsewhere, there: its partition is what it is submitted to
    refusing.write_text('#!/bin/sh\necho "sbatch: $* $SBATCH_TIMELIMIT" >&2; exit 1\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        patch.setenv("SBATCH_TIMELIMIT", "mine")
        told = probe.sbatch_problem(replace(SLURM, partition="gpu", steward_partition="cpu"))
    assert "--partition=cpu" in told and "gpu" not in told and "mine" not in told


def test_sbatch_where_the_steward_has_a_python_of_its_own() -> None:
    """The probe runs in the tasks' container: it cannot know."""
    slurm = replace(SLURM, steward_python="/venv/bin/python")
    found = judged(slurm, ranks(), sbatch="sbatch: not found")["sbatch"]
    assert found == ("warn", "not tried: the steward uses steward_python")
