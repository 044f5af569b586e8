"""Trains the autoencoder: first on single frames, then on clips and single frames in turn.

The loss has a higher weight on the shape: it covers a tenth of the picture, and with even weights
its hue is learnt last.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor

from batchgen.tiny import data
from batchgen.tiny.checkpoint import load_if_there, save_atomically
from batchgen.tiny.models import LATENT_CHANNELS, make_vae, skip_zero_work


@dataclass(frozen=True)
class VaeRecipe:
    """Length and strength of the autoencoder's training.

    Attributes:
        frame_steps: steps on single frames.
        joint_steps: steps on clips, with frames in every fourth and longer clips in every eighth:
            a decoder that has only seen short clips drifts in colour after their last frame.
        frame_batch: single frames in a step.
        clip_batch: clips in a step.
        peak_rate: highest learning rate (3e-3 diverges).
        shape_weight: extra loss weight of pixels on or near the shape.
        latent_noise: standard deviation of the noise added to latents, so that the decoder
            forgives small errors.
        save_every: steps between checkpoints.
        size: height and width in pixels.
        frames: frames of a clip.
        long_frames: frames of a longer clip; half as many share a step.
    """

    frame_steps: int = 1200
    joint_steps: int = 5000
    frame_batch: int = 24
    clip_batch: int = 4
    peak_rate: float = 1.2e-3
    shape_weight: float = 6.0
    latent_noise: float = 0.05
    save_every: int = 100
    size: int = 64
    frames: int = 9
    long_frames: int = 17

    @property
    def steps(self) -> int:
        """Number of all steps."""
        return self.frame_steps + self.joint_steps


QUICK_VAE = VaeRecipe(
    frame_steps=4,
    joint_steps=4,
    frame_batch=2,
    clip_batch=1,
    save_every=1,
    size=32,
    frames=5,
    long_frames=9,
)


def draw_batch(recipe: VaeRecipe, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips ``(n, 3, f, h, w)`` of one step and the loss weight of pixels ``(n, 1, f, h, w)``."""
    count, frames = _batch_shape(recipe, step)
    scenes = data.sample_scenes(count, generator, "all")
    layout = data.sample_layout(scenes, generator)
    times = (
        torch.rand(count, 1, generator=generator)
        if frames == 1
        else data.frame_times(count, frames)
    )
    clips, coverage = data.render(scenes, layout, times, height=recipe.size, width=recipe.size)
    n, _, f, h, w = coverage.shape
    near = F.max_pool2d(coverage.ceil().view(n * f, 1, h, w), 5, 1, 2).view(n, 1, f, h, w)
    weight = 1 + recipe.shape_weight * near
    return clips, weight / weight.mean()


def _batch_shape(recipe: VaeRecipe, step: int) -> tuple[int, int]:
    """Number of clips in a step, and of frames in each."""
    if step < recipe.frame_steps or step % 4 == 0:
        return recipe.frame_batch, 1
    if step % 8 == 5:
        return max(1, recipe.clip_batch // 2), recipe.long_frames
    return recipe.clip_batch, recipe.frames


def learning_rate(recipe: VaeRecipe, step: int) -> float:
    """Warm-up over 50 steps, then cosine to 3 % of the peak."""
    warm = min(1.0, (step + 1) / 50)
    cosine = (1 + math.cos(math.pi * step / recipe.steps)) / 2
    return recipe.peak_rate * warm * (0.03 + 0.97 * cosine)


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of clips in [-1, 1]."""
    return -10 * math.log10(float((output - target).square().mean()) / 4)


def _loss(
    vae: AutoencoderKLWan, clips: Tensor, weight: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted loss and the reconstruction; the mean is the latent, its variance is unused."""
    mean = vae.encode(clips).latent_dist.mean.float()
    output = vae.decode(mean + noise).sample.float()
    error = output - clips
    loss = (weight * (error.abs() + error.square())).mean() + 1e-4 * mean.square().mean()
    return loss, output


def train_vae(path: Path, recipe: VaeRecipe, device: str) -> AutoencoderKLWan:
    """Train to the recipe's end, resuming from ``path``.

    Args:
        path: the checkpoint.
        recipe: what to do.
        device: where to compute.
    """
    torch.manual_seed(0)
    vae = make_vae().to(device)
    skip_zero_work(vae)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1)
    first = _resume(path, vae, optimiser, generator)
    start = time.monotonic()
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        clips, weight = (t.to(device) for t in draw_batch(recipe, step, generator))
        noise = recipe.latent_noise * torch.randn(_latent_shape(clips), generator=generator).to(
            device
        )
        with torch.autocast(device, torch.bfloat16):
            loss, output = _loss(vae, clips, weight, noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 0.5)
        optimiser.step()
        if step % 50 in (0, 1):
            print(
                f"vae step {step}/{recipe.steps} frames {clips.shape[2]} loss {loss.item():.4f} "
                f"psnr {psnr(output.detach(), clips):.2f} dB, {time.monotonic() - start:.0f} s",
                flush=True,
            )
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            _save(path, vae, optimiser, generator, step + 1)
    return vae


def _latent_shape(clips: Tensor) -> tuple[int, int, int, int, int]:
    n, _, f, h, w = clips.shape
    return n, LATENT_CHANNELS, (f + 3) // 4, h // 8, w // 8


def _save(
    path: Path,
    vae: AutoencoderKLWan,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    step: int,
) -> None:
    save_atomically(
        {
            "model": vae.state_dict(),
            "optimiser": optimiser.state_dict(),
            "generator": generator.get_state(),
            "step": step,
        },
        path,
    )


def _resume(
    path: Path, vae: AutoencoderKLWan, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> int:
    state = load_if_there(path)
    if state is None:
        return 0
    vae.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    generator.set_state(state["generator"])
    print(f"vae: resuming at step {state['step']}", flush=True)
    return int(state["step"])
