"""The scheduler of flow matching that several families use, told without torch."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowScheduler(ComponentDims):
    """The fields of a FlowMatchEulerDiscreteScheduler's config that decide the sigmas."""

    shift: float = 3.0  # default of a row's sigma_shift, unless the shift is dynamic
    use_dynamic_shifting: bool = True  # shift by the row's tokens
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    num_train_timesteps: int = 1000
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"
    invert_sigmas: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    stochastic_sampling: bool = False

    def check(self) -> None:
        """ConfigError if its steps draw noise."""
        if self.stochastic_sampling:
            raise ConfigError("model.scheduler.stochastic_sampling: true is not served yet")

    @property
    def row_shift(self) -> float:
        """Default of a row's sigma_shift: 1 where that is not used."""
        return 1.0 if self.use_dynamic_shifting else self.shift


def dynamic_shift(scheduler: FlowScheduler, tokens: int) -> float:
    """The scheduler's mu: a linear function of the drawn tokens, in diffusers' order of
    operations."""
    span = scheduler.max_image_seq_len - scheduler.base_image_seq_len
    slope = (scheduler.max_shift - scheduler.base_shift) / span
    start = scheduler.base_shift - slope * scheduler.base_image_seq_len
    return tokens * slope + start
