"""Fixtures of several folders; heavy packages are imported only where a test asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def one_thread() -> None:
    """One torch thread: results do not depend on the machine, and small models run faster."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small Wan of `rig.small_spec`."""
    from rig import save_small

    return save_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def two_expert_folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of the embedded model's architecture with two experts (Wan2.2)."""
    from variants import save_two_experts

    return save_two_experts(tmp_path_factory.mktemp("two-experts"))


@pytest.fixture(scope="session")
def odd_token_folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of the embedded model, drawn at `variants.ODD_SIZE`: 27 tokens."""
    from variants import save_tiny

    return save_tiny(tmp_path_factory.mktemp("odd-tokens"))
