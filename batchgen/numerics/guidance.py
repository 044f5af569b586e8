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
