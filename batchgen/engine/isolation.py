"""The border behind which one row may fail while the others go on."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import torch

from batchgen.errors import ReplicaFailed

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """What a piece of work raised, and how long it took to."""

    error: Exception
    seconds: float


def attempt(work: Callable[[], T]) -> T | Failed:
    """The result of `work`, or the exception it raised as a value.

    A broken accelerator or a broken replica is not the row's fault and stays broken, so it is
    raised on; running out of an accelerator's memory can be."""
    begin = perf_counter()
    try:
        return work()
    except torch.OutOfMemoryError as error:
        return Failed(_frameless(error), perf_counter() - begin)
    except (torch.AcceleratorError, ReplicaFailed):
        raise
    except Exception as error:
        return Failed(error, perf_counter() - begin)


def is_short(result: object) -> bool:
    """Whether a result is that the device was out of memory."""
    return isinstance(result, Failed) and isinstance(result.error, torch.OutOfMemoryError)


def _frameless(error: torch.OutOfMemoryError) -> torch.OutOfMemoryError:
    """The same error with its traceback as text: frames would hold the tensors that had no room
    beside each other, and whatever is tried next would have none either."""
    told = torch.OutOfMemoryError(str(error))
    told.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())
    return told
