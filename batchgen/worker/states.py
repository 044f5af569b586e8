"""Rows in flight on disk: what a drained attempt leaves for whoever draws the row next.

One safetensors file a row, replaced whole. A state is a function of the row and its step, so it
does not matter who wrote it last; one that is torn, damaged or of another row is passed over."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from batchgen.durable import make_folder, write_bytes_atomic
from batchgen.engine.contract import Snapshot
from batchgen.paths import RunPaths
from batchgen.records import Determinism
from batchgen.request import Request

log = logging.getLogger(__name__)


class States(Protocol):
    """Where rows that were begun before are found, and those that are stopped are kept."""

    def save(self, request: Request, snapshot: Snapshot) -> None: ...
    def load(self, request: Request) -> Snapshot | None: ...
    def share_left(self, request: Request) -> float: ...
    def drop(self, request: Request) -> None: ...


class RowStates:
    """The state files of one run."""

    def __init__(
        self, run: RunPaths, total_rows: int, determinism: Determinism, device_class: str
    ) -> None:
        """`device_class`: how the engine computes here; rows go on only where it is the same."""
        self._run, self._total_rows = run, total_rows
        self._determinism, self._device_class = determinism, device_class
        self._mine: dict[int, tuple[int, int]] = {}  # row_index -> the file met or made here

    def save(self, request: Request, snapshot: Snapshot) -> None:
        """Keep the row, durably, unless another attempt has kept it further on meanwhile; OSError
        if the folder cannot be written."""
        path = self._path(request)
        if self._is_overtaken(path, request, snapshot.step):
            return
        metadata = {
            "row_key": request.row_key,
            "seed": str(request.seed),  # not the plan's where a judge had the row drawn again
            "determinism": self._determinism,
            "layout": self._device_class,
            "step": str(snapshot.step),
            "seconds": f"{snapshot.seconds:.6f}",
            "crc": str(_check_sum(snapshot.arrays)),
        }
        make_folder(path.parent, self._run.root)
        write_bytes_atomic(path, save(dict(snapshot.arrays), metadata))
        self._mine[request.row_index] = _identity(path)

    def load(self, request: Request) -> Snapshot | None:
        """What the row goes on from, or None; never an error."""
        path = self._path(request)
        try:
            if not path.is_file():
                return None
            self._mine[request.row_index] = _identity(path)
            snapshot = self._read(path, request)
        except Exception as error:  # whatever a damaged file does to its reader
            log.warning("row %s starts anew: %s: %s", request.row_id, path, error)
            return None
        log.info("row %s goes on after step %d", request.row_id, snapshot.step)
        return snapshot

    def share_left(self, request: Request) -> float:
        """What is left to do of the row, from the head of its file alone; 1.0 without one."""
        path = self._path(request)
        try:
            if not path.is_file():
                return 1.0
            step = self._step_of(path, request)
        except Exception:  # `load` says why
            return 1.0
        return max(1, request.num_steps - step) / request.num_steps  # the last one is to decode

    def drop(self, request: Request) -> None:
        """The row is committed: forget its state, unless another attempt has kept a newer one (this
        one may be a zombie); never an error."""
        mine, path = self._mine.pop(request.row_index, None), self._path(request)
        try:
            if mine is not None and path.exists() and _identity(path) == mine:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the state of row %s stays: %s", request.row_id, error)

    def _path(self, request: Request) -> Path:
        return self._run.row_state(request.row_index, self._total_rows)

    def _is_overtaken(self, path: Path, request: Request, step: int) -> bool:
        """Whether a file that was neither met nor made here goes as far."""
        try:
            other = path.is_file() and _identity(path) != self._mine.get(request.row_index)
            return other and self._step_of(path, request) >= step
        except Exception:  # damaged or out of reach: no reason not to keep this one
            return False

    def _step_of(self, path: Path, request: Request) -> int:
        """From the head of a file alone."""
        with safe_open(path, framework="numpy") as file:
            return self._step(file.metadata() or {}, request)

    def _read(self, path: Path, request: Request) -> Snapshot:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = self._step(metadata, request)
        if int(metadata["crc"]) != _check_sum(arrays):
            raise ValueError("the check sum does not fit")
        return Snapshot(step, float(metadata["seconds"]), arrays)

    def _step(self, metadata: Mapping[str, str], request: Request) -> int:
        """The steps taken; ValueError unless the row can go on from them here."""
        wanted = {
            "row_key": request.row_key,
            "determinism": self._determinism,
            "layout": self._device_class,
        }
        if "seed" in metadata:  # older files have none
            wanted["seed"] = str(request.seed)
        for name, value in wanted.items():
            if metadata.get(name) != value:
                raise ValueError(f"{name} is {metadata.get(name)!r}, not {value!r}")
        step = int(metadata["step"])
        if not 0 < step <= request.num_steps:  # after the last one it waits to be decoded
            raise ValueError(f"step {step} of {request.num_steps}")
        return step


def _identity(path: Path) -> tuple[int, int]:
    """Of one file: whoever keeps the row again makes another."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def _check_sum(arrays: Mapping[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), crc)
    return crc
