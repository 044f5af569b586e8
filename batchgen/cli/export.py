"""`export`: the finished rows of a run, in the forms that datasets come in."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from batchgen.cli.completion import completed_by, export_forms
from batchgen.cli.result import OK, Result
from batchgen.cli.runs import add_run_argument, find_run
from batchgen.cli.verbs import Verbs, add_verb
from batchgen.errors import UsageError
from batchgen.words import counted

PART_MIB = 256
EPILOG = """\
examples:
  batchgen export latest --to webdataset shards/        part-00000.tar: <key>.mp4, .txt, .json
  batchgen export latest --to imagefolder dataset/      datasets.load_dataset("imagefolder", ...)
  batchgen export latest --to parquet-bytes s3://bucket/fox?region=eu-central-1

DST is a folder or a URI that pyarrow.fs opens. Every file is read back after it was written. An
export that was interrupted goes on where it was; after `resume` it adds what is new
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = add_verb(
        verbs,
        "export",
        handle,
        summary="copy what was rendered, as a dataset",
        description="Copy the ok rows of a run's catalog with their media to another place.",
        epilog=EPILOG,
    )
    add_run_argument(parser)
    parser.add_argument("destination", metavar="DST", help="folder or URI")
    form = parser.add_argument(
        "--to", required=True, metavar="FORM", help="webdataset, imagefolder or parquet-bytes"
    )
    completed_by(form, export_forms)
    parser.add_argument(
        "--part-mib",
        type=float,
        default=PART_MIB,
        metavar="N",
        help=f"MiB of media in one part (default {PART_MIB})",
    )


def handle(args: argparse.Namespace) -> Result:
    """Exit code 0 once every part is complete."""
    from batchgen.export.export import export

    if not args.part_mib > 0:
        raise UsageError(f"--part-mib: {args.part_mib:g} is not above 0")
    run = find_run(args)
    done = export(run, args.to, args.destination, args.part_mib)
    mib = done.bytes / 2**20
    kept = f", {done.kept} of them complete before" if done.kept else ""
    print(f"{counted(done.rows, 'row')} in {counted(done.parts, 'part')}, {mib:,.2f} MiB{kept}")
    print(f"{args.to}  {args.destination}")
    return Result(OK, {"run": str(run.root), "destination": args.destination, **asdict(done)})
