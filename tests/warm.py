"""Processes that have imported already what takes long: ranks and commands of the null model.

`start` asks a server, which has imported once, to fork. What comes out is a process like that of
`python -m module`, with its own pid, environment, folder, signals and exit status. A test that is
about a fresh interpreter (what it imports, and from where) starts one by itself.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import IO, Any

# No torch: a rank of the null model has none, and says so where a test asks.
IMPORTED = (
    *("batchgen.cli.main", "batchgen.cli.run", "batchgen.runner.begin", "batchgen.runner.resume"),
    *(
        "batchgen.runner.executors.local",
        "batchgen.runner.executors.slurm",
        "batchgen.runner.steward",
    ),
    *("batchgen.worker.replica", "batchgen.catalog.collect", "batchgen.report.page"),
    *("batchgen.media.formats.png", "pandas", "pyarrow.dataset", "submitit", "rich.console"),
)
ADDRESS = "TEST_WARM_SERVER"  # variable of those that ask it from elsewhere
_LARGEST = 1 << 20  # bytes of one request


class Process:
    """What `subprocess.Popen` is to one that it started, with text on both ends."""

    def __init__(self, line: socket.socket, stdout: IO[str] | None, stderr: IO[str] | None):
        self.stdout, self.stderr = stdout, stderr
        self.pid = int(line.recv(10))
        self.returncode: int | None = None
        self._line = line  # to the server: how the process ended, and whether that was heard

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it says until it ends."""
        assert self.stdout is not None and self.stderr is not None
        began, said = time.monotonic(), {}

        def read(name: str, end: IO[str]) -> None:
            said[name] = end.read()

        ends = {"out": self.stdout, "err": self.stderr}
        readers = [threading.Thread(target=read, args=one, daemon=True) for one in ends.items()]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if timeout is None else max(0, began + timeout - time.monotonic()))
        if any(reader.is_alive() for reader in readers):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        self.wait(timeout)
        self._close()
        return said["out"], said["err"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.wait()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._line], [], [], timeout)[0]:
            self.returncode = int(self._line.recv(10))
            self._line.close()
        return self.returncode

    def _close(self) -> None:
        for end in (self.stdout, self.stderr):
            if end is not None:
                end.close()


def start(
    module: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    folder: str | os.PathLike[str] | None = None,
    *,
    heard: bool = True,
) -> Process:
    """`python -m module argv` in a folder; `env` is added to our environment. A process that is not
    `heard` writes to where we write."""
    asked = {
        "module": module,
        "argv": list(argv),
        "folder": os.fspath(folder or os.getcwd()),
        "env": {**os.environ, "OMP_NUM_THREADS": "1", **env},
    }
    pipes = [os.pipe(), os.pipe()] if heard else []
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.connect("\0" + (os.environ.get(ADDRESS) or server()))
    socket.send_fds(line, [json.dumps(asked).encode()], [end for _, end in pipes] or [1, 2])
    for _, end in pipes:
        os.close(end)
    out, err = [os.fdopen(end) for end, _ in pipes] or (None, None)
    return Process(line, out, err)


@cache
def server() -> str:
    """Where ours listens (a name that is no file's); it ends with this process."""
    address = f"batchgen-warm-{os.getpid()}"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(f"\0{address}")
    listening.listen()
    process = subprocess.Popen(
        [sys.executable, __file__, str(listening.fileno())],
        pass_fds=[listening.fileno()],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    listening.close()
    atexit.register(process.communicate)  # closes its standard input
    return address


def stand_in(path: str) -> None:
    """Makes a file that stands for the interpreter in `python -u -m batchgen.runner.task ...`; it
    needs the variable `ADDRESS`."""
    with open(path, "w") as file:
        file.write(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} "$@"\n')
    os.chmod(path, 0o755)


def main_of_stand_in(argv: Sequence[str]) -> int:
    assert argv[:2] == ["-u", "-m"], argv
    with start(argv[2], argv[3:], {}, heard=False) as process:
        code = process.wait()
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


# ------------------------------------------------------------------------------------ in the server
def serve(listening: socket.socket) -> dict[str, Any] | None:
    """What a process that was forked just now is to be; None when standard input ends."""
    running: dict[int, tuple[int, socket.socket]] = {}  # of each process: pidfd -> pid, its line
    ended: dict[socket.socket, int] = {}  # line -> pid of a process that nobody has waited for
    while True:
        for ready in select.select([0, listening, *running, *ended], [], [])[0]:
            if ready == 0:
                return None
            if ready is listening:
                line, _ = listening.accept()
                text, (out, err), _, _ = socket.recv_fds(line, _LARGEST, 2)
                if (pid := os.fork()) == 0:
                    for number, end in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
                        os.dup2(end, number)
                        os.close(end)
                    for one in (listening, line, *ended, *(line for _, line in running.values())):
                        one.close()
                    for pidfd in running:
                        os.close(pidfd)
                    return dict(json.loads(text))
                os.close(out)
                os.close(err)
                line.send(str(pid).encode())
                running[os.pidfd_open(pid)] = (pid, line)
            elif ready in ended:  # the other end is closed
                os.waitpid(ended.pop(ready), 0)
                ready.close()
            else:
                pid, line = running.pop(ready)
                os.close(ready)
                with suppress(BrokenPipeError):
                    line.send(str(_code(pid)).encode())
                ended[line] = pid


def _code(pid: int) -> int:
    """How a process ended, which stays until it is waited for, as a child of the test would."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def become(asked: dict[str, Any]) -> None:
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["folder"])
    sys.argv = ["-m", *asked["argv"]]
    sys.modules.pop(asked["module"], None)
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1].startswith("-"):
        sys.exit(main_of_stand_in(sys.argv[1:]))
    gc.disable()  # what is imported is no garbage
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    if (asked := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        become(asked)
