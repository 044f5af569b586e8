"""`bench scale`: how long and how large each step of a run becomes with its rows."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from batchgen.bench._figures import Figure, add_common, at_most, publish, whole

SUMMARY = "seconds and memory of plan, submit, status, collect, resume, report and verify, by rows"
DESCRIPTION = """\
Make manifests of each number of rows and take a run of the null engine through all that the runner
does, each step in a process of its own: its seconds, and how much its memory grew at the peak. Rows
are not drawn: their journals are written as ranks would leave them, in journals of 50,000 rows, of
which 99 % are there at the first collect and all at the second: the new ones are spread over all
parts, as those of rows that end in the order of their cost are. At the third nothing is new. Up to
a million rows have a small file each, which `verify` reads. From the two largest sizes follow the
slopes, and from them what a hundred million rows would take.
"""
EPILOG = """\
examples:
  batchgen bench scale
  batchgen bench scale --rows 100000 1000000 10000000 --out /data/bench-scale
"""
TINY = ("--tiny",)
FILLED = ("fill_most", "fill_rest")
NAMES = {
    "plan": "plan",
    "cut": "cut into 4096 shards",
    "submit": "submit",
    "status": "status",
    "scan": "resume: find what is left",
    "collect": "collect, 99 % new",
    "scan_again": "resume behind a collect, 1 % new",
    "collect_again": "collect, 1 % new",
    "collect_same": "collect, nothing new",
    "report": "report",
    "verify": "verify",
}


@dataclass(frozen=True, slots=True)
class Took:
    """A step at a size."""

    step: str
    rows: int
    seconds: float
    cpu: float  # seconds of CPUs: what else the machine does moves these less
    before_mib: float  # with what it imports
    peak_mib: float

    @property
    def grown_mib(self) -> float:
        return self.peak_mib - self.before_mib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many rows."""
    add_common(parser, "scale", rounds=False)
    parser.add_argument(
        "--rows",
        type=whole,
        nargs="+",
        default=[100_000, 1_000_000],
        help="sizes of manifests (default: 100000 1000000)",
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    from tempfile import TemporaryDirectory

    from batchgen.errors import ConfigError

    sizes = [200, 400] if args.tiny else sorted({*args.rows})
    if len(sizes) < 2:
        raise ConfigError(f"bench scale: --rows {sizes[0]}; legal: two sizes and more, for slopes")
    args.out.mkdir(parents=True, exist_ok=True)
    found: list[Took] = []
    for size in sizes:
        with TemporaryDirectory(dir=args.out, prefix=".work-") as work:
            found += _through(Path(work) / "job", size, apart=not args.tiny)
    compared = (
        f"Runs of the null engine of {', '.join(f'{size:,}' for size in sizes)} rows, each step in "
        "a process of its own: seconds, and MiB by which its memory grew. Once each."
    )
    figures = [figure for each in found for figure in _figures(each)] + list(_slopes(found))
    raw = {f"{each.step}, {each.rows} rows": [each.seconds] for each in found}
    return publish(args, compared, figures, raw | {"all": [asdict(each) for each in found]})


def _through(folder: Path, rows: int, *, apart: bool) -> list[Took]:
    """All steps of a run of so many rows; `apart`: in processes of their own."""
    from batchgen.bench._jobs import null_job
    from batchgen.bench.scale.fill import MEDIA_ROWS
    from batchgen.bench.scale.steps import STEPS, take

    null_job(folder, rows)
    found = []
    for step in STEPS:
        if step == "verify" and rows > MEDIA_ROWS:
            continue
        print(f"{rows:,} rows: {step}", file=sys.stderr, flush=True)
        taken = _process(step, folder) if apart else take(step, folder)
        if step not in FILLED:
            found.append(Took(step, rows, **taken))
    return found


def _process(step: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "batchgen.bench.scale.steps", step, str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def _figures(took: Took) -> Iterator[Figure]:
    """Seconds and memory, with what is aimed at for a million rows and more."""
    what, millions = f"{took.rows:,} rows: {NAMES[took.step]}", took.rows / 1e6
    goals = {
        "plan": 8 if millions <= 1 else 9 * millions,
        "cut": 0.5 * millions,
        "scan": 10 * millions,
        "collect": 10 * millions,  # 100,000 rows a second
        "scan_again": 1 * millions,
        "collect_same": 1 * millions,
    }
    goal = goals.get(took.step, float("inf")) if millions >= 1 else float("inf")
    note = f"CPU {took.cpu:.3g} s; {took.grown_mib:.0f} MiB"
    yield at_most(what, took.seconds, "s", goal, note)
    most = {"plan": 4096, "collect": 2048, "collect_again": 2048}.get(took.step)
    if most is not None and millions >= 1:
        yield at_most(f"{what}, memory", took.grown_mib, "MiB", most)


def _slopes(found: Sequence[Took]) -> Iterator[Figure]:
    """Of the two largest sizes that a step was done at."""
    for step, name in NAMES.items():
        sizes = sorted((took for took in found if took.step == step), key=lambda took: took.rows)
        if len(sizes) < 2:
            continue
        a, b = sizes[-2:]
        more = b.rows - a.rows
        cpu, room = (b.cpu - a.cpu) / more, (b.grown_mib - a.grown_mib) / more
        far = f"10^8 rows: {1e8 * cpu / 60:,.0f} min, {1e8 * max(0, room) / 1024:,.1f} GiB"
        note = f"{room * 2**20:,.0f} bytes; {far}"
        yield Figure(f"{name}: a row more, CPU", 1e6 * cpu, "us", note=note)
