"""The cheap checkpoints beside the embedded one: two experts, and an odd number of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import WanPipeline
from tiny_models import BOUNDARY, ODD_SIZE
from toy_engine import Keeper, ListSource, request, system, tiny_wan_spec

from batchgen.engine.engine import Engine


def load(folder: Path) -> WanPipeline:
    pipeline = WanPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def count_calls(module: torch.nn.Module) -> list[float]:
    """Timesteps at which a transformer was called."""
    seen: list[float] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    return seen


def test_two_experts_share_the_steps_at_the_boundary(two_expert_folder: Path) -> None:
    pipeline = load(two_expert_folder)
    first, second = (count_calls(m) for m in (pipeline.transformer, pipeline.transformer_2))
    latents = pipeline(
        "a red circle", height=32, width=32, num_frames=5, num_inference_steps=6,
        guidance_scale=3.0, guidance_scale_2=2.0, max_sequence_length=32, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert torch.isfinite(latents).all()
    assert first and second
    assert min(first) >= 1000 * BOUNDARY > max(second)
    ours, theirs = (m.state_dict() for m in (pipeline.transformer, pipeline.transformer_2))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_odd_number_of_tokens_is_drawn_as_diffusers_draws_it(odd_token_folder: Path) -> None:
    model = replace(tiny_wan_spec(), weights=str(odd_token_folder))
    engine = Engine.load(model, system())
    row = request(0, prompt="a red circle moving left", num_steps=3, **ODD_SIZE)
    assert engine.replica.packer.tokens(row.bucket) == 27
    keeper = Keeper()
    engine.render(ListSource([row, request(1, **ODD_SIZE)]), keeper)
    assert not keeper.errors
    pipeline = load(odd_token_folder)
    video = pipeline(
        row.prompt, negative_prompt=row.negative_prompt, height=48, width=48, num_frames=9,
        num_inference_steps=3, guidance_scale=row.guidance_scale, max_sequence_length=32,
        generator=torch.Generator().manual_seed(row.seed), output_type="np",
    ).frames[0]  # fmt: skip
    assert (keeper.frames["row-0"] == (video * 255).round().astype("uint8")).all()
