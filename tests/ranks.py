"""Warm processes that play the ranks of a replica.

They come from a `forkserver` that has loaded torch and the models once, and stay for the session; a
layout costs a rendezvous in a file. What runs on them is a function of a module they can import.
"""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from batchgen.config.degrees import Degrees
from batchgen.engine.parallel.mesh import Mesh, join, leave

TIMEOUT = timedelta(seconds=60)
Backend = Literal["gloo", "nccl"] | None


@dataclass(frozen=True)
class Call:
    """Where a rank meets the others."""

    degrees: Degrees
    rank: int
    store: Path
    device: str
    backend: Backend


class Ranks:
    """`most` processes; each call takes the first of them. In `device`, `{rank}` is the rank."""

    def __init__(
        self, folder: Path, most: int, device: str = "cpu", backend: Backend = None
    ) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["rank_imports"])
        with pytest.MonkeyPatch.context() as patch:
            # Before Python 3.13 the server is told our path and does not look there.
            patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            forkserver.ensure_running()
        self.folder, self.device, self.backend = folder, device, backend
        self.meetings = 0
        self.ends: list[Connection] = []
        self.processes = []
        for _ in range(most):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.ends.append(ours)
            self.processes.append(process)

    def run(self, degrees: Degrees, work: Callable[..., Any], *args: Any) -> list[Any]:
        """`work(mesh, *args)` on every rank of a replica; what each returned, by rank."""
        answers = self.tried(degrees, work, *args)
        errors = [str(answer) for ok, answer in answers if not ok]
        assert not errors, "\n".join(errors)
        return [answer for _, answer in answers]

    def tried(
        self, degrees: Degrees, work: Callable[..., Any], *args: Any
    ) -> list[tuple[bool, Any]]:
        """The same, where ranks may fail: whether each came to its end, and its result or error."""
        self.meetings += 1
        store = self.folder / f"store-{self.meetings}"
        used = self.ends[: degrees.replica]
        for rank, end in enumerate(used):
            end.send((Call(degrees, rank, store, self.device, self.backend), work, args))
        return [end.recv() for end in used]

    def close(self) -> None:
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join()


def _serve(end: Connection) -> None:
    """One rank, until the other end is closed."""
    torch.set_num_threads(1)
    while True:
        try:
            call, work, args = end.recv()
        except EOFError:
            return
        answer = _played(call, work, args)
        if not answer[0]:
            gc.collect()  # closes what the error held open, on which others may wait
        end.send(answer)


def _played(call: Call, work: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        with _met(call) as mesh, torch.no_grad():
            return True, work(mesh, *args)
    except Exception:
        return False, f"rank {call.rank}: {traceback.format_exc()}"


@contextmanager
def _met(call: Call) -> Iterator[Mesh]:
    device = torch.device(call.device.format(rank=call.rank))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.FileStore(str(call.store), call.degrees.replica)
    mesh = join(call.degrees, call.rank, store, device, TIMEOUT, call.backend)
    try:
        yield mesh
    finally:
        leave()
