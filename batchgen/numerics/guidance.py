"""Ways to make one velocity of those of a row's branches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def classifier_free(velocities: Sequence[Tensor], scale: float) -> Tensor:
    """With the prompt and without it, in diffusers' order of operations; one branch is as it is."""
    if len(velocities) == 1:
        return velocities[0]
    return velocities[1] + scale * (velocities[0] - velocities[1])
