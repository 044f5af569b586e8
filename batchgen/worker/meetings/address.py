"""Where a process of a task listens, told to the others by a small file in the run folder.

The file says which process is going to listen first, and the address once it does: whoever waits
then sees it die. The port is whichever is free, and the token keeps strangers out.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from batchgen.durable import write_json
from batchgen.errors import BatchgenError, StorageError
from batchgen.processes import ProcessId

NO_SIGN_S = 60.0  # patience with a process that has not even announced itself
CONNECT_S = 5.0  # one try to connect


class Unreachable(BatchgenError):
    """Whoever should listen does not, or is gone."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect, and what to say first."""

    host: str
    port: int
    token: str


def announce(file: Path) -> None:
    """Say that this process is going to listen, first thing in its life. StorageError if the file
    cannot be written."""
    _write(file, {"process": asdict(ProcessId.current())})


def publish(file: Path, address: Address) -> None:
    """Say where this process listens. StorageError if the file cannot be written."""
    _write(file, asdict(address))


def _write(file: Path, content: dict[str, object]) -> None:
    """With its folder and the one above; a submission that is gone is not made again."""
    try:
        for folder in (file.parent.parent, file.parent):
            folder.mkdir(exist_ok=True)
        write_json(file, content)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error}") from error


def listen(host: str, backlog: int) -> socket.socket:
    """A server on whichever port is free, reached by the name or number `host` of this machine.
    OSError if it has no such one."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, *_, (number, *_) = found[0]
    if number != host and ip_address(number).is_loopback:
        number = ""  # a name that means another number elsewhere
    return socket.create_server((number, 0), family=family, backlog=backlog)


def wait_for(file: Path, what: str, patience_s: float, stop: Callable[[], bool]) -> Address:
    """The address in `file`, where `what` (in words) is served. Unreachable if it does not come, if
    the process that announced it died, or if `stop`, which is asked meanwhile, says so."""
    start = time.monotonic()
    while not stop():
        found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        if "port" in found:
            return Address(**found)
        patience = patience_s if found else min(patience_s, NO_SIGN_S)
        if time.monotonic() - start > patience:
            raise Unreachable(f"{file} did not appear within {patience:.0f} s")
        if found and ProcessId(**found["process"]).alive() is False:
            raise Unreachable(f"the rank died before it served {what}")
        time.sleep(0.05)
    raise Unreachable(f"told to end before {what} was there")


def connect(address: Address, patience_s: float, stop: Callable[[], bool]) -> socket.socket:
    """A connection to it; OSError if there is none. Several short tries, since `stop` cannot be
    asked during one."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            connection = socket.create_connection((address.host, address.port), timeout=CONNECT_S)
        except TimeoutError:
            if stop() or time.monotonic() > deadline:
                raise
        else:
            connection.settimeout(patience_s)
            return connection
