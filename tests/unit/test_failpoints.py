"""Points, passes and actions."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections import Counter

import pytest

from batchgen import failpoints
from batchgen.failpoints import failpoint, is_armed


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_passes", Counter())


def test_several_points_act_each_at_its_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "row.a:2:raise,host.n1:*:enospc,row.b:1:raise")
    failpoint("row.a")
    failpoint("row.c")
    for name in ("row.a", "row.b"):
        with pytest.raises(RuntimeError, match=f"failpoint {name}"):
            failpoint(name)
    failpoint("row.a")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            failpoint("host.n1")
        assert caught.value.errno == errno.ENOSPC
    assert is_armed("row.b") and not is_armed("row.c")


def test_one_point_may_act_at_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "row.a:2:raise,row.a:3:enospc")
    failpoint("row.a")
    with pytest.raises(RuntimeError):
        failpoint("row.a")
    with pytest.raises(OSError):
        failpoint("row.a")
    failpoint("row.a")


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATCHGEN_FAILPOINT", raising=False)
    failpoint("row.a")
    assert not is_armed("row.a")


def test_an_unknown_action_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "row.a:1:explode")
    with pytest.raises(ValueError, match="explode"):
        failpoint("row.a")


def test_kill_and_hog_end_the_process() -> None:
    code = "from batchgen.failpoints import failpoint; failpoint('x'); print('survived')"
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 29,) * 2); {code}"
    for program, action, expected in ((code, "kill", -signal.SIGKILL), (limited, "hog", 1)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"BATCHGEN_FAILPOINT": f"x:1:{action}"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (expected, "")
    assert "MemoryError" in done.stderr
