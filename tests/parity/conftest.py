from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rig import save_small


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small Wan."""
    return save_small(tmp_path_factory.mktemp("small"))
