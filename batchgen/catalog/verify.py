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
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchgen.catalog.collect import collect
from batchgen.catalog.findings import HARMLESS, WASTE, Collected, Finding, Kind
from batchgen.catalog.inputs import damaged_inputs
from batchgen.catalog.packs import member_damage, take_tails, unnamed_in
from batchgen.catalog.parts import GROUP_ROWS
from batchgen.catalog.table import catalog_rows, join
from batchgen.durable import digest_file
from batchgen.errors import RunStateError
from batchgen.ledger.reading.scan import index_commits
from batchgen.ledger.reading.winners import Winners, winners
from batchgen.ledger.status import live_attempts
from batchgen.ledger.upkeep.losses import find_losses, rows_gone
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
_KEPT = {".hydra"}  # `output.hydra_dump_mode: video_dir` puts the configuration here


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(Tabled):
    """What was checked and found. A repair moves the findings that it dealt with from `findings` to
    `mended`, and all counts are those after it."""

    rows: int  # of the manifest
    ok: int  # rows with a published result, aliases included
    files: int  # media of these rows
    bytes: int
    findings: tuple[Finding, ...]
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
class _Ledger:
    """What the journals say, gathered over the whole plan."""

    ok: int = 0
    media: list[_Published] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all published media."""
        return sum(item.bytes for item in self.media)


def verify(
    run: RunPaths,
    *,
    repair: bool = False,
    purge: bool = False,
) -> VerifyReport:
    """Check a run.

    With `repair`, damaged rows become left (`resume` renders them) and orphans are moved to
    `orphans/`, or deleted with `purge`. RunStateError if there is no run, if its plan is another,
    or if a repair is asked for while attempts are at work.
    """
    header = read_run(run)
    check_plan(run, header)
    live = live_attempts(run)
    if repair and live:
        at = ", ".join(f"{a.attempt.tag} on {a.host}" for a in live[:3])
        raise RunStateError(f"{run.root}: repair must wait until nothing is at work ({at})")
    listed = list(_media_files(run.media))  # before the journals: newer files have no line there
    losses = [Finding("lost", loss.path, loss.detail) for loss in find_losses(run)]
    found = winners(run, index_commits(run))
    ledger = _read_ledger(run, found, frozenset(rows_gone(run, found).tolist()))
    ledger.findings[:0] = losses
    ledger.findings += _bad_lines(run, found)
    ledger.findings += _check_media(run, ledger.media)
    busy = {status.attempt.tag for status in live}
    ledger.findings += _unnamed(run, listed, [item.stored for item in ledger.media], busy)
    ledger.findings += _without_journal(run, ledger.findings)
    ledger.findings += _unchecked(run, header)
    ledger.findings += damaged_inputs(run)
    report = VerifyReport(
        rows=len(found.status),
        ok=ledger.ok,
        files=len(ledger.media),
        bytes=ledger.size,
        findings=tuple(ledger.findings),
        live=len(live),
    )
    return _repair(run, report, purge) if repair else report


def _read_ledger(run: RunPaths, found: Winners, gone: Collection[int] = ()) -> _Ledger:
    """Stream the plan: media of every ok row, and how the collected catalog differs."""
    ledger = _Ledger()
    owners: dict[str, _Published] = {}
    collected = Collected(run, gone)
    ledger.findings += collected.first
    for plan in pieces([run.plan], GROUP_ROWS):
        table = catalog_rows(join(plan, found), "")
        ledger.findings += collected.compare(table)
        columns = ["row_index", "row_id", "media_path", "media_sha256", "media_bytes"]
        columns += ["media_offset", "media_frames", "status"]
        values = [table[name].to_pylist() for name in columns]
        for *media, status, alias in zip(*values, table["alias_of"].to_pylist(), strict=True):
            ledger.ok += status == "ok"
            if status != "ok" or alias:
                continue
            item = _Published(*media)
            other = owners.setdefault(item.path, item)
            if other is not item:
                detail = f"rows {other.row_id} and {item.row_id} name the same file"
                ledger.findings += [_finding("duplicate", each, detail) for each in (other, item)]
            ledger.media.append(item)
    ledger.findings += collected.rest()
    return ledger


def _bad_lines(run: RunPaths, found: Winners) -> Iterator[Finding]:
    for facts in found.index.journals:
        path = facts.journal.path.relative_to(run.root).as_posix()
        for offset in facts.bad_lines:
            yield Finding("journal", path, f"the line at byte {offset} is damaged")


def _check_media(run: RunPaths, media: list[_Published]) -> list[Finding]:
    """Check place, size, content and decoding of every published file, on one thread for each
    CPU."""
    findings: list[Finding] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for finding in pool.map(lambda item: _check_file(run, item), media):
            if finding is not None:
                findings.append(finding)
            tell("verify", 1, len(media))
    return findings


def _check_file(run: RunPaths, item: _Published) -> Finding | None:
    path = run.root / item.stored.file
    if not path.resolve().is_relative_to(run.media.resolve()):
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


def _media_files(folder: Path) -> Iterator[Path]:
    """Media files and folders (format `frames`) below `media/`, temporary ones included."""
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.name in _KEPT:
            continue
        if entry.is_dir() and not entry.is_symlink() and not entry.suffix:
            yield from _media_files(entry)
        else:
            yield entry


def _unnamed(
    run: RunPaths, listed: list[Path], media: list[MediaPlace], busy: set[str]
) -> Iterator[Finding]:
    named = defaultdict[str, list[MediaPlace]](list)  # by the file that they are in
    for stored in media:
        named[stored.file].append(stored)
    for path in listed:
        relative = path.relative_to(run.root).as_posix()
        tag = _TAG.fullmatch(path.name)
        if tag is not None and tag[1] in busy:
            continue
        if relative in named:
            if named[relative][0].is_member:
                yield from unnamed_in(run, relative, named[relative])
        elif is_temporary(path.name):
            yield Finding("temporary", relative, "left behind by a crash before its rename")
        else:
            yield Finding("orphan", relative, "no row names it")


def _without_journal(run: RunPaths, findings: list[Finding]) -> list[Finding]:
    """Lost journals that no other finding reports: an attempt has a journal before it has media."""
    known = {finding.path for finding in findings if finding.kind == "lost"}
    lost: dict[str, Finding] = {}
    for finding in findings:
        tag = _TAG.fullmatch(Path(finding.path).name)
        if finding.kind == "orphan" and tag is not None:
            journal = run.journal(Attempt(*map(int, re.findall(r"\d+", tag[1]))))
            path = journal.relative_to(run.root).as_posix()
            if path not in known and not journal.exists():
                lost.setdefault(
                    path, Finding("lost", path, f"is gone; {finding.path} is of its attempt")
                )
    return [*lost.values()]


def _unchecked(run: RunPaths, header: RunFile) -> list[Finding]:
    if header.plan_bytes:
        return []
    detail = "the run is older than digests of plans: a change of the file would not be seen"
    return [Finding("unchecked", run.plan.name, detail)]


def _repair(run: RunPaths, report: VerifyReport, purge: bool) -> VerifyReport:
    """Deal with all findings but those of kinds in `_STAYS`: journal lines are never rewritten."""
    mended = tuple(f for f in report.findings if f.kind not in _STAYS)
    rows = {f.row_index: f for f in mended if f.kind not in (*HARMLESS, "catalog", "lost")}
    damaged = [(f.row_index, f.path, f"{f.kind}: {f.detail}") for f in rows.values()]
    waste = [run.root / f.path for f in mended if f.kind in WASTE and IN not in f.path]
    lost = any(f.kind == "lost" for f in mended)
    submission = void_rows(run, damaged) if damaged or waste or lost else 0
    found = winners(run, index_commits(run))
    after = _read_ledger(run, found)
    named = {
        run.root / item.stored.file for item in after.media
    }  # looked up again: more may be published
    waste = [path for path in waste if path not in named]
    deleted = 0
    if purge and not any(f.kind in ("lost", "journal") for f in report.findings):
        claimed = {run.root / file_of(path) for path in claimed_media(run, found)}
        deleted = delete_files([path for path in waste if path not in claimed])
    files = [path for f in rows.values() if _is_ours(run, path := run.root / f.path)]
    moved = set_aside(run, [*waste, *files]) + take_tails(run, mended)
    if run.catalog_rows.exists() or run.catalog_rows.is_symlink():
        collect(run)
    return replace(
        report,
        ok=after.ok,
        files=len(after.media),
        bytes=after.size,
        findings=tuple(f for f in report.findings if f.kind in _STAYS),
        mended=mended,
        voided=len(rows),
        moved=moved,
        deleted=deleted,
        submission=submission,
    )


def _is_ours(run: RunPaths, path: Path) -> bool:
    """Whether the path itself (not what it may link to) lies in the run's media folder."""
    return path.parent.resolve().is_relative_to(run.media.resolve())
