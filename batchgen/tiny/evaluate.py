"""Measures the embedded model: ``python -m batchgen.tiny.evaluate [--weights DIR]``.

Prints the reconstruction quality of the autoencoder on unseen clips, and the judge's verdict on
generated ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor

from batchgen.tiny import data
from batchgen.tiny.models import TEXT_LENGTH
from batchgen.tiny.score import Score, score

WEIGHTS = Path(__file__).parent / "weights"

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Accuracy:
    """Share of clips with each attribute right, and with all named ones right."""

    colour: float
    shape: float
    motion: float
    background: float
    everything: float
    clips: int

    def __str__(self) -> str:
        parts = (
            f"{name} {100 * getattr(self, name):.1f} %"
            for name in ("colour", "shape", "motion", "background")
        )
        return f"{', '.join(parts)}, all right {100 * self.everything:.1f} % of {self.clips}"


def load_pipeline(path: Path = WEIGHTS) -> WanPipeline:
    """The pipeline in float32, without a progress bar."""
    pipeline: WanPipeline = WanPipeline.from_pretrained(
        path, local_files_only=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def to_uint8(clips: Tensor) -> list[Frames]:
    """Turn clips ``(n, 3, f, h, w)`` in [-1, 1] into ``n`` arrays ``(f, h, w, 3)``."""
    whole = ((clips.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(whole.permute(0, 2, 3, 4, 1).numpy())


@torch.no_grad()
def reconstruct(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Encode and decode clips ``(n, 3, f, h, w)``."""
    output: Tensor = vae.decode(vae.encode(clips).latent_dist.mode()).sample.clamp(-1, 1)
    return output


def psnr_db(output: Tensor, target: Tensor) -> float:
    """Mean over clips of the peak signal-to-noise ratio in dB, for values in [-1, 1]."""
    errors = (output - target).square().flatten(1).mean(1)
    return float((-10 * torch.log10(errors / 4)).mean())


def summarise(scores: Sequence[Score]) -> Accuracy:
    """Accuracy over clips whose prompts name all four attributes."""
    table = np.array([[s.colour, s.shape, s.motion, s.background] for s in scores], dtype=float)
    colour, shape, motion, background = table.mean(0).tolist()
    everything = float(table.all(1).mean())
    return Accuracy(colour, shape, motion, background, everything, len(table))


def generate(
    pipeline: WanPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    guidance: float = 3.0,
    steps: int = 20,
) -> list[Frames]:
    """Render 64x64 clips of 9 frames, each from its own seed, in one batch."""
    video = pipeline(
        prompts,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TEXT_LENGTH,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).frames
    return list((video * 255).round().astype(np.uint8))


def judge_generated(
    pipeline: WanPipeline,
    split: data.Split,
    count: int,
    *,
    seed: int,
    guidance: float = 3.0,
    batch: int = 25,
) -> Accuracy:
    """Render ``count`` random prompts of a split with fresh seeds and judge each clip."""
    generator = torch.Generator().manual_seed(seed)
    scenes = data.sample_scenes(count, generator, split)
    prompts = [data.caption(scene, generator) for scene in scenes]
    scores: list[Score] = []
    for i in range(0, count, batch):
        some = prompts[i : i + batch]
        clips = generate(
            pipeline, some, [seed + j for j in range(i, i + len(some))], guidance=guidance
        )
        scores += [score(clip, prompt) for clip, prompt in zip(clips, some, strict=True)]
    return summarise(scores)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m batchgen.tiny.evaluate", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="pipeline folder")
    parser.add_argument(
        "--clips", type=int, default=400, help="prompts for each line; half of it for some"
    )
    options = parser.parse_args(arguments)
    pipeline = load_pipeline(options.weights)
    clips, scenes = data.sample_clips(64, torch.Generator().manual_seed(777), split="all")
    output = torch.cat([reconstruct(pipeline.vae, part) for part in clips.split(16)])
    longer, _ = data.sample_clips(16, torch.Generator().manual_seed(779), split="all", frames=17)
    print(
        f"autoencoder, 17 frames: {psnr_db(reconstruct(pipeline.vae, longer), longer):.2f} dB",
        flush=True,
    )
    generator = torch.Generator().manual_seed(778)
    judged = [
        score(f, data.caption(s, generator)) for f, s in zip(to_uint8(output), scenes, strict=True)
    ]
    print(
        f"autoencoder: {psnr_db(output, clips):.2f} dB on unseen clips; {summarise(judged)}",
        flush=True,
    )
    lines: tuple[tuple[data.Split, float, int], ...] = (
        ("train", 3.0, options.clips),
        ("held_out", 3.0, options.clips // 2),
        ("train", 1.0, options.clips // 2),
        ("train", 5.0, options.clips // 2),
    )
    for split, guidance, count in lines:
        start = time.monotonic()
        accuracy = judge_generated(pipeline, split, count, seed=900_000, guidance=guidance)
        seconds = (time.monotonic() - start) / count
        print(f"{split}, guidance {guidance}: {accuracy}; {seconds:.2f} s a clip", flush=True)


if __name__ == "__main__":
    main()
