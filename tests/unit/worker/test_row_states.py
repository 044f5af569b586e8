"""State files of rows in flight: whole and of the same row, or not used."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planned_run import row

from batchgen.engine.contract import Snapshot
from batchgen.paths import RunPaths
from batchgen.worker.states import RowStates

ROW = row(5000, 10)
SNAPSHOT = Snapshot(
    4, 1.25, {"latents": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), "sample": np.ones(3)}
)


def states(folder: Path, determinism: str = "strict", layout: str = "cpu float32") -> RowStates:
    return RowStates(RunPaths(folder), 9000, determinism, layout)  # type: ignore[arg-type]


def path(folder: Path) -> Path:
    return RunPaths(folder).row_state(5000, 9000)


def test_a_state_comes_back_as_it_was_and_goes_with_the_commit(tmp_path: Path) -> None:
    assert states(tmp_path).load(ROW) is None
    states(tmp_path).save(ROW, replace(SNAPSHOT, step=2))
    states(tmp_path).save(ROW, SNAPSHOT)
    mine = states(tmp_path)
    loaded = mine.load(ROW)
    assert loaded is not None
    assert (loaded.step, loaded.seconds) == (4, 1.25)
    for name, array in SNAPSHOT.arrays.items():
        assert (
            np.array_equal(loaded.arrays[name], array) and loaded.arrays[name].dtype == array.dtype
        )
    assert [p.name for p in path(tmp_path).parent.iterdir()] == ["5000.safetensors"]
    mine.drop(ROW)
    assert not path(tmp_path).exists()
    mine.drop(ROW)


def damaged(data: bytes, how: str) -> bytes:
    if how == "empty":
        return b""
    if how == "cut":
        return data[:-10]
    if how == "flipped":
        return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    return bytes(len(data))


@pytest.mark.parametrize("how", ["empty", "cut", "flipped", "zeros"])
def test_a_damaged_state_is_passed_over_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    states(tmp_path).save(ROW, SNAPSHOT)
    path(tmp_path).write_bytes(damaged(path(tmp_path).read_bytes(), how))
    mine = states(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert mine.load(ROW) is None
    assert "row row-5000 starts anew" in caplog.text
    mine.drop(ROW)
    assert not path(tmp_path).exists()


def test_a_state_of_another_row_or_mode_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states(tmp_path).save(ROW, SNAPSHOT)
    with caplog.at_level(logging.WARNING):
        assert states(tmp_path).load(replace(ROW, row_key="other")) is None
        assert states(tmp_path, "throughput").load(ROW) is None
        assert states(tmp_path, layout="cuda bfloat16").load(ROW) is None
        assert states(tmp_path, layout="cuda bfloat16").share_left(ROW) == 1.0
        assert states(tmp_path).load(replace(ROW, num_steps=3)) is None
    assert "row_key is 'k', not 'other'" in caplog.text
    assert "determinism is 'strict'" in caplog.text
    assert "layout is 'cpu float32', not 'cuda bfloat16'" in caplog.text
    assert states(tmp_path).load(ROW) is not None


def test_the_head_of_a_state_says_what_is_left(tmp_path: Path) -> None:
    assert states(tmp_path).share_left(ROW) == 1.0
    states(tmp_path).save(ROW, SNAPSHOT)
    assert states(tmp_path).share_left(ROW) == 0.6
    assert states(tmp_path).share_left(replace(ROW, row_key="other")) == 1.0
    path(tmp_path).write_bytes(b"")
    assert states(tmp_path).share_left(ROW) == 1.0


def test_a_row_after_its_last_step_is_still_to_be_decoded(tmp_path: Path) -> None:
    states(tmp_path).save(ROW, replace(SNAPSHOT, step=10))
    loaded = states(tmp_path).load(ROW)
    assert loaded is not None and loaded.step == 10
    assert states(tmp_path).share_left(ROW) == 0.1


def test_a_state_that_cannot_be_reached_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And is not set back when the folder is there again."""
    states(tmp_path).save(ROW, SNAPSHOT)
    mine = states(tmp_path)

    def refuse(path: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", refuse)
        assert mine.load(ROW) is None
        assert mine.share_left(ROW) == 1.0
    assert "row row-5000 starts anew" in caplog.text
    mine.save(ROW, replace(SNAPSHOT, step=3))
    assert states(tmp_path).share_left(ROW) == 0.6


def test_a_zombie_leaves_the_state_of_a_later_attempt_alone(tmp_path: Path) -> None:
    states(tmp_path).save(ROW, replace(SNAPSHOT, step=2))
    zombie, later = states(tmp_path), states(tmp_path)
    assert zombie.load(ROW) is not None and later.load(ROW) is not None
    later.save(ROW, replace(SNAPSHOT, step=6))
    zombie.save(ROW, SNAPSHOT)
    assert states(tmp_path).share_left(ROW) == 0.4
    zombie.drop(ROW)
    assert states(tmp_path).share_left(ROW) == 0.4
    later.drop(ROW)
    assert not path(tmp_path).exists()


def test_whoever_gets_further_replaces_the_state_of_another(tmp_path: Path) -> None:
    """Also one that is damaged: whoever met it begins anew and may not get as far."""
    mine = states(tmp_path)
    states(tmp_path).save(ROW, SNAPSHOT)
    mine.save(ROW, replace(SNAPSHOT, step=7))
    assert states(tmp_path).share_left(ROW) == 0.3
    path(tmp_path).write_bytes(damaged(path(tmp_path).read_bytes(), "flipped"))
    met = states(tmp_path)
    assert met.load(ROW) is None
    met.save(ROW, SNAPSHOT)
    loaded = states(tmp_path).load(ROW)
    assert loaded is not None and loaded.step == 4


def test_a_state_that_cannot_be_deleted_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The row is committed: whoever comes next does not draw it."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    mine = states(tmp_path)
    mine.save(ROW, SNAPSHOT)
    monkeypatch.setattr(Path, "unlink", refuse)
    with caplog.at_level(logging.WARNING):
        mine.drop(ROW)
    assert "state of row row-5000 stays: [Errno 116] Stale file handle" in caplog.text
