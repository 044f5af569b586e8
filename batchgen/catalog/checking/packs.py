"""Media in tars, as `verify` sees them: each member by itself, and what is beside those that rows
name. A tar stays as it is for as long as a row names a member of it; only what a death left behind
its last whole member is taken away."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from batchgen.catalog.checking.findings import Finding, Kind
from batchgen.catalog.checking.named import Named
from batchgen.media import formats
from batchgen.media.pack import END
from batchgen.media.stored import IN, MediaPlace
from batchgen.paths import RunPaths
from batchgen.regular import open_regular

_BLOCK = tarfile.BLOCKSIZE


def member_damage(run: RunPaths, stored: MediaPlace, num_frames: int) -> tuple[Kind, str] | None:
    """What is wrong with a member that a row names; None: nothing."""
    try:
        with open_regular(run.root / stored.file) as file:
            file.seek(stored.offset - _BLOCK)
            header, data = file.read(_BLOCK), file.read(stored.size)
        if len(data) != stored.size:
            return "size", f"{len(data)} bytes, published were {stored.size}"
        if (digest := hashlib.sha256(data).hexdigest()) != stored.sha256:
            return "sha256", f"sha256 {digest}, published was {stored.sha256}"
        if tarfile.TarInfo.frombuf(header, "utf-8", "strict").size != stored.size:
            return "undecodable", "its header in the tar is another's"
        frames = _frames_in(data, Path(stored.name).suffix)
    except tarfile.HeaderError as error:
        return "undecodable", f"its header in the tar is damaged: {error}"
    except (OSError, ValueError) as error:
        return "undecodable", str(error)
    if frames != num_frames:
        return "frames", f"{frames} frames, published were {num_frames}"
    return None


def _frames_in(data: bytes, extension: str) -> int:
    with tempfile.NamedTemporaryFile(prefix="batchgen-", suffix=extension) as draft:
        draft.write(data)
        draft.flush()
        return len(formats.by_extension(extension).read(Path(draft.name)))


def unnamed_in(run: RunPaths, tar: str, named: Named) -> Iterator[Finding]:
    """Members of a tar (relative to the run) that no row names, and bytes behind the last one."""
    members, end, tail = _walk(run.root / tar)
    for path in named.missing(f"{tar}{IN}{name}" for name in members):
        yield Finding("orphan", path, "no row names it; it stays in its tar")
    if tail and end >= named.ends[tar]:
        yield Finding("temporary", f"{tar}{IN}", f"{tail} bytes behind its last whole member")


def take_tails(run: RunPaths, findings: Iterable[Finding]) -> int:
    """Move what is behind the last whole members of tars to `orphans/`; returns their number. Call
    it when nothing is at work."""
    count = 0
    for finding in findings:
        if not finding.path.endswith(IN):
            continue
        tar = finding.path.removesuffix(IN)
        _, end, _ = _walk(run.root / tar)
        aside = run.orphans / f"{tar}.tail"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with (run.root / tar).open("r+b") as file:
            file.seek(end)
            with aside.open("ab") as kept:
                kept.write(file.read())
                os.fsync(kept.fileno())
            file.truncate(end)
            file.write(END)
            os.fsync(file.fileno())
        count += 1
    return count


def _walk(tar: Path) -> tuple[list[str], int, int]:
    """Names of the whole members, where the last one ends, and the bytes behind it that are not
    those of an end."""
    names, end, size = list[str](), 0, tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                ends = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if ends > size:
                    break
                names.append(member.name)
                end = ends
    except (tarfile.TarError, OSError):  # cut off in a header, or damaged there
        pass
    with open_regular(tar) as file:
        file.seek(end)
        tail = file.read()
    return names, end, len(tail) if tail.strip(b"\0") else 0
