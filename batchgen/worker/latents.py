"""The latents that a run decodes, in the place of states of its own."""

from __future__ import annotations

import logging
from pathlib import Path

from batchgen.engine.contract import Snapshot
from batchgen.errors import MediaError
from batchgen.media.formats.latents import TENSOR, as_float32, parse
from batchgen.media.stored import MediaPlace
from batchgen.request import Request

log = logging.getLogger(__name__)


class DrawnRows:
    """The rows of another run, behind their last step (`states.States`)."""

    def __init__(self, root: Path) -> None:
        """`root`: of the run that has drawn them."""
        self._root = root

    def load(self, request: Request) -> Snapshot:
        """The row's latents; MediaError naming row and file unless they are those that the other
        run has published."""
        stored = MediaPlace.parse(request.latents or "")
        file = self._root / stored.path
        try:
            latents = parse(stored.read(self._root), str(file))
        except (OSError, ValueError) as error:
            raise MediaError(f"row {request.row_id!r}: latents {file}: {error}") from error
        log.info("row %s has its latents from %s", request.row_id, file)
        return Snapshot(request.num_steps, 0.0, {TENSOR: as_float32(latents)})

    def share_left(self, request: Request) -> float:
        """All: what is predicted of the row is what it takes to decode it."""
        return 1.0

    def save(self, request: Request, snapshot: Snapshot) -> None:
        """Nothing: the other run keeps it."""

    def drop(self, request: Request) -> None:
        """Nothing."""
