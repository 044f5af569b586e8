"""What the processes of a node hold of the same weights, and how long it takes to load them."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_engine import save_small, small_spec

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.weights import load_components
from batchgen.engine.memory.stream import tensors_of

RANKS = 4
SCRIPT = Path(__file__).parents[3] / "shared_rank.py"


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> ModelSpec:
    """A checkpoint with an encoder of half a gigabyte and more."""
    dims = small_spec().dims
    large = {"num_layers": 9, "d_model": 1024, "d_ff": 4096, "num_heads": 16, "d_kv": 64}
    encoder = replace(dims.text_encoder, **large)
    dims = replace(dims, text_encoder=encoder, transformer=replace(dims.transformer, text_dim=1024))
    spec = small_spec(dims=dims)
    return replace(spec, weights=str(save_small(tmp_path_factory.mktemp("heavy"), spec)))


def summed(spec: ModelSpec, mode: str, folder: Path) -> int:
    """Memory of so many processes that have computed with the weights, all there at once."""
    pickled = folder / "spec"
    pickled.write_bytes(pickle.dumps(spec))
    command = [sys.executable, str(SCRIPT), str(pickled), mode]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    ranks = [subprocess.Popen(command, text=True, **pipes) for _ in range(RANKS)]  # type: ignore[call-overload]
    try:
        said = [rank.stdout.readline() for rank in ranks]
        assert said == ["ready\n"] * RANKS
        for rank in ranks:
            print(file=rank.stdin, flush=True)
        return sum(int(rank.stdout.readline()) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.slow
def test_ranks_of_a_node_share_one_copy_of_the_weights(heavy: ModelSpec, tmp_path: Path) -> None:
    one = sum(file.stat().st_size for file in Path(heavy.weights).rglob("*.safetensors"))
    assert one >= 0.5e9
    without = summed(heavy, "none", tmp_path)
    on_shelves = RANKS * one * 2 / heavy.dims.text_encoder.num_layers  # the device's, if it had any
    for mode, apart in ("resident", 0.0), ("disk", on_shelves), ("stream", on_shelves):
        held = summed(heavy, mode, tmp_path) - without
        print(f"{mode}: {held / one:.2f} copies of {one / 1e9:.2f} GB in {RANKS} ranks")
        assert held - apart < 1.3 * one


@pytest.mark.slow
def test_loading_is_as_fast_as_reading_the_files(heavy: ModelSpec) -> None:
    """Until all of it has been read once, from files that are in the page cache."""
    files = [*Path(heavy.weights).rglob("*.safetensors")]

    def plain() -> None:
        for file in files:
            for tensor in load_file(file).values():
                tensor.to("cpu").sum()

    def ours() -> None:
        for module in load_components(heavy, torch.float32).values():
            if isinstance(module, torch.nn.Module):
                for tensor in tensors_of(module):
                    tensor.sum()

    theirs_s, ours_s = (min(seconds(work) for _ in range(3)) for work in (plain, ours))
    print(f"load_file: {theirs_s:.2f} s, load_components: {ours_s:.2f} s")
    assert ours_s < 1.5 * theirs_s + 0.3  # it checks files, makes modules and a tokenizer, too


def seconds(work: object) -> float:
    begin = time.process_time()
    work()  # type: ignore[operator]
    return time.process_time() - begin
