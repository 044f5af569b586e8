"""A run folder whose small files are damaged: every verb says which and why, or does without."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_calls import make_job_folder

from batchgen.cli.main import main
from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths

# Which verbs cannot do without a file; a run with a damaged run.json can still be cancelled.
NEEDED_BY = {
    "run.json": ("status", "collect", "verify", "resume", "retry"),
    "intent.json": ("status", "cancel", "logs", "collect", "verify", "resume", "retry"),
    "jobs.json": ("cancel", "resume", "retry"),
}
Damage = Callable[[Path], object]


def retyped(path: Path) -> None:
    """Every value of the object is of another kind."""
    fields = json.loads(path.read_bytes())
    kept = {"schema": fields["schema"]} if "schema" in fields else {}
    wrong = {name: 7 if isinstance(v, str | list | dict) else "x" for name, v in fields.items()}
    path.write_text(json.dumps(wrong | kept))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "list": lambda path: path.write_text("[1, 2]"),
    "no fields": lambda path: path.write_text('{"schema": 1}'),
    "other kinds": retyped,
    "deep": lambda path: path.write_text("[" * 200_000),
    "folder": folder_instead,
    "pipe": pipe_instead,
    "loop": link_to_itself,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run of two rows that are ok."""
    job_folder = make_job_folder(tmp_path_factory.mktemp("finished"), 2)
    assert main(["run", str(job_folder.job), "model=null-engine"]) == 0
    return RunPaths(next(job_folder.root.iterdir()))


@pytest.fixture
def run(finished: RunPaths, tmp_path: Path) -> Iterator[RunPaths]:
    """It, to be damaged: a copy elsewhere would not have its jobs."""
    whole = shutil.copytree(finished.root, tmp_path / "whole")
    yield finished
    shutil.rmtree(finished.root)
    shutil.move(whole, finished.root)


def file_of(run: RunPaths, name: str) -> Path:
    return {"run.json": run.run_json, "intent.json": run.intent(1), "jobs.json": run.jobs(1)}[name]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NEEDED_BY)
def test_every_verb_names_a_damaged_file(
    name: str, damage: str, run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(run, name)
    DAMAGES[damage](path)
    kept = path.read_bytes() if path.is_file() else b""
    for verb in NEEDED_BY[name]:
        code = main([verb, str(run.root)])
        err = capsys.readouterr().err
        assert (verb, code) == (verb, 2), err
        assert str(path) in err and "Traceback" not in err, (verb, err)
    assert not path.is_file() or path.read_bytes() == kept
    assert not run.submission(2).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_counters_are_as_none(damage: str, run: RunPaths) -> None:
    whole = read_status(run)
    (counters,) = run.counters_dir.rglob("*.json")
    DAMAGES[damage](counters)
    status = read_status(run)
    assert (status.ok, status.left, status.state) == (whole.ok, whole.left, "finished")


def test_a_run_without_a_header_can_be_cancelled(run: RunPaths) -> None:
    run.run_json.write_text("{")
    assert main(["cancel", str(run.root)]) == 0


def test_a_configuration_that_is_none_is_damage(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = json.loads(run.intent(1).read_bytes())
    for config in ("", "[]", "{}", '{"slurm": {"executor": 3}}', "{"):
        run.intent(1).write_text(json.dumps(fields | {"config": config}))
        for verb in ("status", "cancel", "resume"):
            assert main([verb, str(run.root)]) == 2
            assert str(run.intent(1)) in capsys.readouterr().err


def test_keys_of_a_later_version_are_ignored(run: RunPaths) -> None:
    fields = json.loads(run.run_json.read_bytes())
    run.run_json.write_text(json.dumps(fields | {"added_later": 1}))
    assert main(["status", str(run.root)]) == 0


def test_absent_fields_are_named_in_plain_words(
    run: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    run.intent(1).write_text("{}")
    assert main(["status", str(run.root)]) == 2
    said = capsys.readouterr().err
    assert f"{run.intent(1)} cannot be read: Intent: has no number, kind, created" in said
    assert "__init__" not in said
