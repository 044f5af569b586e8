"""Branches whose computed steps are known beforehand, and what they remember of the newest ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from batchgen.caches.strategy import Look, Tensor


class Recent:
    """A branch that computes the given steps and reuses its last value.

    It remembers `keep` steps, each as a tuple of tensors with the value last. A step that is
    remembered again replaces itself and what came after it, so a repeated step changes nothing.
    """

    def __init__(self, steps: Collection[int], keep: int = 1) -> None:
        self._computed = frozenset(steps)
        self._keep = keep
        self._kept: dict[int, tuple[Tensor, ...]] = {}  # by step, oldest first

    def computes(self, look: Look) -> bool:
        return look.step in self._computed

    def note(self, step: int, latents: Tensor, value: Tensor) -> None:
        self._remember(step, value)

    def predict(self, step: int, latents: Tensor) -> Tensor:
        _, (*_, value) = self._past(step)[-1]
        return value

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{step}.{place}": tensor
            for step, kept in self._kept.items()
            for place, tensor in enumerate(kept)
        }

    def numbers(self) -> dict[str, float]:
        """None: the steps stand in the names of the tensors."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        places = sorted(tuple(map(int, name.split("."))) for name in tensors)
        self._kept = {step: () for step, _ in places}
        for step, place in places:
            self._kept[step] += (tensors[f"{step}.{place}"],)

    def _past(self, step: int) -> list[tuple[int, tuple[Tensor, ...]]]:
        """What is remembered of the steps before one, oldest first."""
        return [(earlier, kept) for earlier, kept in self._kept.items() if earlier < step]

    def _remember(self, step: int, *tensors: Tensor) -> None:
        self._kept = dict([*self._past(step), (step, tensors)][-self._keep :])
