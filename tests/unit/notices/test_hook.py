"""The command that gets events: whatever it does, nobody else is held up."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest
from waiting import process_state, wait_for

from batchgen.notices import hook as module
from batchgen.notices.hook import Hook


def told(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_come_in_order_each_as_one_line(tmp_path: Path) -> None:
    hook = Hook(f"cat >> {tmp_path / 'told'}")
    given = [{"event": "row_failed", "n": n, "text": "☃\n'\"$(x)"} for n in range(5)]
    for event in given:
        hook.tell(event)
    hook.close()
    assert told(tmp_path / "told") == given
    assert hook.failed == 0


def test_a_command_that_fails_is_said_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook = Hook("echo first >&2; echo no such channel >&2; exit 3")
    for n in range(4):
        hook.tell({"n": n})
    hook.close()
    assert [record.message for record in caplog.records] == [
        "output.on_event: echo first >&2; echo no such channel >&2; exit 3: exit status 3: "
        "no such channel",
        "output.on_event: 4 of 4 events were not told",
    ]


def test_a_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.5)
    pids = tmp_path / "pids"
    hook = Hook(f"sleep 300 & echo $! $$ > {pids}; sleep 300")
    hook.tell({})
    hook.close()
    assert "it was still at work after 0.5 s and was killed" in caplog.text
    for pid in pids.read_text().split():
        wait_for(lambda pid=int(pid): process_state(pid) in ("", "Z"))


def test_nobody_waits_for_long_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    hook = Hook("sleep 300")
    for n in range(3):
        hook.tell({"n": n})
    began = time.monotonic()
    hook.close()
    assert time.monotonic() - began < 5
    assert "3 of 3 events were not told" in caplog.text


def test_only_so_many_events_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WAITING", 3)
    gate = tmp_path / "gate"
    hook = Hook(f"until [ -e {gate} ]; do sleep 0.01; done; cat >> {tmp_path / 'told'}")
    began = time.monotonic()
    for n in range(50):
        hook.tell({"n": n})
    assert time.monotonic() - began < 5, "nobody waits for a slow command"
    gate.touch()
    hook.close()
    numbers = [event["n"] for event in told(tmp_path / "told")]
    assert numbers[:3] == [0, 1, 2]
    assert 3 <= len(numbers) <= 4
    assert hook.failed == 50 - len(numbers)
    assert f"{hook.failed} of 50 events were not told" in caplog.text


def test_a_command_need_not_read_nor_exist(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    hook = Hook("true")
    hook.tell({"error": "x" * 1_000_000 + "\ud800"})  # no text that UTF-8 could hold
    hook.close()
    assert hook.failed == 0
    absent = Hook("no-such-command-here")
    absent.tell({})
    absent.close()
    assert "exit status 127" in caplog.text


def test_without_events_no_thread_is_started() -> None:
    before = os.listdir("/proc/self/task")
    Hook("true").close()
    assert os.listdir("/proc/self/task") == before
