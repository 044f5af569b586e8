"""Encoded texts on disk: read back to the bit, bounded, whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_engine import draw, request, small_spec, system

from batchgen.engine.encoding.texts import StoredText, TextStore
from batchgen.engine.engine import Engine
from batchgen.worker.texts import TextFolder

CPU = torch.device("cpu")

WRITER = """
import sys
from pathlib import Path
from batchgen.worker.texts import TextFolder
kept = TextFolder(Path(sys.argv[1]), Path(sys.argv[1]) / "texts", "weights", 10**9)
print("ready", flush=True)
n = 0
while True:
    kept.put(f"{n % 20:02}", b"x" * 800_000)
    n += 1
"""


def folder(root: Path, context: str = "weights", limit: int = 10**6) -> TextFolder:
    return TextFolder(root, root / "texts", context, limit)


def store(root: Path, computed: str = "cpu float32", **changes: Any) -> TextStore:
    return TextStore(folder(root, **changes), CPU, computed)


def text(*sizes: int, dtype: torch.dtype = torch.float32) -> StoredText:
    return StoredText(tuple(torch.randn(1, size).to(dtype) for size in sizes), 9, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_kept_is_read_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    kept = text(5, 7, dtype=dtype)
    store(tmp_path).put("a cat", kept)
    other = store(tmp_path)
    found = other.get("a cat")
    assert found is not None and (found.count, found.truncated) == (9, True)
    for mine, theirs in zip(found.condition, kept.condition, strict=True):
        assert mine.dtype == dtype and torch.equal(mine, theirs)
    assert other.get("a dog") is None and other.hits == 1


def test_texts_of_several_encoders_are_others_than_any_of_one(tmp_path: Path) -> None:
    names: list[str | tuple[str, ...]] = ["a", '["a", "b"]', ("a", "b"), ("ab", ""), ("a", "b", "")]
    for size, name in enumerate(names, 1):
        store(tmp_path).put(name, text(size))
    found = [store(tmp_path).get(name) for name in names]
    assert [one and one.condition[0].shape[-1] for one in found] == [1, 2, 3, 4, 5]


def test_a_text_of_other_weights_or_another_device_is_another(tmp_path: Path) -> None:
    store(tmp_path).put("a cat", text(5))
    assert store(tmp_path, context="others").get("a cat") is None
    assert store(tmp_path, "cpu bfloat16").get("a cat") is None


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path) -> None:
    small = store(tmp_path, limit=10_000)
    for n in range(20):
        small.put(f"{n}", text(250))
    kept = [n for n in range(20) if small.get(f"{n}") is not None]
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert kept == list(range(len(kept))) and len(kept) > 3 and size <= 10_000


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    whole = store(tmp_path)
    whole.put("a cat", text(50))
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    data = file.read_bytes()
    for broken in (data[:-9], b"", data[:300] + bytes([data[300] ^ 1]) + data[301:]):
        file.write_bytes(broken)
        assert whole.get("a cat") is None
    whole.put("a cat", text(50))
    assert whole.get("a cat") is not None


def test_a_folder_that_cannot_be_written_costs_no_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "texts").write_text("a file")
    blocked = store(tmp_path)
    blocked.put("a cat", text(5))
    assert blocked.get("a cat") is None and "is not kept" in caplog.text


def test_writers_that_are_killed_leave_whole_texts(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        reader = folder(tmp_path)
        while reader.get("13") is None:  # both are at work on the same texts
            os.sched_yield()
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
    found = [reader.get(f"{n:02}") for n in range(20)]
    assert set(found) <= {None, b"x" * 800_000} and any(found)


def test_a_second_engine_encodes_nothing_and_draws_the_same(
    tmp_path: Path, one_thread: None
) -> None:
    """Nor does it move the encoder in."""
    place = folder(tmp_path, limit=10**8)
    rows = [request(i, num_steps=2) for i in range(3)]

    def load(texts: TextFolder | None) -> Engine:
        return Engine.load(small_spec(), system(memory={"mode": "model"}), "cpu", texts=texts)

    plain, first, second = (draw(load(texts), rows) for texts in (None, place, place))
    for name, latents in plain.latents.items():
        assert torch.equal(first.latents[name], latents)
        assert torch.equal(second.latents[name], latents)
    found = (first.report, second.report)
    assert [(r.text_encoder_calls, r.texts_from_disk) for r in found] == [(4, 0), (0, 4)]
    assert second.report.component_moves == first.report.component_moves - 1
    assert {s.prompt_tokens for s in second.stats.values()} == {
        s.prompt_tokens for s in plain.stats.values()
    }
