"""`status`, `cancel`, `logs`: look at a run, end it. `status` needs only the standard library."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap

from batchgen.cli.collect import with_budget
from batchgen.cli.result import OK, ROWS_LEFT, Result
from batchgen.cli.runs import add_run_argument, find_run
from batchgen.cli.streams import reader_is_gone
from batchgen.cli.verbs import Verbs, add_verb
from batchgen.ledger.fidelity import read_fidelity
from batchgen.ledger.intent import last_render
from batchgen.ledger.status import AttemptStatus, RunStatus, read_status
from batchgen.paths import RunPaths, as_typed
from batchgen.records import Attempt, Layout
from batchgen.scheduler.commands import slurm_intent
from batchgen.scheduler.queue import QueueView, look, queue_lines, with_queue
from batchgen.words import counted, duration, rank_time

WATCH_S = 1.0
INDENT = 10  # of what does not fit in a line
TAIL_LINES = 20
SHOWN_FAILURES = 20
SHOWN_ATTEMPTS = 16
JSON_ENDED = 100  # most ended attempts in --json
QUEUE_WATCH_S = 10.0  # seconds between two questions to the scheduler


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    status = add_verb(
        verbs,
        "status",
        handle_status,
        summary="rows done, failed, running and left",
        description="Rows done, failed, running and left; attempts, rate and cost so far.",
        epilog="examples:\n  batchgen status latest\n  batchgen status latest --watch",
    )
    cancel = add_verb(
        verbs,
        "cancel",
        handle_cancel,
        summary="end a run's ranks; what is committed stays",
        description="Drain the ranks of a run, kill what does not end. `resume` goes on later.",
        epilog="example:\n  batchgen cancel latest",
    )
    logs = add_verb(
        verbs,
        "logs",
        handle_logs,
        summary="the end of every log, or the failures",
        description="The end of each log of the run, or what failed and why.",
        epilog="examples:\n  batchgen logs latest\n  batchgen logs latest --failed",
    )
    for parser in (status, cancel, logs):
        add_run_argument(parser, looks=parser is not cancel)
    status.add_argument("--watch", action="store_true", help="refresh until nothing runs")
    status.add_argument(
        "--offline", action="store_true", help="ask no scheduler: the run folder alone"
    )
    logs.add_argument(
        "--failed", action="store_true", help="failed rows and attempts with their errors"
    )


# ------------------------------------------------------------------------------------------ status
def handle_status(args: argparse.Namespace) -> Result:
    """Exit code 0 if every row is ok, else 1."""
    run = find_run(args)
    view = None if args.offline else look(run)
    status = with_queue(read_status(run), view)
    asked = time.monotonic()
    while args.watch and _goes_on(run, status, view):
        _redraw(_lines(run, status, view))
        if reader_is_gone():
            break
        time.sleep(WATCH_S)
        if view is not None and time.monotonic() - asked > QUEUE_WATCH_S:
            view, asked = look(run), time.monotonic()
        status = with_queue(read_status(run), view)
    lines = _lines(run, status, view)
    _redraw(lines) if args.watch else print("\n".join(lines))
    return Result(OK if status.ok == status.rows else ROWS_LEFT, _data(run, status, view))


def _data(run: RunPaths, status: RunStatus, view: QueueView | None) -> dict[str, object]:
    """All figures for `--json`; of the attempts those that run and the last JSON_ENDED that
    ended."""
    over = [a for a in status.attempts if a.life != "running"]
    latest = sorted(over, key=lambda a: a.heartbeat_age_s)[:JSON_ENDED]
    listed = {a.attempt for a in latest}
    attempts = [a for a in status.attempts if a.life == "running" or a.attempt in listed]
    return {
        **asdict(replace(status, attempts=tuple(attempts))),
        "attempts_total": len(status.attempts),
        "alive": status.alive,
        "queue": asdict(view) if view else None,
        "fidelity": [asdict(part) for part in read_fidelity(run)],  # as last collected
    }


def _goes_on(run: RunPaths, status: RunStatus, view: QueueView | None) -> bool:
    """Whether there is more to watch: ranks at work, or tasks that may still start or end."""
    if view is not None and not view.absent:
        return not view.empty
    if status.alive or slurm_intent(run) is not None:
        return bool(status.alive)  # Slurm was not asked, so waiting tasks are unknown
    from batchgen.runner.jobs import is_alive

    return is_alive(run)


def _redraw(lines: list[str]) -> None:
    """Print over the last picture on a terminal, below it elsewhere."""
    if sys.stdout.isatty():
        print("\033[H\033[2J", end="")
    print("\n".join(lines), flush=True)


def _lines(run: RunPaths, status: RunStatus, view: QueueView | None) -> list[str]:
    """As wide as the terminal, but for those with a path that is wider."""
    width = get_terminal_size((0, 0)).columns
    shown: list[str] = []
    for line in _all_lines(run, status, view):
        fits = max(map(len, line.split()), default=0) <= width - INDENT
        if fits:
            shown += wrap(line, width, subsequent_indent=" " * INDENT, break_on_hyphens=False)
        else:  # also where there is no terminal
            shown.append(line)
    return shown


def _all_lines(run: RunPaths, status: RunStatus, view: QueueView | None) -> list[str]:
    lines = [
        f"{Path(status.run).name}  {status.state}",
        f"rows      {status.rows}: {status.ok} ok, {status.failed} failed, "
        f"{status.running} running, {status.left} left"
        + (f", {status.quarantined} quarantined" if status.quarantined else "")
        + (f" ({status.aliases} share another row's media)" if status.aliases else ""),
        f"progress  {_bar(status.ok, status.rows)}  {_rate(status)}".rstrip(),
        f"cost      {_cost(status)} in {counted(len(status.attempts), 'attempt')}, "
        f"submission {status.submission}",
    ]
    if status.layout is not None:
        lines.append(f"layout    {_layout(status.layout)}")
    shown = [a for a in status.attempts if a.attempt.submission == status.submission]
    lines += queue_lines(view)
    lines += [_attempt_line(attempt) for attempt in shown[-SHOWN_ATTEMPTS:]]
    if status.last_error:
        lines.append(f"last error  {status.last_error}")
    if status.state == "finished":
        lines += _catalog_lines(run, view)
    if status.state == "submitted":
        waits = (
            "waits for its next ranks" if status.left else "all rows are done; the catalog follows"
        )
        lines.append(waits if shown else "no rank has started yet")
    elif status.left and not status.alive:
        lines.append(f"go on with  batchgen resume {as_typed(run.root)}{with_budget(run)}")
    return lines


def _cost(status: RunStatus) -> str:
    devices = {attempt.device for attempt in status.attempts} - {""}
    return rank_time(status.gpu_hours, "cpu" if devices <= {"cpu"} else max(devices))


def _layout(layout: Layout) -> str:
    where = f"{counted(layout.nodes, 'node')} of {counted(layout.ranks_per_node, 'rank')}"
    return f"{layout} on {where}; {layout.reason}"


def _catalog_lines(run: RunPaths, view: QueueView | None) -> list[str]:
    """Where the catalog is; nothing while a steward has yet to write it."""
    if run.catalog_rows.is_dir():
        audited = [f"audited   {part}" for part in read_fidelity(run)]
        return [f"catalog   {run.catalog_rows}", *audited]
    if view is not None and not view.empty:
        return []
    return [f"no catalog yet: batchgen collect {as_typed(run.root)}"]


def _bar(done: int, total: int, width: int = 30) -> str:
    filled = width * done // max(1, total)
    return f"[{'#' * filled}{'.' * (width - filled)}] {100 * done // max(1, total)} %"


def _rate(status: RunStatus) -> str:
    if not status.rate_per_s:
        return ""
    eta = "" if status.eta_s is None else f", about {duration(status.eta_s)} to go"
    return f"{60 * status.rate_per_s:.1f} rows a minute{eta}"


def _attempt_line(attempt: AttemptStatus) -> str:
    how = attempt.ended or (attempt.phase if attempt.life == "running" else "died")
    ranks = f" x{attempt.devices}" if attempt.devices > 1 else ""
    rung = f", short of memory: {attempt.memory_rung}" if attempt.memory_rung else ""
    return (
        f"  {attempt.attempt.tag:10} {attempt.life:8} {how:12} {attempt.commits:6} rows  "
        f"{duration(attempt.wall_s):>8}  {attempt.host} {attempt.device}{ranks}{rung}"
    )


# ------------------------------------------------------------------------------------ cancel, logs
def handle_cancel(args: argparse.Namespace) -> Result:
    from batchgen.runner.jobs import is_alive
    from batchgen.runner.steward import cancel
    from batchgen.scheduler.commands import SchedulerError

    run = find_run(args)
    try:
        ended = cancel(run)
    except SchedulerError as error:
        raise SchedulerError(
            f"{error}; ranks at work find the mark and end by themselves; ask again later"
        ) from error
    if ended is None:
        print("nothing is at work")
        return Result(OK, {"run": str(run.root), "ranks": 0})
    status = read_status(run)
    ranks = counted(ended, "rank")
    print(f"{ranks} ended; {status.ok} of {status.rows} rows ok, {status.left} left")
    if is_alive(run):
        print(f"something is still at work: see `batchgen status {as_typed(run.root)}`")
        return Result(ROWS_LEFT, {"run": str(run.root), "ranks": ended})
    return Result(OK, {"run": str(run.root), "ranks": ended, "ok": status.ok, "left": status.left})


def handle_logs(args: argparse.Namespace) -> Result:
    run = find_run(args)
    if args.failed:
        return _failures(run)
    files = _log_files(run)
    for file in files:
        print(f"==> {file.relative_to(run.root)}")
        print("\n".join(file.read_text(errors="replace").splitlines()[-TAIL_LINES:]))
    return Result(OK, {"run": str(run.root), "logs": [str(file) for file in files]})


def _log_files(run: RunPaths) -> list[Path]:
    """Logs of the ranks, and what the processes of the last submission with tasks printed, if not
    empty."""
    found = sorted(run.logs.glob("*.log")) + sorted(run.logs.glob("*/*.log"))
    if (last := last_render(run)) is not None:
        for printed in ("submitit/*.out", "submitit/*.err"):
            found += sorted(run.submission(last.number).glob(printed))
        found += run.printed(last.number)
    return [file for file in found if file.stat().st_size]


def _failures(run: RunPaths) -> Result:
    """Failed rows with their errors, then attempts that died or ended with an error, with the end
    of what they printed."""
    from batchgen.catalog.frames import failures, snapshot

    rows = snapshot(run.root)
    failed = rows[rows.row_id.isin(failures(rows).row_id)]
    for row in failed.head(SHOWN_FAILURES).itertuples():
        print(f"==> {row.row_id}  {row.error_type}: {row.error}\n{row.traceback}")
    if len(failed) > SHOWN_FAILURES:
        print(f"... and {len(failed) - SHOWN_FAILURES} more; see catalog.failures() in pandas")
    ended = [a for a in read_status(run).attempts if a.life == "dead" or a.error]
    for attempt in ended[-SHOWN_FAILURES:]:
        print(f"==> {_attempt_line(attempt).strip()}  {attempt.error}")
        if log := _printed_by(run, attempt.attempt, attempt.devices):
            print("\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:]))
    if not (len(failed) or ended):
        print("no row has failed and no attempt has died")
    tags = [attempt.attempt.tag for attempt in ended]
    return Result(OK, {"run": str(run.root), "failed": list(failed.row_id), "attempts": tags})


def _printed_by(run: RunPaths, attempt: Attempt, ranks: int) -> Path | None:
    """What the processes of an attempt's task printed, if anything; of a replica of so many, its
    leader."""
    from batchgen.runner.jobs import jobs_of

    jobs = [job for job in jobs_of(run, attempt.submission) if job.holds(attempt.task)]
    if not jobs:
        return None
    job, number = jobs[0], attempt.submission
    element = f"{job.job_id}_{(attempt.task - job.task) // job.stride}"
    logs = [*run.printed(number, element), *run.printed(number, job.job_id)]  # or an array of one
    logs.append(run.submission(number) / f"submitit/{job.job_id}_{attempt.replica * ranks}_log.err")
    return next((log for log in logs if log.is_file() and log.stat().st_size), None)
