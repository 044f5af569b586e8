"""Checks that need a CUDA device: `make test-gpu`, which refuses where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_itemcollected(item: pytest.Item) -> None:
    """Everything in this folder needs CUDA."""
    if item.path.is_relative_to(HERE):
        item.add_marker("gpu")


@pytest.fixture(scope="session", autouse=True)
def cuda() -> str:
    """The device that all of them use."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return "cuda:0"
