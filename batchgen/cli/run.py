"""`run` and `submit`: a job becomes a run folder and starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.cli.result import OK, Result

if TYPE_CHECKING:
    import numpy as np

    from batchgen.paths import RunPaths
    from batchgen.runner.submit import Settings

RUN_EPILOG = """\
examples:
  batchgen run jobs/demo.yaml
  batchgen run jobs/demo.yaml slurm=inline row_defaults.num_steps=8 tag=quick
  batchgen run jobs/demo.yaml system.determinism=strict slurm.ranks_per_node=2
"""
SUBMIT_EPILOG = """\
examples:
  batchgen submit jobs/demo.yaml slurm.ranks_per_node=2
  batchgen submit jobs/demo.yaml --json        # last line: {"run": "<folder>", ...}
"""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, summary, epilog, handler in (
        ("run", "submit, wait with a progress bar, collect", RUN_EPILOG, handle_run),
        ("submit", "start a job and return at once", SUBMIT_EPILOG, handle_submit),
    ):
        parser = verbs.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("job", metavar="JOB", type=Path, help="job file (YAML)")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
        parser.add_argument(
            "--hash-weights",
            choices=("sampled", "full"),
            default="sampled",
            help="how checkpoint files enter the row keys (default: sampled)",
        )
        parser.set_defaults(handler=handler)


def handle_run(args: argparse.Namespace) -> Result:
    """Exit code 0 only if every row of the manifest is ok."""
    run, settings = _create(args)
    return drive_to_end(run, settings)


def drive_to_end(run: RunPaths, settings: Settings, rows: np.ndarray | None = None) -> Result:
    """Wait with a progress bar, collect, print the summary."""
    from batchgen.cli.collect import summary_result
    from batchgen.cli.progress import progress_bar
    from batchgen.runner.steward import drive

    with progress_bar() as watch:
        summary = drive(run, settings, watch, rows)
    return summary_result(run, summary)


def handle_submit(args: argparse.Namespace) -> Result:
    from batchgen.runner.submit import submit

    run, settings = _create(args)
    started = submit(run, settings)
    assert started is not None, "a new run has rows"
    print(f"{run.root}\n{started.rows} rows in {started.shards} shard(s) started as submission 1")
    print(f"watch it with: batchgen status {run.root.name} --watch")
    jobs = [job.job_id for job in started.jobs]
    return Result(OK, {"run": str(run.root), "submission": 1, "rows": started.rows, "jobs": jobs})


def _create(args: argparse.Namespace) -> tuple[RunPaths, Settings]:
    from batchgen.config.compose import compose_job
    from batchgen.runner.create import create_run
    from batchgen.runner.executors import executor_named
    from batchgen.runner.submit import Settings

    composed = compose_job(args.job, args.overrides)
    executor_named(composed.config.slurm.executor)
    if composed.config.model.weights not in ("random", "embedded"):
        from batchgen.engine.weights import check_weights  # torch: only where tensors are checked

        check_weights(composed.config.model)
    run = create_run(composed, hash_weights=args.hash_weights)
    if composed.config.output.enable_launch_log:
        (run.logs / "launch.log").write_text(f"job {args.job}\noverrides {args.overrides}\n")
    return run, Settings(composed.resolved, list(composed.overrides))
