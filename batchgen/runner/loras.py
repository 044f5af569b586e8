"""Who says whether a job's model can be drawn with a LoRA file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.config.schema import JobConfig
from batchgen.planning.manifests.loras import Judge

if TYPE_CHECKING:
    from batchgen.engine.loading.loras import LoraJudge


def judge_of(config: JobConfig) -> Judge:
    """Looks at names and shapes of the tensors of a file and of the model; imports torch when it is
    asked for the first time."""

    @cache
    def made() -> LoraJudge:
        from batchgen.engine.loading.loras import LoraJudge

        return LoraJudge(config.model)

    def judge(path: Path, expert: str) -> None:
        made()(path, expert)

    return judge
