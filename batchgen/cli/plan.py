"""`plan`: what a job would do and cost. Renders nothing, needs no GPU, loads no torch."""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.bars import progress_bars
from batchgen.cli.plans.caches import cache_lines, evaluations
from batchgen.cli.result import OK, Result
from batchgen.cli.verbs import (
    Verbs,
    add_job_arguments,
    add_verb,
    hours_argument,
    overrides_of,
    path_argument,
    refuse_special,
)
from batchgen.errors import ConfigError, naming
from batchgen.words import counted, duration, rank_time_within

if TYPE_CHECKING:
    from rich.table import Table

    from batchgen.config.composing.compose import Composed
    from batchgen.config.schema import JobConfig
    from batchgen.planning.plan import Plan
    from batchgen.planning.pricing.forecast import Forecast
    from batchgen.records import Layout
    from batchgen.runfile import RunFile

EPILOG = """\
examples:
  batchgen plan jobs/demo.yaml
  batchgen plan jobs/wan21_14b_720p.yaml slurm=h200x8 --max-gpu-hours 40
  batchgen plan jobs/wan21_14b_720p.yaml slurm=h200x8 --layouts
  batchgen plan jobs/demo.yaml --out plan.parquet --dump-config config.json
"""
SHOWN_BUCKETS = 12
LEAST_COLUMNS = 64  # of a terminal, for the whole table


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = add_verb(
        verbs,
        "plan",
        handle_plan,
        summary="what a job would do and cost; renders nothing",
        description="Check a job and its manifest, and forecast what a run of it takes.",
        epilog=EPILOG,
    )
    add_job_arguments(parser)
    parser.add_argument(
        "--max-gpu-hours",
        type=hours_argument,
        metavar="X",
        help="refuse (exit 2) a forecast above X",
    )
    parser.add_argument(
        "--layouts",
        action="store_true",
        help="list the ways to use the ranks, with their prices and what is ruled out",
    )
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help="keep the plan as Parquet"
    )
    parser.add_argument(
        "--dump-config",
        type=path_argument,
        metavar="FILE",
        help="write tiers, versions, commit, hardware and digests as one JSON file",
    )


def handle_plan(args: argparse.Namespace) -> Result:
    """Print the plan. Exit code 2 if the job cannot be planned, does not fit or is over the
    budget."""
    from batchgen.config.composing.compose import compose_job
    from batchgen.planning.pricing.forecast import refuse_over_budget
    from batchgen.runner.create import header_of
    from batchgen.runner.foresee import foreseen

    for option, target in (("--out", args.out), ("--dump-config", args.dump_config)):
        if target is not None and not target.absolute().parent.is_dir():
            raise ConfigError(f"{option}: {target.parent} is not a folder")
    if args.out is not None:
        refuse_special("--out", args.out)
    composed = compose_job(args.job, overrides_of(args))
    check = partial(_check, composed.config, args.layouts)
    with (
        _naming(composed, args),
        progress_bars(),
        foreseen(composed, args.out, hash_weights=args.hash_weights, check=check) as found,
    ):
        plan, predicted = found.plan, found.forecast
        header = header_of(composed, plan)
    _print(composed, plan, predicted)
    if args.dump_config:
        with _naming(composed, args):
            _dump(args.dump_config, composed, header)
    refuse_over_budget(predicted, composed.config.system.max_gpu_hours)
    data = _data(composed, plan, predicted, args.out)
    return Result(OK, data | _layouts(composed.config, plan) if args.layouts else data)


def _naming(composed: Composed, args: argparse.Namespace) -> AbstractContextManager[None]:
    from batchgen.runner.begin import inputs_of

    return naming(
        {
            **inputs_of(composed.config),
            "--out": args.out,
            "--dump-config": args.dump_config,
            "TMPDIR": None if args.out else tempfile.gettempdir(),
        },
        written="--out" if args.out else "TMPDIR",
    )


def _check(config: JobConfig, layouts: bool, plan: Plan) -> None:
    """ConfigError if the rows do not fit; the layouts are shown all the same."""
    from batchgen.cli.plans.layouts import print_layouts
    from batchgen.planning.pricing.layout import refuse_misfit, survey
    from batchgen.planning.pricing.work import planned_work

    if layouts:
        print_layouts(config, survey(config, planned_work(plan)))
    refuse_misfit(config, plan)


def _layouts(config: JobConfig, plan: Plan) -> dict[str, object]:
    from batchgen.cli.plans.layouts import layouts_data
    from batchgen.planning.pricing.layout import survey
    from batchgen.planning.pricing.work import planned_work

    return {"layouts": layouts_data(survey(config, planned_work(plan)))}


def _dump(target: Path, composed: Composed, header: RunFile) -> None:
    from batchgen.durable import write_bytes_atomic
    from batchgen.planning.provenance import describe

    dump = describe(header, composed.resolved, composed.overrides)
    text = json.dumps(dump, indent=2, ensure_ascii=False)
    if target.exists() and not target.is_file():  # /dev/stdout, for example
        target.write_text(f"{text}\n", encoding="utf-8")
    else:
        write_bytes_atomic(target, f"{text}\n".encode())
    print(f"configuration written to {target}")


# --------------------------------------------------------------------------------------- printing
def _print(composed: Composed, plan: Plan, predicted: Forecast) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(_buckets(plan, narrow=console.width < LEAST_COLUMNS))
    console.print(_summary(composed, plan, predicted))
    if composed.config.model.weights == "random":
        console.print(
            "[yellow]note:[/] model.weights is random: the media will be noise; "
            "set model.weights=<folder in diffusers layout> for pictures"
        )


def _buckets(plan: Plan, narrow: bool) -> Table:
    """The rows by size; a `narrow` one leaves out what a terminal has no room for."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ("bucket", "rows", "tokens", "forwards", "row time", "share")
    shown = [name for name in names if not narrow or name not in ("tokens", "forwards")]
    for name in shown:
        table.add_column(name, justify="left" if name == "bucket" else "right", no_wrap=True)
    total = plan.cost_s_total or 1.0
    for item in plan.buckets[:SHOWN_BUCKETS]:
        sizes = () if narrow else (f"{item.tokens:,}", f"{item.evaluations:,}")
        cells = (str(item.bucket), f"{item.rows:,}", *sizes)
        table.add_row(*cells, duration(item.cost_s), f"{item.cost_s / total:.0%}")
    rest = plan.buckets[SHOWN_BUCKETS:]
    if rest:
        seconds = sum(item.cost_s for item in rest)
        rows = sum(item.rows for item in rest)
        label = f"{len(rest)} more"
        gap = () if narrow else ("", "")
        table.add_row(label, f"{rows:,}", *gap, duration(seconds), f"{seconds / total:.0%}")
    return table


def _lora_line(config: JobConfig, plan: Plan) -> dict[str, str]:
    from batchgen.planning.pricing.candidates import adapter_bytes
    from batchgen.planning.pricing.work import planned_work

    if not plan.loras:
        return {}
    gib, count = adapter_bytes(config, planned_work(plan)) / 1024**3, len(plan.loras)
    return {"lora": f"{count} file{'s' * (count > 1)}, {gib:.2f} GiB of each rank's memory"}


def _summary(composed: Composed, plan: Plan, predicted: Forecast) -> Table:
    from rich.markup import escape
    from rich.table import Table

    config, layout = composed.config, predicted.layout
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    lines = {
        "job": f"{config.name}, model {config.model.name}, executor {config.slurm.executor}",
        "rows": f"{plan.rows:,} in {plan.manifest}: {plan.unique_rows:,} to render, "
        f"{plan.aliases:,} aliases of equal rows",
        "shards": _shards(predicted.shards, layout),
        "layout": f"dp {layout.dp} x cfg {layout.cfg} x ulysses {layout.ulysses} x ring "
        f"{layout.ring}, memory {layout.memory}, {layout.precision}, attention {layout.attention}; "
        f"{layout.reason}",
        **_family_note(config),
        **cache_lines(plan),
        **_lora_line(config, plan),
        "forecast": _forecast(predicted),
        "basis": predicted.basis,
        "memory": _memory(config, predicted),
        "disk": f"{_size(predicted.disk_gib)} in {predicted.files:,} files",
        "plan": plan.plan_id[:16],
    }
    for name, text in lines.items():
        table.add_row(name, escape(text))
    return table


def _shards(shards: int, layout: Layout) -> str:
    """Where shards are rendered, how many of them at once, and which nodes get none."""
    ranks, at_once = counted(layout.ranks_per_node, "rank"), min(shards, layout.groups)
    place = f"{counted(layout.nodes_together, 'node')} of {ranks}"
    said = f"{shards:,}, {at_once} at once, each on {place}" if shards > 1 else f"1, on {place}"
    idle = layout.nodes - at_once * layout.nodes_together
    return said + f"; {idle} of {layout.nodes} nodes without work" * (idle > 0)


def _family_note(config: JobConfig) -> dict[str, str]:
    """What is to be known of the model's family, if anything."""
    from batchgen.config.capability import served_by

    note = served_by(config.model).note
    return {"family": note} if note else {}


def _memory(config: JobConfig, predicted: Forecast) -> str:
    """What it takes, where components live, and which of its settings change pixels."""
    from batchgen.planning.pricing.memory import changes_pixels

    places = predicted.layout.places
    lossy = changes_pixels(config)
    said = f"changes pixels, in the row key: {', '.join(lossy)}" if lossy else "changes no pixel"
    apart = f", but {places}" if places else ""
    return (
        f"{predicted.vram_gib:.2f} GiB peak on a device; {predicted.layout.memory}{apart}; {said}"
    )


def _data(
    composed: Composed, plan: Plan, predicted: Forecast, kept: Path | None
) -> dict[str, object]:
    from batchgen.planning.pricing.memory import changes_pixels

    return {
        "job": composed.config.name,
        "model": composed.config.model.name,
        "weights": composed.config.model.weights,
        "manifest": plan.manifest,
        "manifest_digest": plan.manifest_digest,
        "plan_id": plan.plan_id,
        "rows": plan.rows,
        "unique_rows": plan.unique_rows,
        "aliases": plan.aliases,
        "cost_s_total": plan.cost_s_total,
        "evaluations": dict(zip(("expected", "without_caches"), evaluations(plan), strict=True)),
        "caches": [asdict(item) for item in plan.caches],
        "cache_refused": plan.cache_refused,
        "pilots": [asdict(item) for item in plan.pilots],
        "choices": [asdict(item) for item in plan.choices],
        "buckets": [asdict(item) | {"cost_s": item.cost_s} for item in plan.buckets],
        "forecast": asdict(predicted),
        "layout": asdict(predicted.layout),
        "memory_changes_pixels": changes_pixels(composed.config),
        "plan": str(kept) if kept else None,
    }


def _forecast(predicted: Forecast) -> str:
    hours = (predicted.gpu_hours, predicted.low, predicted.high)
    within = rank_time_within(*hours, predicted.layout.device)
    row_s, start_s = 3600 * predicted.row_hours, 3600 * predicted.start_up_hours
    beside_s = 3600 * predicted.gpu_hours - row_s - start_s
    parts = f"{duration(row_s)} of rows, {duration(start_s)} of start-up"
    if abs(beside_s) >= 0.05:
        parts += f", {duration(beside_s)} beside them"
    return f"{within}: {parts}; done in about {duration(predicted.wall_hours * 3600)}"


def _size(gib: float) -> str:
    for size, unit in ((gib, "GiB"), (gib * 2**10, "MiB")):
        if size >= 1:
            return f"{size:,.1f} {unit}"
    return f"{gib * 2**20:,.0f} KiB"
