"""Work that goes on layer by layer, side by side."""

from __future__ import annotations

import threading

import pytest
import torch

from batchgen.engine.encoding.abreast import Abreast
from batchgen.engine.isolation import Failed, is_short
from batchgen.errors import ReplicaFailed


class Layers:
    """Work of several layers, that says when each ran."""

    def __init__(self) -> None:
        self.abreast = Abreast(torch.device("cpu"))
        self.ran: list[tuple[str, int]] = []

    def work(self, name: str, layers: int, error: BaseException | None = None) -> str:
        for layer in range(layers):
            self.abreast.pause()
            self.ran.append((name, layer))
        if error is not None:
            raise error
        assert not torch.is_grad_enabled()
        return name


def test_each_layer_is_of_all_before_the_next() -> None:
    """Also where one has fewer of them, and alone there is nobody to wait for."""
    layers = Layers()
    found = layers.abreast.run([lambda n=n: layers.work(n, 2 + (n == "b")) for n in "abc"])
    assert found == ["a", "b", "c"]
    assert layers.ran == [(n, layer) for layer in range(2) for n in "abc"] + [("b", 2)]
    with torch.no_grad():
        assert layers.work("d", 3) == "d"


def test_one_that_fails_is_no_harm_to_the_others() -> None:
    layers = Layers()
    broken, short = ValueError("bad text"), torch.OutOfMemoryError("no room")
    bad, full, fine = layers.abreast.run(
        [
            lambda: layers.work("a", 1, broken),
            lambda: layers.work("b", 2, short),
            lambda: layers.work("c", 3),
        ]
    )
    assert isinstance(bad, Failed) and bad.error is broken
    assert is_short(full) and fine == "c"


def test_what_ends_the_replica_ends_all_of_them() -> None:
    layers, before = Layers(), threading.active_count()
    with pytest.raises(ReplicaFailed, match="gone"):
        layers.abreast.run(
            [lambda: layers.work("a", 1, ReplicaFailed("gone")), lambda: layers.work("b", 3)]
        )
    assert threading.active_count() == before
    assert layers.abreast.run([lambda: layers.work("c", 1)]) == ["c"]


def test_a_thread_that_cannot_begin_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, before, begin = Layers(), threading.active_count(), threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if threading.active_count() > before + 1:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread"):
        layers.abreast.run([lambda: layers.work("a", 1)] * 3)
    assert threading.active_count() == before
    assert layers.ran == []
