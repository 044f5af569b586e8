"""What ended a rank, and in which collective. Loads no torch: who leads a team reads it too."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.errors import DividedForwardFailed, ReplicaFailed


@dataclass(frozen=True, slots=True)
class Failure:
    """What ended a rank."""

    text: str
    here: bool  # raised by this rank itself, not met in a collective that another one left
    short: bool = False  # its device was out of memory

    @property
    def error(self) -> ReplicaFailed:
        return ReplicaFailed(self.text, out_of_memory=self.short)


def collective_of(error: BaseException) -> str:
    """The name of the collective of torch that raised it, or what it was raised from; empty if none
    did."""
    if isinstance(error, DividedForwardFailed) and error.__cause__ is not None:
        error = error.__cause__
    name, trace = "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__", "").startswith("torch.distributed"):
            found = frame.f_code.co_name
            name = name if found == "wrapper" else found  # it logs around each of them
        trace = trace.tb_next
    return name


def is_short(error: BaseException | None) -> bool:
    """Whether an error is that a device was out of memory, or was raised from that. By its name:
    who leads a team need not load torch."""
    while error is not None and type(error).__name__ != "OutOfMemoryError":
        error = error.__cause__
    return error is not None
