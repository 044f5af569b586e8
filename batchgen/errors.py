"""Every exception of batchgen, by what the caller can do about it.

BatchgenError
  UsageError            the user's to mend; exit code 2, no traceback
    ConfigError         a key of the job or an override
    ManifestError       a file, column or row of the manifest
    WeightsError        a checkpoint file or tensor
    RunStateError       a run folder that does not allow what was asked
  RowError              one row cannot be rendered; the others go on
    PromptTooLong       over the text encoder's limit under `model.prompt_overflow: error`
    NonFiniteOutput     NaN or infinity in the latents
    MediaError          the row's media file cannot be written
    WrongSize           a pipeline drew another size than the row's
    OutOfMemory         the device has no room, on any rung of the memory ladder
    Rejected            a judge rejects the row
  KeysChanged           what a rank would draw with is not what the run was planned with
  StorageError          the run folder cannot be written at all; the worker stops
  DividedForwardFailed  a rank failed inside a forward that others share
  SickNode              row after row of an attempt failed; it ends and leaves the rest
  ReplicaFailed         one rank of a replica failed where the others waited for it, or is gone
    ReplicaOutOfMemory  ... out of its device's memory, and the next attempt takes less of it
EndedBySignal           a signal ends this process (no Exception, as KeyboardInterrupt)
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


class BatchgenError(Exception):
    """Root of all errors raised on purpose."""


class UsageError(BatchgenError):
    """An error that the user can correct: the command line prints the message alone and exits with
    2."""


class ConfigError(UsageError):
    """A key of the job, the model, a profile or an override is wrong."""


class ManifestError(UsageError):
    """The manifest, one of its columns or some of its rows cannot be used."""


class WeightsError(UsageError):
    """A checkpoint is missing, of the wrong kind, or its tensors do not fit the model."""


class RunStateError(UsageError):
    """The run folder does not allow what was asked (unknown run, running already, keys changed)."""


class RowError(BatchgenError):
    """One row cannot be rendered. It is recorded with class and message, and the shard goes on."""


class PromptTooLong(RowError):
    """The prompt has more tokens than the text encoder takes and the policy is `error`."""


class NonFiniteOutput(RowError):
    """The denoised latents hold NaN or infinity."""


class MediaError(RowError):
    """The row's media file could not be encoded or written."""


class WrongSize(RowError):
    """A pipeline that draws by itself returned frames of another size or number than asked for."""


class OutOfMemory(RowError):
    """The device has no room for one row, or for the model, whatever was tried. Says what was."""


class Rejected(RowError):
    """A judge whose policy is not `record` rejects the row, with every seed that it allows."""


class KeysChanged(BatchgenError):
    """What a rank would draw with (weights, for example) is not what the row keys were made from.
    Nothing is drawn, and no row or machine is to blame."""


class StorageError(BatchgenError):
    """The journal itself cannot be written (disk full, quota, read-only): the worker stops."""


class DividedForwardFailed(BatchgenError):
    """A rank failed inside a forward that the ranks of its replica share: the others wait for it,
    so the attempt ends on all of them. Names rank, rows and the collective begun last."""


class SickNode(BatchgenError):
    """Row after row of an attempt failed, none by a fault of its own: the machine is to blame, and
    the rest is left to other ranks."""


class ReplicaFailed(BatchgenError):
    """A rank of a replica raised inside a forward that all its ranks share, died or fell silent:
    the attempt ends on all of them. Says which rank, which rows and in which collective."""

    def __init__(self, text: str, *, out_of_memory: bool = False) -> None:
        super().__init__(text)
        self.out_of_memory = out_of_memory  # of that rank's device


class ReplicaOutOfMemory(ReplicaFailed):
    """A rank was out of its device's memory, and the journal says what the next attempt does about
    it: no row is to blame."""


class EndedBySignal(KeyboardInterrupt):
    """A signal told this process to end. `going_on` says what work goes on and how to follow it;
    empty if none does."""

    def __init__(self, name: str, going_on: str = "") -> None:
        super().__init__(name)
        self.name, self.going_on = name, going_on


# Another try would fail in the same way.
FINAL_ERRORS = (PromptTooLong, NonFiniteOutput, WrongSize, Rejected)


def reason_of(error: OSError) -> str:
    """`path: reason` of a system error; the reason alone if it names no path."""
    names = [n for n in (error.filename, error.filename2) if isinstance(n, str | bytes)]
    reason = plain_reason(error)
    if not names:
        return reason
    found = next(filter(None, (obstacle(Path(os.fsdecode(name))) for name in names)), "")
    return f"{' -> '.join(_shown(os.fsdecode(name)) for name in names)}: {found or reason}"


def plain_reason(error: OSError) -> str:
    """The reason without the path."""
    reason = error.strerror or str(error)
    within = re.search(r"\[errno (\d+)\]", reason)  # pyarrow puts the number inside a sentence
    return os.strerror(int(within[1])) if within else reason


def _shown(path: str) -> str:
    """The path, shortened: a path too long for the system is also too long to read."""
    return path if len(path) < 300 else f"{path[:100]} ... {path[-100:]}"


@contextmanager
def naming(paths: Mapping[str, str | os.PathLike[str] | None], written: str = "") -> Iterator[None]:
    """Turns a system error about one of `paths` (name of an option or key -> path), or about
    something below it, into a UsageError that names it. An error without a path, as from a full
    disk, is about `written`."""
    try:
        yield
    except OSError as error:
        about = sorted(((name, path) for name, path in paths.items() if path), key=_longest)
        for name, path in about:
            named = str(path) in str(error) or _draft_of(Path(path)) in str(error)
            if named or (name == written and error.filename is None):
                reason = reason_of(error)
                if not error.filename or str(path) not in str(error):  # pyarrow's; of a draft
                    reason = f"{_shown(str(path))}: {obstacle(Path(path)) or plain_reason(error)}"
                raise UsageError(f"{name}: {reason}") from error
        raise


def _draft_of(path: Path) -> str:
    """Beginning of the names under which a file is written before it is renamed to `path`."""
    return str(path.parent / f".{path.name}.")


def _longest(named: tuple[str, object]) -> int:
    return -len(str(named[1]))


def obstacle(path: Path) -> str:
    """What is in the place of a folder that `path` needs: a dangling link, or a file; empty if
    nothing is."""
    for each in (path, *path.parents):
        with suppress(OSError):
            if each.is_symlink() and not each.exists():
                return f"{each} is a link to {os.readlink(each)}, which is not there"
            if each != path and each.exists() and not each.is_dir():
                return f"{each} is no folder"
    return ""


def closest(name: str, legal: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the legal name nearest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
