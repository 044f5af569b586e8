"""What `plan` says of step caches: evaluations left, rows by settings, audits, rows that do
without."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.planning.plan import Plan
    from batchgen.planning.store import CacheForecast

_SHOWN = 6  # combinations of settings


def cache_lines(plan: Plan) -> dict[str, str]:
    """Lines of the summary by their names; none for a plan without caches."""
    lines = {}
    if plan.caches:
        expected, total = (round(part) for part in evaluations(plan))
        saved = 1 - expected / total if total else 0.0
        lines["forwards"] = f"{expected:,} of {total:,} expected, caches save {saved:.0%}"
        lines["caches"] = "\n".join(map(_line, plan.caches[:_SHOWN]))
        if rest := plan.caches[_SHOWN:]:
            rows = sum(forecast.rows for forecast in rest)
            lines["caches"] += f"\n{len(rest)} more with {rows:,} rows"
    if audits := sum(bucket.audits for bucket in plan.buckets):
        more = sum(bucket.audit_evaluations for bucket in plan.buckets)
        lines["audits"] = f"{audits:,} rows drawn without their cache too: {more:,} forwards more"
    if plan.cache_refused:
        asked = ", ".join(f"{rows:,} for {name}" for name, rows in plan.cache_refused.items())
        lines["refused"] = f"rows that ask for a cache and are drawn without: {asked}"
    return lines


def evaluations(plan: Plan) -> tuple[int, int]:
    """Of all rows: expected, and without caches."""
    expected = sum(bucket.evaluations for bucket in plan.buckets)
    return expected, sum(b.evaluations_total or b.evaluations for b in plan.buckets)


def _line(forecast: CacheForecast) -> str:
    return f"{forecast}: {forecast.rows:,} rows, {forecast.share:.0%} computed{_fit(forecast)}"


def _fit(forecast: CacheForecast) -> str:
    from batchgen.caches.strategy import strategy

    facts, without = strategy(forecast.strategy).FACTS, forecast.rows - forecast.fitted
    if not facts.table:
        return ""
    if not without:
        return ", with a fit"
    instead = "the solver's own update" if facts.kind == "planned" else "no coefficients"
    return f", {forecast.fitted:,} with a fit, {without:,} with {instead}"
