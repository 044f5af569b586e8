"""A record of a submission that is not as it was written: a repair goes on without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from quick_cases import first_quick
from run_folder import RunFolder

from batchgen.catalog.verify import verify
from batchgen.cli.main import main
from batchgen.ledger.events import End
from batchgen.ledger.restarts import fence_restart
from batchgen.records import Attempt


@pytest.fixture
def run_folder(make_run_folder: Callable[..., RunFolder]) -> RunFolder:
    """Two submissions of a row each, the second with a restart."""
    made = make_run_folder(2)
    for row in (0, 1):
        number = made.submit([row], executor="inline")
        restart = number - 1
        if restart:
            with made.journal(number) as journal:
                journal.end(End(reason="drained"))
            fence_restart(made.run, Attempt(number, 0, restart, 0))
        with made.journal(number, restart=restart) as journal:
            made.render(journal, row)
            journal.end(End(reason="done"))
    return made


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"created": 1', b'"created": 2'))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", first_quick([changed, emptied, cut, a_folder], 2))
@pytest.mark.parametrize(
    "record",
    [
        "submissions/0001/intent.json",
        "submissions/0002/intent.json",
        "journal/0002/0-r1.accept.json",
    ],
)
def test_it_is_named_with_the_way_on_and_a_repair_moves_it(
    run_folder: RunFolder,
    record: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = str(run_folder.run.root)
    assert main(["collect", root]) == 0
    damage(run_folder.run.root / record)
    if record.startswith("journal/"):  # a line that is gone is missed where lines were counted
        shutil.rmtree(run_folder.run.catalog_rows)
    for verb in ("verify", "collect"):
        assert main([verb, root]) != 0
        told = capsys.readouterr()
        assert record in told.out + told.err
    assert "--repair" in told.err
    assert main(["verify", root, "--repair"]) == 0
    assert f"{record} was moved to" in capsys.readouterr().out
    assert (run_folder.run.orphans / record).exists()
    assert verify(run_folder.run).findings == ()
    assert main(["collect", root]) == main(["status", root]) == 0
    run_folder.submit([0])
