"""Encodes training clips once: the encoder is frozen, so every epoch can reuse the latents."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from batchgen.tiny import data
from batchgen.tiny.checkpoint import load_if_there, save_atomically


@dataclass(frozen=True)
class LatentSet:
    """Latents ``(n, c, t, h, w)`` and what each clip shows."""

    latents: Tensor
    scenes: list[data.Scene]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent channel, ``(c,)`` both."""
        return self.latents.mean((0, 2, 3, 4)), self.latents.std((0, 2, 3, 4))

    def normalised(self, mean: Tensor, std: Tensor) -> LatentSet:
        """The same clips, minus ``mean`` and divided by ``std`` (``(c,)`` both)."""
        return LatentSet(
            (self.latents - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1), self.scenes
        )


def encode_part(
    vae: AutoencoderKLWan,
    path: Path,
    seed: int,
    *,
    count: int,
    frames: int,
    size: int,
    batch: int = 16,
) -> None:
    """Draw ``count`` clips from one seed, encode them and write them to ``path``."""
    generator = torch.Generator().manual_seed(seed)
    device = next(vae.parameters()).device
    parts: list[Tensor] = []
    scenes: list[data.Scene] = []
    for _ in range(0, count, batch):
        clips, some = data.sample_clips(batch, generator, frames=frames, height=size, width=size)
        with torch.no_grad():
            parts.append(vae.encode(clips.to(device)).latent_dist.mean.cpu())
        scenes += some
    save_atomically({"latents": torch.cat(parts), "scenes": [asdict(s) for s in scenes]}, path)


def encode_parts(
    vae: AutoencoderKLWan, folder: Path, *, parts: int, count: int, frames: int, size: int
) -> None:
    """Encode the parts that are missing in ``folder``; each depends on its number alone."""
    start = time.monotonic()
    for i in range(parts):
        path = folder / f"{frames:03d}-{i:04d}.pt"
        if not path.exists():
            encode_part(vae, path, 1000 * frames + i, count=count, frames=frames, size=size)
            print(
                f"latents {frames} frames, part {i + 1}/{parts}, {time.monotonic() - start:.0f} s",
                flush=True,
            )


def load_parts(folder: Path, frames: int) -> LatentSet:
    """Read the encoded clips of one length."""
    states = [
        state
        for path in sorted(folder.glob(f"{frames:03d}-*.pt"))
        if (state := load_if_there(path))
    ]
    if not states:
        raise FileNotFoundError(
            f"{folder}: no clips of {frames} frames; run the stage 'latents' first"
        )
    scenes = [data.Scene(**record) for state in states for record in state["scenes"]]
    return LatentSet(torch.cat([state["latents"] for state in states]), scenes)
