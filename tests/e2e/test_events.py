"""Events of real runs: each is told once, whoever finds it, and a command that hangs or fails does
nothing to the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from cli_calls import NULL, JobFolder, rows_of
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_for

from batchgen.notices import hook
from batchgen.paths import RunPaths

NULL_FORMAT = (NULL, "output.format=npy")
ONCE = {"submission_ended": 1, "run_ended": 1}


@pytest.fixture
def folder(new_job_folder: Callable[..., JobFolder]) -> JobFolder:
    made: JobFolder = new_job_folder(4)
    (made.folder / "half_bad.py").write_text(
        "def odd(frames, request):\n    return float(request.seed % 2)\n"
    )
    return made


def hooked(folder: JobFolder) -> str:
    return f"output.on_event=cat >> {folder.folder / 'told'}"


def told(folder: JobFolder) -> list[dict[str, Any]]:
    file = folder.folder / "told"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def kinds(folder: JobFolder) -> Counter[str]:
    return Counter(event["event"] for event in told(folder))


def figures(run: RunPaths) -> dict[str, float]:
    """Of metrics.prom: rows by status, and the state."""
    families = text_string_to_metric_families(run.metrics.read_text())
    samples = [sample for family in families for sample in family.samples]
    rows = {s.labels["status"]: s.value for s in samples if s.name == "batchgen_rows"}
    return rows | {s.labels["state"]: s.value for s in samples if s.name == "batchgen_state"}


BAD = 'output.judges=[{call: "half_bad:odd", policy: fail, at_least: {odd: 1}}]'


def test_a_run_tells_what_becomes_of_it(folder: JobFolder) -> None:
    done = folder.run_here(*NULL_FORMAT, hooked(folder), BAD)
    assert done.code == 1, done.err
    events = told(folder)
    assert [event["event"] for event in events] == [
        "started",
        "row_failed",
        "row_failed",
        "submission_ended",
        "run_ended",
    ]
    assert {event["run"] for event in events} == {str(done.run.root)}
    assert {event["submission"] for event in events} == {1}
    assert (events[0]["rows"], events[0]["shards"]) == (4, 1)
    failed = events[1]
    assert (failed["row_id"], failed["error_type"]) == ("row-000", "Rejected")
    assert failed["text"] == (
        f"{done.run.root.name}: row row-000 failed: Rejected: half_bad:odd: odd 0 < 1"
    )
    last = events[-1]
    assert (last["ok"], last["failed"], last["left"], last["state"]) == (2, 2, 0, "finished")
    assert last["text"].endswith("the run is over; 2 of 4 rows ok, 2 failed, 0 left")
    assert figures(done.run)["failed"] == 2
    assert figures(done.run)["finished"] == 1
    # what is resumed is told anew, under its own number
    folder.here("resume", str(done.run.root), "output.judges=[]", "--json")
    again = told(folder)[len(events) :]
    assert [event["event"] for event in again] == ["started", "submission_ended", "run_ended"]
    assert {event["submission"] for event in again} == {2}
    assert again[-1]["ok"] == 4


def test_several_ranks_tell_each_event_once(folder: JobFolder) -> None:
    """The last rank says what nobody is left to say: `submit` has returned."""
    ranks = ("slurm.executor=local", "slurm.ranks_per_node=2", "row_defaults.num_steps=60")
    done = folder.call(
        "submit", str(folder.job), *NULL_FORMAT, hooked(folder), BAD, *ranks, "--json"
    )
    assert done.code == 0, done.err
    wait_for(lambda: kinds(folder)["run_ended"])
    assert kinds(folder) == {"started": 1, "row_failed": 2, **ONCE}
    assert told(folder)[-1]["ok"] == 2
    wait_for(lambda: figures(done.run)["finished"] == 1)
    # who comes later finds it told
    assert folder.here("collect", str(done.run.root)).code == 1
    assert kinds(folder) == {"started": 1, "row_failed": 2, **ONCE}


def test_the_budget_is_told_once(folder: JobFolder) -> None:
    ranks = ("slurm.executor=local", "slurm.ranks_per_node=2", "row_defaults.num_steps=60")
    done = folder.run(*NULL_FORMAT, hooked(folder), "system.max_gpu_hours=0.0001", *ranks)
    assert done.code == 1, done.err
    assert kinds(folder) == {"started": 1, "budget_reached": 1, **ONCE}
    (spent,) = (event for event in told(folder) if event["event"] == "budget_reached")
    assert spent["device_hours"] >= spent["max_gpu_hours"] == 0.0001


@pytest.mark.parametrize("command", ["exit 3", "sleep 300", "no-such-command"])
def test_a_command_that_does_not_work_does_nothing_to_the_run(
    folder: JobFolder, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "PATIENCE_S", 0.3)
    plain = folder.run_here(*NULL_FORMAT)
    done = folder.run_here(*NULL_FORMAT, f"output.on_event={command}")
    assert done.code == 0, done.err
    assert rows_of(done.run).frames_sha256.equals(rows_of(plain.run).frames_sha256)
    assert "output.on_event" not in done.out


def test_cancel_says_that_the_run_is_over(folder: JobFolder) -> None:
    slow = ("slurm.executor=local", "row_defaults.num_steps=1000")
    done = folder.call("submit", str(folder.job), *NULL_FORMAT, hooked(folder), *slow, "--json")
    wait_for(lambda: [*done.run.journals.rglob("*.jsonl")])
    assert folder.here("cancel", str(done.run.root)).code == 0
    assert kinds(folder) == {"started": 1, **ONCE}
    assert told(folder)[-1]["left"] == 4


def test_without_a_command_there_are_no_events(folder: JobFolder) -> None:
    done = folder.run_here(*NULL_FORMAT)
    assert not (done.run.root / "events").exists()
    assert done.run.metrics.is_file()
