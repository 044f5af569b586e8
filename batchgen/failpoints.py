"""Named crash points for the durability tests.

`BATCHGEN_FAILPOINT="name:n:action,..."` acts at the n-th pass of the point `name` (1-based; `*` =
every pass): `kill` sends this process SIGKILL, `raise` raises RuntimeError, `oom` what torch
raises for want of device memory, `enospc` raises OSError ENOSPC, `stop` sends SIGSTOP, `sleep52`
sleeps 52 s whatever signals come, `until/a/path` waits until that file is there, `hog` takes memory
until this process is killed. Beside the steps of a commit there are `row.<row_id>` and
`host.<host>`, where a row begins; of rank N of a replica `meet.N`, `forward.N`, `decode.N` (of what
all decode), `collective.N` and `report.N` (orders are applied); and where device memory is asked
for, `memory.move` (of a component), `memory.encode`, `memory.denoise` and `memory.decode`.
Without the variable a point costs one dictionary look-up.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

HOG_MIB = 4096  # at most, so that a machine that kills no process survives
_passes: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Act here if the environment asks for it; otherwise do nothing."""
    here = [(nth, action) for point, nth, action in _wanted() if point == name]
    if here:
        _passes[name] += 1
    for nth, action in here:
        if nth == "*" or _passes[name] == int(nth):
            _act(name, action)


def is_armed(name: str) -> bool:
    """Whether the environment asks for an action at this point."""
    return any(point == name for point, _, _ in _wanted())


def _wanted() -> Iterator[tuple[str, str, str]]:
    text = os.environ.get("BATCHGEN_FAILPOINT")
    for entry in text.split(",") if text else ():
        point, nth, action = entry.split(":")
        yield point, nth, action


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "raise":
        raise RuntimeError(f"failpoint {name}")
    elif action == "oom":
        from torch import OutOfMemoryError

        raise OutOfMemoryError(f"failpoint {name}")
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    elif action.startswith("sleep"):
        _sleep(float(action.removeprefix("sleep")))
    elif action.startswith("until"):
        _wait_for(action.removeprefix("until"))
    elif action == "hog":
        _hog()
    else:
        raise ValueError(f"BATCHGEN_FAILPOINT: unknown action {action!r}")


def _sleep(seconds: float) -> None:
    """Sleep, whatever signals come."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.5)


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.1)


def _hog() -> None:
    """Take memory and write to it, so that it counts; MemoryError if the process is not killed."""
    taken = [bytearray(b"x") * (64 << 20) for _ in range(HOG_MIB // 64)]
    raise MemoryError(f"{len(taken)} x 64 MiB were there to take")
