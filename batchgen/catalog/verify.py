"""Is every published row really there? Checks catalog and media against the journals, both ways.

Damage is anything wrong with what is published: a media file that is missing, has another size or
content, does not decode or has another number of frames; two rows that share a file; a journal line
that storage changed; a file of the ledger that is lost or cut short (`losses`); a catalog with
other rows than the plan, or one that names a file that is gone; an image in `inputs/` that is gone
or changed. Orphans (files that nothing names,
left behind by killed, retried or fenced-off attempts) and a catalog older than the journals are
reported, but are no damage.

Repair never edits another process's journal. It begins a submission of its own, without tasks: that
fences off any attempt that was taken for dead and might still publish an orphan. To that
submission's journal it writes `void` lines, which take back every earlier commit of the damaged
rows, so that these are left to render. Losses are recorded with the submission and thereby
accepted. Damaged media and orphans are moved to `orphans/`, and the catalog is collected again. A
purge deletes orphans instead, but none that a journal line or the catalog gives to a row that is
not ok now, and none at all if the ledger has lost lines.

Rows are read in groups, and media folder by folder. Between them only numbers are kept: what the
ledger knows of each row, and 8 bytes for each path (`named`). So memory goes with what is damaged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchgen.catalog.checking.findings import HARMLESS, WASTE, Collected, Finding, Findings, Kind
from batchgen.catalog.checking.inputs import damaged_inputs
from batchgen.catalog.checking.named import Named, are_in, media_among, number_media, numbers_of
from batchgen.catalog.checking.packs import member_damage, take_tails, unnamed_in
from batchgen.catalog.collect import collect
from batchgen.catalog.parts import GROUP_ROWS
from batchgen.catalog.table import catalog_rows, join
from batchgen.durable import digest_file
from batchgen.errors import RunStateError
from batchgen.ledger.reading.scan import STATUS_CODES, index_commits
from batchgen.ledger.reading.winners import Winners, winners
from batchgen.ledger.status import live_attempts
from batchgen.ledger.upkeep.losses import find_losses, highest_number, rows_gone
from batchgen.ledger.upkeep.pieces import pieces
from batchgen.ledger.upkeep.repair import claimed_media, delete_files, set_aside, void_rows
from batchgen.media import formats
from batchgen.media.publish import is_temporary
from batchgen.media.stored import IN, MediaPlace, file_of
from batchgen.paths import RunPaths
from batchgen.planfile import check_plan
from batchgen.progress import tell
from batchgen.records import Attempt
from batchgen.runfile import RunFile, read_run
from batchgen.words import Tabled

_TAG = re.compile(r".*-(s\d+t\d+r\d+p\d+)(\.tmp)?\.\w+")
_STAYS: tuple[Kind, ...] = (
    "journal",
    "unchecked",
    "input",
)  # kinds of findings that a repair leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(Tabled):
    """What was checked and found. A repair moves the findings that it dealt with from `findings` to
    `mended`, and all counts are those after it. Of a check alone `findings` has the first thousand
    of each kind, and `counts` says how many there are."""

    rows: int  # of the manifest
    ok: int  # rows with a published result, aliases included
    files: int  # media of these rows
    bytes: int
    findings: tuple[Finding, ...]
    counts: dict[str, int]  # of findings, by kind
    live: int  # attempts at work: their files are not judged
    mended: tuple[Finding, ...] = ()
    voided: int = 0  # rows taken back, left to render
    moved: int = 0  # files moved to `orphans/`
    deleted: int = 0  # orphans and temporary files
    submission: int = 0  # the repair's own; 0: none was needed

    @property
    def damage(self) -> tuple[Finding, ...]:
        """Findings about what is published."""
        return tuple(finding for finding in self.findings if finding.kind not in HARMLESS)

    @property
    def damaged(self) -> int:
        """Number of these findings, also of those that are not in `findings`."""
        return sum(count for kind, count in self.counts.items() if kind not in HARMLESS)

    @property
    def is_sound(self) -> bool:
        """Whether nothing published is damaged."""
        return not self.damage

    @property
    def left(self) -> bool:
        """Whether the repair has left rows to render."""
        lost = any(finding.kind == "lost" for finding in self.mended)
        return self.voided > 0 or (lost and self.ok < self.rows)


@dataclass(frozen=True, slots=True)
class _Published:
    row_index: int
    row_id: str
    path: str
    sha256: str
    bytes: int
    offset: int
    num_frames: int

    @property
    def stored(self) -> MediaPlace:
        return MediaPlace(self.path, self.sha256, self.bytes, self.offset)


@dataclass(slots=True)
class _Seen:
    """What the journals say that there is, summed over the whole plan."""

    ok: int
    named: Named
    files: int = 0
    bytes: int = 0

    @classmethod
    def none_of(cls, found: Winners) -> _Seen:
        """Before the first row is read."""
        is_ok = found.status == STATUS_CODES["ok"]
        own = int((is_ok & ~found.plan.alias).sum())
        return cls(int(is_ok[found.plan.original].sum()), Named(own))

    def add(self, media: Sequence[_Published]) -> None:
        self.named.add([item.stored for item in media])
        self.files += len(media)
        self.bytes += sum(item.bytes for item in media)


def verify(
    run: RunPaths,
    *,
    repair: bool = False,
    purge: bool = False,
) -> VerifyReport:
    """Check a run.

    With `repair`, damaged rows become left (`resume` renders them) and orphans are moved to
    `orphans/`, or deleted with `purge`. RunStateError if there is no run, if its plan is another,
    or if a repair is asked for while attempts are at work, or somebody lets the run go on while it
    looks.
    """
    header = read_run(run)
    check_plan(run, header)
    last = highest_number(run)  # before it is asked who is at work: others may begin meanwhile
    live = live_attempts(run)
    if repair and live:
        at = ", ".join(f"{a.attempt.tag} on {a.host}" for a in live[:3])
        raise RunStateError(f"{run.root}: repair must wait until nothing is at work ({at})")
    listed = number_media(run)  # before the journals: newer files have no line there
    losses = [Finding("lost", loss.path, loss.detail) for loss in find_losses(run)]
    found = winners(run, index_commits(run))
    findings = Findings(every=repair)
    findings.add(losses)
    seen = _check_rows(run, found, findings)
    findings.add(_shared(run, found, seen.named.repeated))
    findings.add(_bad_lines(run, found))
    busy = {status.attempt.tag for status in live}
    findings.add(_unnamed(run, listed, seen.named, busy, {loss.path for loss in losses}))
    findings.add(_unchecked(run, header))
    findings.add(damaged_inputs(run))
    report = VerifyReport(
        rows=len(found.status),
        ok=seen.ok,
        files=seen.files,
        bytes=seen.bytes,
        findings=tuple(findings.kept),
        counts=dict(findings.counts),
        live=len(live),
    )
    return _repair(run, report, purge, last) if repair else report


def _published(run: RunPaths, found: Winners) -> Iterator[tuple[pa.Table, list[_Published]]]:
    """Stream the plan: rows as a catalog would have them, and the media of those that are ok."""
    columns = ["row_index", "row_id", "media_path", "media_sha256", "media_bytes"]
    columns += ["media_offset", "media_frames", "status", "alias_of"]
    for plan in pieces([run.plan], GROUP_ROWS):
        table = catalog_rows(join(plan, found), "")
        rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
        yield (
            table,
            [_Published(*media) for *media, status, alias in rows if status == "ok" and not alias],
        )


def _check_rows(run: RunPaths, found: Winners, findings: Findings) -> _Seen:
    """Check the collected catalog and the media of every row, a group of rows at a time."""
    seen = _Seen.none_of(found)
    collected = Collected(run, frozenset(rows_gone(run, found).tolist()))
    findings.add(collected.first)
    folder = run.media.resolve()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for table, media in _published(run, found):
            findings.add(collected.compare(table))
            seen.add(media)
            for finding in pool.map(lambda item: _check_file(run, folder, item), media):
                findings.add([finding] if finding else [])
                tell("verify", 1, seen.named.most)
    findings.add(collected.rest())
    seen.named.settle()
    return seen


def _shared(run: RunPaths, found: Winners, numbers: np.ndarray) -> Iterator[Finding]:
    """Rows that name the same file; `numbers` are those of paths that may be shared."""
    owners: dict[str, _Published] = {}
    for _, media in _published(run, found) if len(numbers) else ():
        perhaps = are_in(numbers, numbers_of(item.path for item in media))
        for item in compress(media, perhaps):
            other = owners.setdefault(item.path, item)
            if other is not item:
                detail = f"rows {other.row_id} and {item.row_id} name the same file"
                yield from (_finding("duplicate", each, detail) for each in (other, item))


def _bad_lines(run: RunPaths, found: Winners) -> Iterator[Finding]:
    for facts in found.index.journals:
        path = facts.journal.path.relative_to(run.root).as_posix()
        for offset in facts.bad_lines:
            yield Finding("journal", path, f"the line at byte {offset} is damaged")


def _check_file(run: RunPaths, folder: Path, item: _Published) -> Finding | None:
    """Check place, size, content and decoding of a published file; `folder` is that of media, as it
    is without links."""
    path = run.root / item.stored.file
    if not path.resolve().is_relative_to(folder):
        return _finding("outside", item, "is not inside the run's media folder")
    if not path.exists():
        return _finding("missing", item, "does not exist")
    if item.stored.is_member:
        damage = member_damage(run, item.stored, item.num_frames)
        return None if damage is None else _finding(damage[0], item, damage[1])
    if not (path.is_file() or path.is_dir()):
        return _finding("undecodable", item, "is not a regular file")
    try:
        digest, size = digest_file(path)
        if size != item.bytes:
            return _finding("size", item, f"{size} bytes, published were {item.bytes}")
        if digest != item.sha256:
            return _finding("sha256", item, f"sha256 {digest}, published was {item.sha256}")
        frames = len(formats.by_extension(path.suffix).read(path))
    except (OSError, ValueError) as error:
        return _finding("undecodable", item, str(error))
    if frames != item.num_frames:
        return _finding("frames", item, f"{frames} frames, published were {item.num_frames}")
    return None


def _finding(kind: Kind, item: _Published, detail: str) -> Finding:
    return Finding(kind, item.path, detail, item.row_index, item.row_id)


def _unnamed(
    run: RunPaths, listed: np.ndarray, named: Named, busy: set[str], lost: set[str]
) -> Iterator[Finding]:
    """What is in the media folder and no row names, and journals that it shows to be lost beside
    those that are known to be. `listed` are numbers of the paths to look at."""
    first: dict[str, str] = {}  # of each attempt: its first orphan
    for path in media_among(run, named.strangers(listed)):
        tag = _tag_of(path)
        if tag in busy:
            continue
        if path in named.ends:
            found = [*unnamed_in(run, path, named)]
        elif is_temporary(Path(path).name):
            found = [Finding("temporary", path, "left behind by a crash before its rename")]
        else:
            found = [Finding("orphan", path, "no row names it")]
        if tag and (orphan := next((f for f in found if f.kind == "orphan"), None)):
            first.setdefault(tag, orphan.path)
        yield from found
    yield from _without_journal(run, first, lost)


def _tag_of(path: str) -> str:
    """The attempt that a path of media tells; empty if none."""
    tag = _TAG.fullmatch(Path(path).name)
    return tag[1] if tag else ""


def _without_journal(run: RunPaths, orphans: dict[str, str], known: set[str]) -> Iterator[Finding]:
    """Lost journals: an attempt has a journal before it has media."""
    for tag, orphan in orphans.items():
        journal = run.journal(Attempt(*map(int, re.findall(r"\d+", tag))))
        path = journal.relative_to(run.root).as_posix()
        if path not in known and not journal.exists():
            yield Finding("lost", path, f"is gone; {orphan} is of its attempt")


def _unchecked(run: RunPaths, header: RunFile) -> list[Finding]:
    if header.plan_bytes:
        return []
    detail = "the run is older than digests of plans: a change of the file would not be seen"
    return [Finding("unchecked", run.plan.name, detail)]


def _repair(run: RunPaths, report: VerifyReport, purge: bool, last: int) -> VerifyReport:
    """Deal with all findings but those of kinds in `_STAYS`: journal lines are never rewritten."""
    mended = tuple(f for f in report.findings if f.kind not in _STAYS)
    rows = {f.row_index: f for f in mended if f.kind not in (*HARMLESS, "catalog", "lost")}
    damaged = [(f.row_index, f.path, f"{f.kind}: {f.detail}") for f in rows.values()]
    waste = [f.path for f in mended if f.kind in WASTE and IN not in f.path]
    lost = any(f.kind == "lost" for f in mended)
    submission = void_rows(run, damaged, last) if damaged or waste or lost else 0
    found = winners(run, index_commits(run))
    after = _Seen.none_of(found)
    for _, media in _published(run, found):
        after.add(media)
    after.named.settle()
    unnamed = [run.root / path for path in after.named.missing(waste)]  # by now there may be more
    deleted = 0
    if purge and not any(f.kind in ("lost", "journal") for f in report.findings):
        claimed = {run.root / file_of(path) for path in claimed_media(run, found)}
        deleted = delete_files([path for path in unnamed if path not in claimed])
    files = [path for f in rows.values() if _is_ours(run, path := run.root / f.path)]
    moved = set_aside(run, [*unnamed, *files]) + take_tails(run, mended)
    if run.catalog_rows.exists() or run.catalog_rows.is_symlink():
        collect(run)
    return replace(
        report,
        ok=after.ok,
        files=after.files,
        bytes=after.bytes,
        findings=tuple(f for f in report.findings if f.kind in _STAYS),
        counts={kind: count for kind, count in report.counts.items() if kind in _STAYS},
        mended=mended,
        voided=len(rows),
        moved=moved,
        deleted=deleted,
        submission=submission,
    )


def _is_ours(run: RunPaths, path: Path) -> bool:
    """Whether the path itself (not what it may link to) lies in the run's media folder."""
    return path.parent.resolve().is_relative_to(run.media.resolve())
