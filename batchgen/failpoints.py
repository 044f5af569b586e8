"""Named crash points for the durability tests.

`BATCHGEN_FAILPOINT="name:n:action"` acts at the n-th pass of the point `name` (1-based; n may be
`*`): `kill` sends this process SIGKILL, `raise` raises RuntimeError, `enospc` raises OSError
ENOSPC, `stop` sends SIGSTOP. Without the variable a point costs one dictionary look-up.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

_passes: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Act here if the environment asks for it; otherwise do nothing."""
    wanted = os.environ.get("BATCHGEN_FAILPOINT")
    if not wanted:
        return
    point, nth, action = wanted.split(":")
    if point != name:
        return
    _passes[name] += 1
    if nth == "*" or _passes[name] == int(nth):
        _act(name, action)


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "raise":
        raise RuntimeError(f"failpoint {name}")
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    else:
        raise ValueError(f"BATCHGEN_FAILPOINT: unknown action {action!r}")
