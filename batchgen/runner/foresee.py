"""What a job would do and cost: a plan and its forecast, without a run folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchgen.config.composing.compose import Composed
from batchgen.planning.calibrate import calibrate
from batchgen.planning.plan import make_plan, read_costs
from batchgen.planning.pricing.cost import UNMEASURED
from batchgen.planning.pricing.forecast import Forecast, forecast
from batchgen.planning.store import Plan
from batchgen.runner.create import check_place
from batchgen.runner.executors import check_profile
from batchgen.runner.loras import judge_of


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A plan and what it will take."""

    plan: Plan
    forecast: Forecast


@contextmanager
def foreseen(
    composed: Composed, out: Path | None, *, hash_weights: str, check: Callable[[Plan], object]
) -> Iterator[Foreseen]:
    """Plan a job at `out` or in a folder for the time being; `check` may refuse the plan.
    ManifestError, ConfigError or WeightsError if the job cannot be planned."""
    config = composed.config
    check_profile(config.slurm)
    check_place(config)
    calibration = calibrate(Path(config.output.root_dir), config.model, config.slurm.device)
    factors = calibration.factors if calibration else UNMEASURED
    with tempfile.TemporaryDirectory(prefix="batchgen-plan-") as folder:
        path = out or Path(folder) / "plan.parquet"
        plan = make_plan(
            config,
            path,
            hash_weights=hash_weights,
            factors=factors,
            check=check,
            judge=judge_of(config),
        )
        yield Foreseen(plan, forecast(config, plan, read_costs(path), calibration))
