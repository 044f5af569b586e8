"""`manifest build` and `manifest check`: make a manifest, or list all that is wrong with one."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchgen.cli.result import OK, USAGE, Result
from batchgen.cli.verbs import Verbs, add_verb, path_argument, refuse_special
from batchgen.errors import ConfigError, naming
from batchgen.words import counted

if TYPE_CHECKING:
    from batchgen.planning.manifests.check import ManifestReport
    from batchgen.planning.manifests.problems import Problem

BUILD_EPILOG = """\
examples:
  batchgen manifest build prompts.txt prompts.parquet
  batchgen manifest build prompts.txt prompts.parquet --seeds 4
  batchgen manifest build scenes.csv sweep.parquet guidance_scale=4,6 num_steps=20,50
  batchgen manifest build pictures/ animate.parquet
  batchgen manifest build objects.csv photos.parquet --template "{style} photo of {object}"
  batchgen manifest build prompts.txt many.parquet --seeds 8 --wildcards lists/

a .txt file has one prompt a line, or options as the web UIs write them (--prompt "a fox" --steps
20); .csv, .tsv and .jsonl name request columns; other columns are kept and must be listed in the
job's carry_columns; in a folder of images each (x.png) is a row with its caption (x.txt), or a line
of the metadata.csv, .jsonl or .parquet beside it (imagefolder); what is written passes `manifest
check`
"""
CHECK_EPILOG = """\
examples:
  batchgen manifest check prompts.parquet
  batchgen manifest check prompts.parquet --job jobs/demo.yaml
  batchgen manifest check prompts.parquet --job jobs/demo.yaml output.geometry=round

without --job the sizes and frame counts, which depend on the model, are not judged
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    group = verbs.add_parser("manifest", help="build a manifest, or check one")
    actions = group.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = add_verb(
        actions,
        "build",
        handle_build,
        summary="make a manifest from .txt, .csv, .tsv, .jsonl or Parquet",
        description="Make a Parquet manifest, with seeds and sweeps.",
        epilog=BUILD_EPILOG,
    )
    build.add_argument(
        "source",
        type=path_argument,
        metavar="SOURCE",
        help=".txt, .csv, .tsv, .jsonl, .parquet, or a folder of images",
    )
    build.add_argument(
        "out", type=path_argument, metavar="OUT", help="the manifest to write (.parquet)"
    )
    build.add_argument(
        "sweeps",
        nargs="*",
        default=[],  # without it argparse would call them required
        metavar="column=a,b",
        help="every row once with each value",
    )
    build.add_argument("--seeds", type=int, metavar="K", help="every row with seeds 0 .. K-1")
    build.add_argument(
        "--template", metavar="TEXT", help='prompts of other columns: "{style} photo of {object}"'
    )
    build.add_argument(
        "--wildcards",
        type=path_argument,
        metavar="FOLDER",
        help="__animal__ in a prompt becomes a line of FOLDER/animal.txt",
    )
    check = add_verb(
        actions,
        "check",
        handle_check,
        summary="list every illegal row",
        description="Check a manifest and list every illegal value with its row number.",
        epilog=CHECK_EPILOG,
    )
    check.add_argument(
        "manifest", type=path_argument, metavar="MANIFEST", help="file or folder of parts"
    )
    check.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the job")
    check.add_argument("--job", type=path_argument, help="check against this job and its model")
    check.add_argument(
        "--limit", type=int, default=1000, metavar="N", help="list at most N values (default 1000)"
    )


def handle_build(args: argparse.Namespace) -> Result:
    """Write the manifest and print what is in it."""
    from batchgen.planning.manifests.building.build import build_manifest

    sweeps: dict[str, str] = {}
    for text in args.sweeps:
        column, separator, values = text.partition("=")
        if not separator:
            raise ConfigError(f"{text!r}: write a sweep as column=a,b")
        if column in sweeps:
            raise ConfigError(f"{column}: is swept twice; write one sweep with all its values")
        sweeps[column] = values
    refuse_special("OUT", args.out)
    with naming({"SOURCE": args.source, "OUT": args.out}):
        built = build_manifest(
            args.source,
            args.out,
            seeds=args.seeds,
            sweeps=sweeps,
            template=args.template,
            wildcards=args.wildcards,
        )
    factor = built.rows // built.source_rows
    times = f" ({built.source_rows:,} x {factor})" if factor > 1 else ""
    rows = counted(built.rows, "row")
    print(f"{built.path}: {rows}{times}, columns {', '.join(built.columns)}")
    return Result(OK, asdict(built))


def handle_check(args: argparse.Namespace) -> Result:
    """Exit code 2 if a row is illegal."""
    from batchgen.planning.manifests.check import check_manifest
    from batchgen.planning.manifests.loras import any_lora
    from batchgen.runner.loras import judge_of

    job = None
    if args.job is not None:
        from batchgen.config.composing.compose import compose_job
        from batchgen.config.composing.overrides import verbatim

        manifest = verbatim("manifest", str(args.manifest.absolute()))
        job = compose_job(args.job, [*args.overrides, manifest]).config
    elif args.overrides:
        raise ConfigError(f"{args.overrides[0]}: overrides belong to a job; add --job JOB")
    judge = any_lora if job is None else judge_of(job)
    with naming({"MANIFEST": args.manifest}):
        report = check_manifest(args.manifest, job, limit=args.limit, judge=judge)
    _print(report)
    return Result(USAGE if report.problems.count else OK, _data(report))


def _print(report: ManifestReport) -> None:
    if report.problems.count:
        print(report.problems.message(report.manifest.path, report.manifest.place))
        return
    print(f"{report.manifest.path}: {counted(report.rows, 'row')}, all legal{report.note}")


def _data(report: ManifestReport) -> dict[str, object]:
    return {
        "manifest": str(report.manifest.path),
        "rows": report.rows,
        "illegal": report.problems.count,
        "problems": [_problem(report, problem) for problem in report.problems.first],
    }


def _problem(report: ManifestReport, problem: Problem) -> dict[str, object]:
    file, number = report.manifest.where(problem.row)
    return asdict(problem) | {"file": str(file), "row_in_file": number}
