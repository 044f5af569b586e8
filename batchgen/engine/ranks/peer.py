"""What the leader of a replica and one of its followers tell each other, over one connection.

Imports no torch: ranks meet before they wake up their devices.
"""

from __future__ import annotations

import io
import pickle
import select
import socket
import struct
import sys
import threading
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

_HEAD = struct.Struct("!BQ")  # kind, bytes of the payload
_READ = 1 << 20
# A machine that lost its power closes no connection: whoever listens to it misses its answers to
# these after a minute.
_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Kind(IntEnum):
    """What a message is."""

    BEAT = 0  # the sender moves
    SHARED = 1  # the leader's, for every follower: orders, or what its work gave
    REPORT = 2  # a follower has applied orders
    SIGNALLED = 3  # a follower was sent a signal
    FAILED = 4  # what ends the sender
    OVER = 5  # the leader needs its followers no more


class Gone(Exception):
    """The other end is closed: its process is no more."""


class Peer:
    """The rank at the other end. One thread reads, one sends; `beat` may be called from any."""

    def __init__(self, connection: socket.socket, name: str, patience_s: float) -> None:
        """`name`: the other rank, in words. To send takes at most `patience_s`."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES.items():
            if hasattr(socket, option):  # not everywhere
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        connection.settimeout(patience_s)
        self.name = name
        self.own_address: str = connection.getsockname()[0]  # that the other rank has reached
        self._connection = connection
        self._sending = threading.Lock()
        self._read = bytearray()

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Raises Gone where nobody listens any more, or takes nothing in for too long; from then
        on both ends are gone for each other, since a message may be there in part."""
        try:
            with self._sending:
                self._connection.sendall(_HEAD.pack(kind, len(payload)))
                self._connection.sendall(payload)
        except OSError as error:  # TimeoutError is one
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            raise Gone(f"{self.name} takes nothing in: {error}") from error

    def beat(self) -> None:
        """Say that this rank moves, if that goes at once."""
        if not self._sending.acquire(blocking=False):
            return  # a message on its way says so too
        try:
            if select.select([], [self._connection], [], 0)[1]:
                self._connection.sendall(_HEAD.pack(Kind.BEAT, 0))
        except OSError:
            pass  # whoever reads finds out
        finally:
            self._sending.release()

    def receive(self, wait_s: float) -> tuple[Kind, bytes] | None:
        """The next message; None if it is not whole within `wait_s` of silence. Raises Gone."""
        while (message := self._whole()) is None:
            if not select.select([self._connection], [], [], wait_s)[0]:
                return None
            try:
                read = self._connection.recv(_READ)
            except OSError as error:
                raise Gone(f"{self.name} is gone: {error}") from error
            if not read:
                raise Gone(f"{self.name} is gone")
            self._read += read
        return message

    def _whole(self) -> tuple[Kind, bytes] | None:
        if len(self._read) < _HEAD.size:
            return None
        kind, size = _HEAD.unpack_from(self._read)
        end = _HEAD.size + size
        if len(self._read) < end:
            return None
        payload = bytes(memoryview(self._read)[_HEAD.size : end])
        del self._read[:end]
        return Kind(kind), payload

    def close(self) -> None:
        self._connection.close()


# ----------------------------------------------------------------------------------------- messages
class _Pickler(pickle.Pickler):
    """Tensors travel through the host, errors as what they say: theirs may not be picklable."""

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")  # without it there is no tensor
        if torch is not None and isinstance(obj, torch.Tensor):
            flat = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return _tensor, (flat.numpy(), obj.dtype, tuple(obj.shape))
        if isinstance(obj, Exception):
            return _error, (f"{type(obj).__name__}: {obj}",)
        return NotImplemented


def _tensor(flat: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.from_numpy(flat.copy()).view(dtype).reshape(shape)


def _error(text: str) -> Exception:
    return RuntimeError(text)


def to_bytes(message: object) -> bytes:
    """Pickled; tensors come back on the host."""
    written = io.BytesIO()
    _Pickler(written, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return written.getvalue()


def from_bytes(payload: bytes) -> Any:
    """The inverse of `to_bytes`. Only for ranks of the same run, which have shown its token."""
    return pickle.loads(payload)
