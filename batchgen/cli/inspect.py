"""`inspect`: what a media file says about how it was made, and the row that makes it again."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.cli.result import OK, Result
from batchgen.cli.verbs import Verbs, add_verb, path_argument, refuse_special
from batchgen.errors import MediaError, UsageError, naming

if TYPE_CHECKING:
    from batchgen.media.note import Note

EPILOG = """\
examples:
  batchgen inspect outputs/demo-20260101-120000-abcdef/media/row-001-s1t0r0p0.mp4
  batchgen inspect fox.png --manifest again.parquet
  batchgen inspect outputs/<run>/media/00000-s1t0r0p0.tar::row-001-s1t0r0p0.png

with --manifest the row is written as a manifest, and the overrides are printed under which the job
that drew it gives the same pixels again
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = add_verb(
        verbs,
        "inspect",
        handle,
        summary="how a media file was made",
        description="Show the prompt and the settings that a media file carries.",
        epilog=EPILOG,
    )
    parser.add_argument("file", metavar="FILE", type=path_argument, help="a file of a run's media/")
    parser.add_argument(
        "--manifest", metavar="OUT", type=path_argument, help="write its row (.parquet)"
    )


def handle(args: argparse.Namespace) -> Result:
    """Print the note of a file; UsageError if it has none."""
    with naming({"FILE": args.file, "OUT": args.manifest}):
        note = _note_in(args.file)
        if args.manifest is not None:
            refuse_special("OUT", args.manifest)
            _write_row(note, args.file, args.manifest)
    _print(note, args.manifest)
    return Result(
        OK,
        {
            "file": str(args.file),
            "family": note.origin.family,
            "weights": note.origin.weights,
            "row_key": note.row_key,
            "request": note.values,
            "overrides": note.overrides(),
        },
    )


def _note_in(file: Path) -> Note:
    from batchgen.media import formats
    from batchgen.media.note import parse_note
    from batchgen.media.stored import IN, as_file, file_of

    if not Path(file_of(str(file))).exists():
        raise UsageError(f"{file}: is not there; FILE is a file of a run's media/")
    if file.suffix == ".tar":
        raise UsageError(f"{file}: holds many files; name one: {file}{IN}MEMBER, see media_path")
    try:
        with as_file(file) as readable:
            text = formats.by_extension(readable.suffix).read_note(readable)
        if not text:
            raise UsageError(
                f"{file}: carries no metadata: output.embed_metadata was false, its format has no "
                "place for them, or they were too long for it"
            )
        return parse_note(text)
    except (ValueError, MediaError, OSError) as error:
        raise UsageError(f"{file}: {error}") from error


def _write_row(note: Note, file: Path, manifest: Path) -> None:
    from batchgen.planning.manifests.building.build import write_rows

    row = note.row()
    if images := [f"{name}: {row[name]}" for name in ("image", "last_image") if row.get(name)]:
        raise UsageError(
            f"{file}: was drawn from a picture that it does not hold ({', '.join(images)}, its "
            "sha256), so it cannot be written as a row; the picture is in the inputs/ of its run"
        )
    write_rows([row], file, manifest)


def _print(note: Note, manifest: Path | None) -> None:
    origin = {"family": note.origin.family, "weights": note.origin.weights}
    shown = {**note.values, **origin, "row_key": note.row_key}
    width = max(map(len, shown))
    for name, value in shown.items():
        print(f"{name:{width}}  {_printable(str(value))}")
    if manifest is not None:
        job = shlex.join([f"manifest={manifest}", *note.overrides()])
        print(f"\n{manifest}: 1 row; draw it again by: batchgen run JOB {job}")


def _printable(text: str) -> str:
    """A terminal obeys control characters, and the file may be anybody's: only lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
