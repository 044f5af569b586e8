"""Which media are in a run's folder, and which of them rows name. Paths of ten million rows would
take gigabytes, so a path is remembered by a number of 64 bits, its hash in this process. By a
number alone nothing is called damaged: `verify` reads paths again where two are equal. An orphan
whose number is that of a named file would be missed, which is no harm."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress

import numpy as np

from batchgen.media.stored import MediaPlace
from batchgen.paths import RunPaths

_KEPT = {".hydra"}  # `output.hydra_dump_mode: video_dir` puts the configuration here


class Named:
    """The media that rows name."""

    def __init__(self, most: int) -> None:
        """There are at most so many."""
        self.most = most
        self._numbers = np.zeros(most, np.int64)
        self._count = 0
        self.ends: dict[str, int] = {}  # of each tar: where its last named member ends

    def add(self, media: Sequence[MediaPlace]) -> None:
        """Some more; call `settle` behind the last ones."""
        end = self._count + len(media)
        self._numbers[self._count : end] = numbers_of(stored.path for stored in media)
        self._count = end
        for stored in media:
            if stored.is_member:
                known = self.ends.get(stored.file, 0)
                self.ends[stored.file] = max(known, stored.offset + stored.size)

    def settle(self) -> None:
        """Make ready to be asked."""
        self._numbers = self._numbers[: self._count]
        self._numbers.sort()

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Those that no row names: media, or tars of which no member is named."""
        given = [path for path in paths if path not in self.ends]
        return [*compress(given, ~are_in(self._numbers, numbers_of(given)))]

    def strangers(self, numbers: np.ndarray) -> np.ndarray:
        """Those of some sorted numbers that are of no media that rows name; tars are."""
        others: np.ndarray = numbers[~are_in(self._numbers, numbers)]
        return others

    @property
    def repeated(self) -> np.ndarray:
        """Numbers, sorted, that two rows have."""
        again: np.ndarray = self._numbers[1:][self._numbers[1:] == self._numbers[:-1]]
        return again


def number_media(run: RunPaths) -> np.ndarray:
    """int64, sorted: the numbers of all paths below `media/`."""
    folders = [numbers_of(paths) for paths in media_folders(run)]
    numbers = np.concatenate([np.zeros(0, np.int64), *folders])
    numbers.sort()
    return numbers


def media_among(run: RunPaths, numbers: np.ndarray) -> Iterator[str]:
    """Paths (relative to the run) below `media/` whose number is one of these sorted ones."""
    for paths in media_folders(run) if len(numbers) else ():
        yield from compress(paths, are_in(numbers, numbers_of(paths)))


def media_folders(run: RunPaths) -> Iterator[list[str]]:
    """Media files and folders (format `frames`) below `media/`, temporary ones included, as sorted
    paths relative to the run; those of one folder at a time."""
    if run.media.is_dir():
        yield from _below(f"{run.root}/", run.media.relative_to(run.root).as_posix())


def _below(root: str, folder: str) -> Iterator[list[str]]:
    files, folders = list[str](), list[str]()
    with os.scandir(root + folder) as entries:
        for entry in entries:
            if entry.name in _KEPT:
                continue
            inner = entry.is_dir(follow_symlinks=False) and not os.path.splitext(entry.name)[1]
            (folders if inner else files).append(f"{folder}/{entry.name}")
    yield sorted(files)
    for inner_folder in sorted(folders):
        yield from _below(root, inner_folder)


def numbers_of(paths: Iterable[str]) -> np.ndarray:
    """int64, one for each path."""
    return np.fromiter(map(hash, paths), np.int64)


def are_in(numbers: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """bool, for each that is asked: whether it is one of the sorted `numbers`."""
    if not len(numbers):
        return np.zeros(len(asked), bool)
    places = np.minimum(np.searchsorted(numbers, asked), len(numbers) - 1)
    found: np.ndarray = numbers[places] == asked
    return found
