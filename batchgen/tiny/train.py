"""Make the embedded model from nothing: ``python -m batchgen.tiny.train --out DIR``.

Stages, each resumed from its checkpoint in ``DIR`` after a kill:

1. ``vae``: the autoencoder, encoder and decoder together.
2. ``latents``: training clips are encoded once; from here on the encoder is frozen.
3. ``dit``: transformer and text encoder.
4. ``export``: the pipeline folder ``DIR/weights``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from batchgen.tiny.checkpoint import load_if_there
from batchgen.tiny.export import export
from batchgen.tiny.latents import encode_parts, load_parts
from batchgen.tiny.models import make_vae, skip_zero_work
from batchgen.tiny.tokenizer import make_tokenizer
from batchgen.tiny.train_dit import QUICK_DIT, Denoiser, DitRecipe, train_dit
from batchgen.tiny.train_vae import QUICK_VAE, VaeRecipe, train_vae

STAGES = ("vae", "latents", "dit", "export")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    Attributes:
        vae: the autoencoder's training.
        dit: the transformer's training.
        parts: files of encoded clips of the usual length.
        long_parts: files of encoded clips of ``long_frames`` frames.
        part_clips: clips in each file, a multiple of 16.
    """

    vae: VaeRecipe = field(default_factory=VaeRecipe)
    dit: DitRecipe = field(default_factory=DitRecipe)
    parts: int = 24
    long_parts: int = 4
    long_frames: int = 17
    part_clips: int = 512


FULL = Recipe()
QUICK = Recipe(QUICK_VAE, QUICK_DIT, parts=1, long_parts=1, long_frames=9, part_clips=16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(
        prog="python -m batchgen.tiny.train", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints and the exported weights"
    )
    parser.add_argument(
        "--stage", choices=(*STAGES, "all"), default="all", help="run one stage only"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of each stage, to see that it works"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0 leaves the choice to torch"
    )
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stages = STAGES if options.stage == "all" else (options.stage,)
    print(
        f"training on {device}, {torch.get_num_threads()} CPU threads: {', '.join(stages)}",
        flush=True,
    )
    for stage in stages:
        start = time.monotonic()
        run_stage(stage, options.out, QUICK if options.quick else FULL, device)
        print(f"stage {stage}: {time.monotonic() - start:.0f} s", flush=True)


def run_stage(stage: str, out: Path, recipe: Recipe, device: str) -> None:
    """Run or resume one stage; a finished stage returns at once."""
    if stage == "vae":
        train_vae(out / "vae.pt", recipe.vae, device)
    elif stage == "latents":
        _encode(out, recipe, device)
    elif stage == "dit":
        usual, longer = (
            load_parts(out / "latents", f) for f in (recipe.vae.frames, recipe.long_frames)
        )
        statistics = usual.statistics()
        train_dit(
            out, recipe.dit, [usual.normalised(*statistics), longer.normalised(*statistics)], device
        )
    else:
        export_from(out, out / "weights", recipe)


def _encode(out: Path, recipe: Recipe, device: str) -> None:
    vae = _load_vae(out / "vae.pt").to(device)
    for frames, parts in (
        (recipe.vae.frames, recipe.parts),
        (recipe.long_frames, recipe.long_parts),
    ):
        encode_parts(
            vae,
            out / "latents",
            parts=parts,
            count=recipe.part_clips,
            frames=frames,
            size=recipe.vae.size,
        )


def export_from(out: Path, target: Path, recipe: Recipe) -> None:
    """Write the newest checkpoints as a pipeline folder, at any time after ``latents``."""
    denoiser = Denoiser(make_tokenizer())
    state = load_if_there(out / "dit.pt")
    if state is not None:
        denoiser.load_state_dict(state["averaged"])
    mean, std = load_parts(out / "latents", recipe.vae.frames).statistics()
    vae = _load_vae(out / "vae.pt")
    export(target, vae, denoiser.transformer, denoiser.text_encoder, mean, std)


def _load_vae(path: Path) -> AutoencoderKLWan:
    state = load_if_there(path)
    if state is None:
        raise FileNotFoundError(f"{path}: no checkpoint; run the stage 'vae' first")
    vae = make_vae()
    skip_zero_work(vae)
    vae.load_state_dict(state["model"])
    return vae


if __name__ == "__main__":
    main()
