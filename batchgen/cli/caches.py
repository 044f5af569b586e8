"""What `plan` says of step caches: evaluations left, rows by settings, audits, rows that do
without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.words import duration

if TYPE_CHECKING:
    from batchgen.caches.pilots import Choice, Pilot
    from batchgen.planning.plan import Plan
    from batchgen.planning.store import CacheForecast

_SHOWN = 6  # combinations of settings


def cache_lines(plan: Plan) -> dict[str, str]:
    """Lines of the summary by their names; none for a plan without caches."""
    from batchgen.caches.pilots import DRAWN

    lines = {}
    if plan.caches:
        expected, total = (round(part) for part in evaluations(plan))
        saved = 1 - expected / total if total else 0.0
        lines["forwards"] = f"{expected:,} of {total:,} expected, caches save {saved:.0%}"
        lines["caches"] = "\n".join(_line(plan, each) for each in plan.caches[:_SHOWN])
        if rest := plan.caches[_SHOWN:]:
            rows = sum(forecast.rows for forecast in rest)
            lines["caches"] += f"\n{len(rest)} more with {rows:,} rows"
    if audits := sum(bucket.audits for bucket in plan.buckets):
        more = sum(bucket.audit_evaluations for bucket in plan.buckets)
        lines["audits"] = f"{audits:,} rows drawn without their cache too: {more:,} forwards more"
    if plan.pilots:
        lines["pilot"] = "\n".join(map(_pilot, plan.pilots))
    if plan.choices:
        lines["ratio"] = "\n".join(choice_lines(plan))
    others = {name: rows for name, rows in plan.cache_refused.items() if name != DRAWN}
    if others:
        asked = ", ".join(f"{rows:,} for {name}" for name, rows in others.items())
        lines["refused"] = f"rows that ask for a cache and are drawn without: {asked}"
    return lines


def choice_lines(plan: Plan) -> list[str]:
    """The ratios that `min_psnr_db` found, with what they were chosen from."""
    return [line for choice in plan.choices[:_SHOWN] for line in _choice(choice)]


def _pilot(pilot: Pilot) -> str:
    judged = f", {pilot.audited} of them to judge by" if pilot.audited else ""
    return (
        f"{len(pilot.rows)} rows are drawn first, without a cache{judged}; they fit {pilot}\n"
        f"{pilot.drawn:,} forwards of rows, at most {pilot.fits:,} of the fits "
        f"({duration(pilot.cost_s)}); then the other rows are planned anew"
    )


def _choice(choice: Choice) -> list[str]:
    settings = f"{choice.num_steps} steps, guidance {choice.guidance_scale:g}"
    wanted = f"p5 of {choice.floor_db:g} dB"
    if not choice.judged:
        return [
            f"{settings}: nothing was fitted, so no ratio is known to keep a {wanted}: no cache"
        ]
    head = f"no ratio keeps a {wanted}: no cache"
    if choice.ratio:
        head = f"{choice.ratio:g} is the largest that keeps a {wanted}"
    figures = f"{'ratio':>7} {'p5':>6} {'mean':>6} {'worst':>6} dB of {choice.judged[0].rows} rows"
    lines = [f"{settings}: {head}", figures]
    for each in choice.judged:
        lines.append(f"{each.ratio:7g} {each.p5:6.1f} {each.mean:6.1f} {each.worst:6.1f}")
    return lines


def evaluations(plan: Plan) -> tuple[int, int]:
    """Of all rows: expected, and without caches."""
    expected = sum(bucket.evaluations for bucket in plan.buckets)
    return expected, sum(b.evaluations_total or b.evaluations for b in plan.buckets)


def _line(plan: Plan, forecast: CacheForecast) -> str:
    fit = _fit(plan, forecast)
    return f"{forecast}: {forecast.rows:,} rows, {forecast.share:.0%} computed{fit}"


def _fit(plan: Plan, forecast: CacheForecast) -> str:
    from batchgen.caches.pilots import FITTED
    from batchgen.caches.strategy import strategy

    facts, without = strategy(forecast.strategy).FACTS, forecast.rows - forecast.fitted
    if not facts.table:
        return ""
    if not without:
        return ", with a fit"
    instead = "the solver's own update" if facts.kind == "planned" else "no coefficients"
    told = f", {forecast.fitted:,} with a fit, {without:,} with {instead}"
    if plan.pilots or forecast.strategy not in FITTED:
        return told
    return f"{told} (system.cache.calibrate=true fits it)"
