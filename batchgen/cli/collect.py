"""`collect` and `verify`: publish the catalog, and check it with the media against the journals."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchgen.bars import progress_bars
from batchgen.cli.result import OK, ROWS_LEFT, Result
from batchgen.cli.runs import add_run_argument, find_run
from batchgen.cli.verbs import Verbs, add_verb
from batchgen.errors import UsageError
from batchgen.ledger.budget import budget_spent
from batchgen.ledger.status import live_attempts, read_status
from batchgen.paths import as_typed
from batchgen.runfile import read_run
from batchgen.words import counted

if TYPE_CHECKING:
    from batchgen.catalog.collect import CatalogSummary
    from batchgen.paths import RunPaths

SHOWN_FAILURES = 5
SHOWN_FINDINGS = 50


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    collect = add_verb(
        verbs,
        "collect",
        handle_collect,
        summary="write the catalog from what is committed",
        description="Write catalog/rows, catalog/runs.parquet and time_stats.csv; any time.",
        epilog="example:\n  batchgen collect latest",
    )
    verify = add_verb(
        verbs,
        "verify",
        handle_verify,
        summary="hold the catalog against the media, both ways",
        description="Check that every published file is there, whole, and decodes; find orphans.",
        epilog="examples:\n  batchgen verify latest\n  batchgen verify latest --repair",
    )
    for parser in (collect, verify):
        add_run_argument(parser)
    verify.add_argument(
        "--repair",
        action="store_true",
        help="move orphans and damaged media to RUN/orphans; `resume` renders damaged rows again",
    )
    verify.add_argument(
        "--purge", action="store_true", help="with --repair: delete orphans instead of moving them"
    )


def handle_collect(args: argparse.Namespace) -> Result:
    """Exit code 0 only if every row is ok."""
    from batchgen.catalog.collect import collect

    run = find_run(args)
    with progress_bars():
        summary = collect(run)
    return summary_result(run, summary)


def handle_verify(args: argparse.Namespace) -> Result:
    """Exit code 0 if nothing published is damaged and, after a repair, no row is left."""
    from batchgen.catalog.checking.findings import HARMLESS
    from batchgen.catalog.verify import verify
    from batchgen.ledger.upkeep.repair import set_records_aside
    from batchgen.runner.jobs import refuse_if_alive

    run = find_run(args)
    if args.purge and not args.repair:
        raise UsageError("--purge needs --repair")
    if args.repair:
        for path in set_records_aside(run):
            print(f"damaged     {path} was moved to {run.orphans}")
        refuse_if_alive(run)  # a repair would fence off ranks that are still loading
    with progress_bars():
        report = verify(run, repair=args.repair, purge=args.purge)
    found = sorted((*report.findings, *report.mended), key=lambda f: f.kind in HARMLESS)
    for finding in found[:SHOWN_FINDINGS]:
        row = f" (row {finding.row_id})" if finding.row_id else ""
        print(f"{finding.kind:11} {finding.path}{row}: {finding.detail}")
    every = sum(report.counts.values()) + len(report.mended)
    if (more := every - min(len(found), SHOWN_FINDINGS)) > 0:
        print(f"... and {more} more")
    size = f"{report.bytes / 2**20:,.2f} MiB"
    verdict = "all whole" if report.is_sound else f"{report.damaged} damaged"
    files, rows = counted(report.files, "media file"), counted(report.ok, "ok row")
    print(f"{files} ({size}) of {rows}: {verdict}")
    if report.mended:
        moved = counted(report.moved, "file")
        done = f"{moved} moved to {run.orphans}" if report.moved else "no file moved"
        deleted = f", {report.deleted} deleted" if report.deleted else ""
        print(f"repaired: {done}{deleted}, {counted(report.voided, 'damaged row')} to render again")
    if report.left:
        print(f"left     {report.rows - report.ok} of {report.rows} rows")
        print(*go_on_lines(run, True, []))
    sound = report.is_sound and not report.left
    return Result(OK if sound else ROWS_LEFT, {"run": str(run.root), **asdict(report)})


def summary_result(run: RunPaths, summary: CatalogSummary) -> Result:
    """Print counts, the first rows that are not ok, where to look and how to go on. Exit code 1
    unless all rows are ok."""
    others = {"failed": summary.failed, "quarantined": summary.quarantined, "left": summary.pending}
    print(f"{summary.ok} of {summary.rows} rows ok", end="")
    print("".join(f", {count} {name}" for name, count in others.items() if count))
    failed = _first_rows(run, "failed") if summary.failed else []
    quarantined = _first_rows(run, "quarantined") if summary.quarantined else []
    for row in (*failed, *quarantined):
        print(f"  {row['row_id']}: {row['error_type']}: {row['error']}")
    print(f"media    {run.media}\ncatalog  {run.catalog_rows}")
    if run.report.is_file():
        print(f"report   {run.report}")
    for part in summary.fidelity:
        print(f"audited  {part}")
    if summary.pending and (error := read_status(run).last_error):
        print(f"error    {error}")
    again = [row["row_id"] for row in quarantined]
    for line in go_on_lines(run, summary.pending + summary.failed > 0, again):
        print(line)
    data = {"run": str(run.root), "catalog": str(run.catalog_rows), "rows": summary.rows}
    data |= {"report": str(run.report)} if run.report.is_file() else {}
    counts = {"ok": summary.ok, **others}
    fidelity = {"fidelity": [asdict(part) for part in summary.fidelity]}
    return Result(OK if summary.ok == summary.rows else ROWS_LEFT, {**data, **counts, **fidelity})


def go_on_lines(run: RunPaths, left: bool, quarantined: Sequence[str]) -> list[str]:
    """The commands that render the rows that are not ok: a resume for rows that are `left` or
    failed, another for the `quarantined` (their first row ids). While ranks are at work, how to
    follow them instead: a resume would be refused."""
    if left and live_attempts(run):
        return [f"at work  batchgen status {as_typed(run.root)} --watch"]
    lines = [f"go on    batchgen resume {as_typed(run.root)}{with_budget(run)}"] if left else []
    if quarantined:
        rows = shlex.quote(",".join(quarantined))
        lines.append(f"again    batchgen retry {as_typed(run.root)} --rows {rows}")
    return lines


def with_budget(run: RunPaths) -> str:
    """What a resume needs beside the run, if what that was made with is spent: a limit that another
    resume was given was for that one."""
    limit = read_run(run).config["system"].get("max_gpu_hours")  # older ones have none
    spent = budget_spent(run, limit)
    return " --max-gpu-hours X  (of a higher X: the budget is spent)" if spent else ""


def _first_rows(run: RunPaths, status: str) -> list[dict[str, str]]:
    import pyarrow.dataset as ds

    columns = ["row_id", "error_type", "error"]
    chosen = ds.field("status") == status
    rows = ds.dataset(run.catalog_rows).scanner(columns=columns, filter=chosen)
    first: list[dict[str, str]] = rows.head(SHOWN_FAILURES).to_pylist()
    return first
