"""Training survives a kill, and its shortcuts change nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from batchgen.tiny import data
from batchgen.tiny.checkpoint import load_if_there, save_atomically
from batchgen.tiny.models import TEXT_LENGTH, make_text_encoder, make_vae, skip_zero_work
from batchgen.tiny.text import embed
from batchgen.tiny.tokenizer import make_tokenizer


@torch.no_grad()
def test_lean_autoencoder_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    vae = make_vae()
    clips, _ = data.sample_clips(2, torch.Generator().manual_seed(0), frames=9, height=32, width=32)
    latents = vae.encode(clips).latent_dist.mean
    pictures = vae.decode(latents).sample
    skip_zero_work(vae)
    torch.testing.assert_close(vae.encode(clips).latent_dist.mean, latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(vae.decode(latents).sample, pictures, atol=5e-5, rtol=0)


@torch.no_grad()
def test_training_conditions_equal_the_pipelines() -> None:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    encoder = make_text_encoder(len(tokenizer)).eval()
    pipeline = WanPipeline(tokenizer, encoder, vae=None, scheduler=None, transformer=None)
    prompts = ["a red circle moving left on a black background", "", "zebra 🙂", "ring " * 60]
    expected = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=TEXT_LENGTH)
    torch.testing.assert_close(embed(tokenizer, encoder, prompts), expected, atol=1e-5, rtol=0)


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    assert load_if_there(path) is None
    save_atomically({"step": 1}, path)
    save_atomically({"step": 2}, path)
    assert load_if_there(path) == {"step": 2}
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def _quick(out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "batchgen.tiny.train",
        "--quick",
        "--threads",
        "1",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors.decode()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["vae.pt", "latents", "dit.pt"])
def test_killed_training_resumes_to_the_same_weights(tmp_path: Path, victim: str) -> None:
    """Killed in each stage and run again: the exported tensors are those of a quiet run."""
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    _finish(_quick(quiet))
    process = _quick(killed)
    deadline = time.monotonic() + 200
    while not (killed / victim).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "weights").exists()
    _finish(_quick(killed))
    files = sorted(p.relative_to(quiet) for p in (quiet / "weights").rglob("*") if p.is_file())
    assert any(p.suffix == ".safetensors" for p in files)
    for file in files:
        assert (quiet / file).read_bytes() == (killed / file).read_bytes(), file
