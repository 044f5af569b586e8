"""What a rank loads is what its rows' keys were made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from batchgen.config.schema import JobConfig
from batchgen.errors import KeysChanged, WeightsError
from batchgen.paths import RunPaths, as_typed
from batchgen.planning.digests import Stamps, checkpoint_digest, stamps, whole_digest
from batchgen.planning.identity import KeyContext, context_of
from batchgen.planning.stamped import stamp
from batchgen.planning.store import read_loras
from batchgen.runfile import RunFile

_SHOWN = 3  # files named in one message


@contextmanager
def as_planned(
    root: RunPaths, header: RunFile, config: JobConfig, read: Callable[[], object]
) -> Iterator[None]:
    """Load the model in here. Raises KeysChanged, before or after, unless the checkpoint's files
    and all else in the rows' keys are what `header` says; `read` is told of each file.

    The files are read, not the cache of digests: every byte where the run was planned with full
    digests, else samples; of LoRA files every byte."""
    before = _hold(root, header, config, read)
    yield
    with _whole_when_planned(root, config):
        touched = _stamps(root, config) != before
    if touched:  # somebody was at them meanwhile
        _hold(root, header, config, read)


def _hold(root: RunPaths, header: RunFile, config: JobConfig, read: Callable[[], object]) -> Stamps:
    """How the files stood when they were read."""
    planned = KeyContext.from_json(header.key_context)
    with _whole_when_planned(root, config):
        before = _stamps(root, config)
        found = checkpoint_digest(config.model, planned.hash_mode, fresh=True, read=read)
    if names := planned.differences(context_of(config, found)):
        changed = _changed_files(header.checkpoint, found.files)
        where = f" ({changed} in {config.model.weights_folder})" if changed else ""
        what = f"{', '.join(names)} changed since this run was planned{where}"
        raise KeysChanged(f"{what}; {_what_to_do(root)}")
    _hold_loras(root, read)
    return before


def _hold_loras(root: RunPaths, read: Callable[[], object]) -> None:
    """The same for the files of adapters. WeightsError where this machine alone may not see one."""
    for file in read_loras(root.plan).values():
        path = Path(file.path)
        try:
            same = whole_digest(path, fresh=True) == file.sha256
        except FileNotFoundError as error:
            if not path.parent.is_dir():
                raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
            same = False
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
        if not same:
            is_gone = "changed" if path.exists() else "is gone"
            raise KeysChanged(
                f"{path} {is_gone} since this run was planned, and rows are drawn with that LoRA; "
                f"{_what_to_do(root)}"
            )
        read()


def _stamps(root: RunPaths, config: JobConfig) -> Stamps:
    """How the files of checkpoint and adapters stand."""
    loras = [Path(file.path) for file in read_loras(root.plan).values()]
    return [*stamps(config.model), *((str(p), *stamp(p)) for p in loras if p.exists())]


@contextmanager
def _whole_when_planned(root: RunPaths, config: JobConfig) -> Iterator[None]:
    """What cannot be loaded any more has changed too, unless it may be that this machine alone
    cannot read it."""
    try:
        yield
    except WeightsError as error:
        folder, files = config.model.weights_folder, config.model.files.values()
        if folder is None or isinstance(error.__cause__, OSError):
            raise
        if not all(home.is_dir() for home in (folder, *(Path(file).parent for file in files))):
            raise
        raise KeysChanged(
            f"model.weights changed since this run was planned: {error}; {_what_to_do(root)}"
        ) from error


def _what_to_do(root: RunPaths) -> str:
    return (
        "nothing was drawn with it: put back what was there and resume, or render finished rows "
        f"again too: `batchgen resume {as_typed(root.root)} --rerender-changed`"
    )


def _changed_files(planned: dict[str, str], found: dict[str, str]) -> str:
    """The first files that are others than when the run was planned; empty if it did not say."""
    names = sorted(planned.keys() | found.keys()) if planned else []
    changed = [name for name in names if planned.get(name) != found.get(name)]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return ", ".join(changed[:_SHOWN]) + more
