"""Guidance: one velocity from the velocities of a row's branches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def classifier_free(velocities: Sequence[Tensor], scale: float) -> Tensor:
    """v_neg + scale * (v_pos - v_neg), in diffusers' order of operations; one velocity is returned
    unchanged."""
    if len(velocities) == 1:
        return velocities[0]
    return velocities[1] + scale * (velocities[0] - velocities[1])


def rescaled(guided: Tensor, drawn: Tensor, share: float) -> Tensor:
    """A guided velocity with, to that share, the deviation of the prompt's own (Lin et al.,
    https://arxiv.org/abs/2305.08891, section 3.4), in diffusers' order of operations."""
    inner = list(range(1, guided.ndim))
    ratio = drawn.std(dim=inner, keepdim=True) / guided.std(dim=inner, keepdim=True)
    return share * (guided * ratio) + (1 - share) * guided
