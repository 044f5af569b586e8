"""Which collective an error came out of. Loads no torch: who leads a team reads it too."""

from __future__ import annotations

from batchgen.errors import DividedForwardFailed


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
