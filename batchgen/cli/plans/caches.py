"""What `plan` says of step caches: evaluations left, rows by settings, audits, rows that do
without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchgen.words import counted, duration

if TYPE_CHECKING:
    from batchgen.caches.pilots import Choice, Pilot
    from batchgen.planning.plan import Plan
    from batchgen.planning.store import CacheForecast

_SHOWN = 6  # combinations of settings
_INSTEAD = {"planned": "the solver's own update"}
_THRESHOLD = "a threshold of their own, or the published one"
_ADAPTED = (
    "fits are looked up whatever LoRA files a row draws with; system.cache.audit_every says how "
    "near such rows end"
)
_HOW = "system.cache.calibrate=true makes fits, where at least 4 different rows ask for one"


def cache_lines(plan: Plan) -> dict[str, str]:
    """Lines of the summary by their names; none for a plan without caches."""
    from batchgen.caches.pilots import DRAWN

    lines = {}
    if plan.caches:
        expected, total = (round(part) for part in evaluations(plan))
        saved = 1 - expected / total if total else 0.0
        lines["forwards"] = f"{expected:,} of {total:,} expected, caches save {saved:.0%}"
        lines["caches"] = "\n".join(map(_line, plan.caches[:_SHOWN]))
        if rest := plan.caches[_SHOWN:]:
            rows = sum(forecast.rows for forecast in rest)
            lines["caches"] += f"\n{len(rest)} more with {counted(rows, 'row')}"
        if _can_be_fitted(plan) and not plan.pilots:
            lines["caches"] += f"\n{_HOW}"
        if plan.loras and any(forecast.fitted for forecast in plan.caches):
            lines["caches"] += f"\n{_ADAPTED}"
    if audits := sum(bucket.audits for bucket in plan.buckets):
        more = sum(bucket.audit_evaluations for bucket in plan.buckets)
        lines["audits"] = (
            f"{counted(audits, 'row')} drawn without their cache too: {more:,} forwards more"
        )
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


def _line(forecast: CacheForecast) -> str:
    from batchgen.caches.strategy import strategy

    exact = forecast.ratio == 0 or strategy(forecast.strategy).FACTS.data_free
    share = f"{'' if exact else 'about '}{forecast.share:.0%} computed"
    return f"{forecast}: {counted(forecast.rows, 'row')}, {share}{_fit(forecast)}"


def _fit(forecast: CacheForecast) -> str:
    from batchgen.caches.strategy import strategy

    facts, without = strategy(forecast.strategy).FACTS, forecast.rows - forecast.fitted
    if not facts.table or forecast.ratio == 0:
        return ""
    instead = _INSTEAD.get(forecast.strategy, _THRESHOLD)
    if not forecast.fitted:
        return f", no fit: {instead}"
    names = {0: "a fit", forecast.fitted: "published coefficients"}
    having = names.get(forecast.published, "a fit or published coefficients")
    if not without:
        return f", with {having}"
    return f", {forecast.fitted:,} with {having}, {without:,} without: {instead}"


def _can_be_fitted(plan: Plan) -> bool:
    """Whether rows that save something do without a fit that a pilot may make."""
    from batchgen.caches.pilots import FITTED

    return any(c.share < 1 and c.fitted < c.rows and c.strategy in FITTED for c in plan.caches)
