"""Whether the device keeps what is promised: bits, pixels, memory, time saved by caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline

from batchgen.bench._figures import Figure, at_least, at_most
from batchgen.bench.cache.draw import draw
from batchgen.bench.gpu.figures import Kit
from batchgen.bench.gpu.subjects import clip, eager_twin, engine, flux, row, still, wan
from batchgen.engine.devices.selftest import pack_equals_solo
from batchgen.families.components import component_bytes
from batchgen.families.family import family_spec
from batchgen.media.quality import psnr
from batchgen.numerics.solver import reference_scheduler
from batchgen.request import Bucket

BLOCKS = 4
COMPUTED, STEPS = 21, 50


def self_tests(kit: Kit) -> Iterator[Figure]:
    """Strict mode's: a pack against each of its items alone, to the bit."""
    few = 2 if kit.tiny else BLOCKS
    for name, spec, bucket in (
        ("Wan 1.3B", wan(12, 8960, few, tiny=kit.tiny), clip(kit, 17)),
        ("FLUX.1", flux(1, 1, tiny=kit.tiny), still(kit, 512)),
    ):
        made = engine(kit, spec, strict=True)
        with torch.no_grad():
            kept = pack_equals_solo(made.family, bucket, 5, "transformer")
        yield Figure(f"{name}: a pack of 5 has the bits of each alone", float(kept), "", "", kept)


def pipeline(kit: Kit) -> Iterator[Figure]:
    """Frames of the engine against those of diffusers' pipeline over the same tensors."""
    few, steps = 2 if kit.tiny else BLOCKS, 3 if kit.tiny else 8
    spec = wan(12, 8960, few, tiny=kit.tiny)
    made, bucket = engine(kit, spec), clip(kit, 17)
    request = row(0, bucket, "unipc", steps)
    ours = draw(made, [request]).frames[0]
    family: Any = made.family
    plain = WanPipeline(
        tokenizer=family.tokenizer,
        text_encoder=family.text_encoder,
        transformer=eager_twin(made),
        vae=family.vae,
        scheduler=reference_scheduler("unipc", 3.0),
    )
    plain.set_progress_bar_config(disable=True)
    theirs = plain(
        request.prompt,
        negative_prompt=request.negative_prompt,
        width=bucket.width,
        height=bucket.height,
        num_frames=bucket.num_frames,
        num_inference_steps=steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        max_sequence_length=family.max_tokens,
    ).frames[0]
    pixels = (np.asarray(theirs) * 255).round().astype(np.uint8)
    note = f"{few} of 30 blocks, {steps} steps, {bucket}"
    yield at_least("Wan 1.3B against WanPipeline", psnr(ours, pixels), "dB", 40, note)


def peaks(kit: Kit) -> Iterator[Figure]:
    """Memory of one forward, against what a plan says of it."""
    kit.needs_cuda()
    for name, spec, bucket in (
        ("Wan 1.3B", wan(12, 8960, 30, tiny=False), clip(kit)),
        ("FLUX.1", flux(4, 8, tiny=False), still(kit, 1024)),
    ):
        kit.forget()
        made = engine(kit, spec)
        item = made.family.random_item(bucket, 0, "transformer")
        with torch.no_grad():
            made.family.forward([item])
        most = torch.cuda.max_memory_allocated(kit.device)
        forecast = component_bytes(spec).total + family_spec(spec.family).forward_bytes(
            spec, bucket
        )
        yield at_most(f"{name}: peak / forecast", most / forecast, "x", 1.0)
        del made


def forced(kit: Kit) -> Iterator[Figure]:
    """A row of which 21 of 50 steps are computed, from text to pixels, against a whole one."""
    few = 2 if kit.tiny else 30
    steps = 10 if kit.tiny else STEPS
    made = engine(kit, wan(12, 8960, few, tiny=kit.tiny))
    bucket: Bucket = clip(kit, 17)
    whole = row(0, bucket, "unipc", steps)
    left = 1 - COMPUTED / STEPS
    changes = {"cache_ratio": left, "cache_warmup": 1, "cache_cooldown": 1}
    cached = row(1, bucket, "unipc", steps, cache_strategy="uniform", **changes)
    draw(made, [row(2, bucket, "unipc", 2)])  # warm
    plain, quick = draw(made, [whole]), draw(made, [cached])
    due = 1 / quick.share
    speedup = plain.seconds.wall / quick.seconds.wall
    told = f"{quick.share:.0%} of the evaluations, {bucket}"
    yield at_least("step cache: speed-up / due", speedup / due, "x", 0.95, told)
