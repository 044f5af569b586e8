"""Fixtures of several folders; heavy packages are imported only where a test asks for them."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from ranks import Ranks

_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGALRM),
)


def pytest_configure() -> None:
    """Signals as a terminal has them, for the tests and whatever they start: a shell that starts
    the suite in the background, `nohup` and some CI runners ignore or block some. And no width:
    xdist tells its processes that of its own terminal."""
    os.environ.pop("COLUMNS", None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until all is imported: it would look at a million objects again and again
    _parse_yaml_once()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of the workers, which wait for minutes, are first: none is left alone with them."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/unit/worker/"))


def pytest_collection_finish() -> None:
    """What is imported stays: nobody looks through it for garbage."""
    gc.freeze()
    gc.enable()


def _parse_yaml_once() -> None:
    """Of the files that Hydra composes a job of, most are the same in each test."""
    parse, known = yaml.load, {}

    def load(stream: str | IO[str], Loader: type) -> Any:
        text = stream if isinstance(stream, str) else stream.read()
        if Loader.__name__ != "OmegaConfLoader" or not isinstance(text, str):
            return parse(text, Loader)
        if text not in known:
            known[text] = parse(text, Loader)
        return known[text]

    yaml.load = load


@pytest.fixture(scope="session")
def one_thread() -> None:
    """One torch thread: results do not depend on the machine, and small models run faster."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small Wan of `toy_engine.small_spec`."""
    from toy_engine import save_small

    return save_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def two_expert_folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of the embedded model's architecture with two experts (Wan2.2)."""
    from tiny_models import save_two_experts

    return save_two_experts(tmp_path_factory.mktemp("two-experts"))


@pytest.fixture(scope="session")
def odd_token_folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint of the embedded model, drawn at `tiny_models.ODD_SIZE`: 27 tokens."""
    from tiny_models import save_tiny

    return save_tiny(tmp_path_factory.mktemp("odd-tokens"))


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Up to four processes that are the ranks of a replica."""
    from ranks import Ranks

    found = Ranks(tmp_path_factory.mktemp("ranks"), most=4)
    yield found
    found.close()
