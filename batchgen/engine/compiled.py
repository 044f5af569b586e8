"""Blocks compiled by torch, once for all blocks of a kind: what repeats is most of a forward.

A graph belongs to one shape, so packs come in few sizes (`packs.powers_of_two`). The first forward
of a kind compiles; what is compiled after that is counted as a recompile, and warned of.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch._dynamo.utils import counters

from batchgen.config.compiler import missing_compiler
from batchgen.config.schema import CompileConfig
from batchgen.engine.attention.choice import Attention
from batchgen.engine.reuse.blocks import BlockStack
from batchgen.errors import ConfigError
from batchgen.families.family import FamilyModel
from batchgen.request import Request

T = TypeVar("T")
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
MOST_GRAPHS = 512  # of one kind of block: sizes of rows x sizes of packs; torch takes 8
log = logging.getLogger(__name__)


def keep_pairs_apart(family: FamilyModel, branches: Callable[[Request], int]) -> None:
    """Rows share forwards with rows of as many branches alone, from now on: where edges see a row's
    branches as one batch, each mixture of such batches would be a graph of its own."""
    model: Any = family
    group = model.group
    model.group = lambda request: (group(request), branches(request))


class Compiled:
    """What compiling has come to in one engine. `mode` off: nothing is compiled."""

    def __init__(self, config: CompileConfig, *, backend: str = "inductor") -> None:
        """`backend`: torch's, that makes code of a graph; `eager` makes none."""
        self.config, self.backend = config, backend
        self.on = config.mode != "off"
        self.recompiles = 0
        self._before = graphs()
        self._met: set[Hashable] = set()

    @property
    def may_stream(self) -> bool:
        """Whether blocks may lie elsewhere at each forward."""
        return self.config.mode != "reduce-overhead"

    @property
    def compiles(self) -> int:
        """Graphs traced since, those of self-tests too."""
        return graphs() - self._before if self.on else 0

    def lead(
        self,
        transformers: Iterable[nn.Module],
        device: str,
        *,
        streams: bool,
        attention: Attention,
    ) -> None:
        """Compile the blocks of their stacks, each where it first runs. `streams`: blocks have no
        lasting place on the device. Raises ConfigError where nothing can compile."""
        if not self.on:
            return
        if missing := missing_compiler(device):
            raise ConfigError(f"system.compile.mode: {missing}; legal here: off")
        if streams and not self.may_stream:
            raise ConfigError(
                "system.compile.mode: reduce-overhead records where blocks lie, and here they "
                "stream; legal with that: off, default, max-autotune-no-cudagraphs"
            )
        keep_on_node()
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        torch._dynamo.config.accumulated_recompile_limit = MOST_GRAPHS
        for transformer in transformers:
            for stack in transformer.modules():
                if isinstance(stack, BlockStack):
                    stack.compiled = {
                        number: attention.around(self._compiled(block))
                        for number, block in zip(stack.span, stack[:], strict=True)
                    }

    def _compiled(self, block: nn.Module) -> Callable[..., object]:
        mode = None if self.backend == "eager" else self.config.mode
        found: Callable[..., object] = torch.compile(
            block,
            mode=mode,
            dynamic=self.config.dynamic,
            fullgraph=self.config.fullgraph,
            backend=self.backend,
        )
        return found

    def run(self, kind: Hashable, forward: Callable[[], T]) -> T:
        """A forward; those of one kind have equal shapes."""
        if not self.on:
            return forward()
        if self.config.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        before = graphs()
        result = forward()
        new = graphs() - before
        if new and kind in self._met:
            self.recompiles += new
            log.warning("compiled again for %s: %d graphs", kind, new)
        self._met.add(kind)
        return result


def graphs() -> int:
    """That this process has traced so far."""
    return counters["stats"]["unique_graphs"]


def keep_on_node() -> None:
    """Code is kept in a folder of the node for later processes, unless the environment names
    one."""
    if _CACHE not in os.environ:
        folder = Path(tempfile.gettempdir()) / f"batchgen-compiled-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid == os.getuid():  # else it is somebody's trap
            os.environ[_CACHE] = str(folder)
