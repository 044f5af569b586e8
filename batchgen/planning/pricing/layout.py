"""How the ranks of a submission and their memory are used, decided once, when it is made.

What is legal is enumerated and priced; what the model cannot tell apart goes to data parallelism
first, because rows are independent, then to cfg, to Ulysses, to the ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from batchgen.config.capability import bounds_of, served_by
from batchgen.config.degrees import Degrees, RuledOut, degrees_of
from batchgen.config.kernels import kernel_plan
from batchgen.config.schema import ONE_MACHINE, JobConfig
from batchgen.errors import ConfigError
from batchgen.families.family import family_spec
from batchgen.families.tiling import tiling_of
from batchgen.planning.pricing.candidates import Candidate, adapter_bytes, all_candidates
from batchgen.planning.pricing.cost import tiles_of_ranks
from batchgen.planning.pricing.memory import (
    GIB,
    Need,
    fits,
    most_bytes,
    most_demanding,
    need_of,
    on_cpu,
    precision_of,
    residencies,
)
from batchgen.planning.pricing.work import Work, planned_work
from batchgen.planning.store import Plan
from batchgen.records import DECODE_PIXELS, Layout, rows_decoded
from batchgen.request import Bucket
from batchgen.words import duration

# Prices closer than this are a tie: between ways to split the same replica over ulysses and ring,
# where the model errs most, and between all others. `plan --layouts` says so.
_SPLIT_TIE, _TIE = 1.1, 1.05


@dataclass(frozen=True, slots=True)
class Survey:
    """What may be chosen, what was, and what may not be."""

    chosen: Candidate
    layout: Layout
    candidates: tuple[Candidate, ...]  # one for each degrees and residency, in order of preference
    ruled_out: tuple[RuledOut, ...]


def resolve_layout(job: JobConfig, work: Sequence[Work]) -> Layout:
    """The layout for these rows; ConfigError with the way on if it does not fit."""
    layout = choose_layout(job, work)
    if not layout.fits:
        raise ConfigError(layout.reason)
    return layout


def refuse_misfit(job: JobConfig, plan: Plan) -> None:
    """ConfigError with the way on if the rows of a plan do not fit the job's device."""
    resolve_layout(job, planned_work(plan))


def choose_layout(job: JobConfig, work: Sequence[Work]) -> Layout:
    """The layout for a job that has these rows to draw. If none fits, it is the one that takes the
    least memory, and its reason says what to do."""
    return survey(job, work).layout


def survey(job: JobConfig, work: Sequence[Work]) -> Survey:
    """All layouts, and the one to take."""
    legal, ruled_out = degrees_of(job.system.parallel, bounds_of(job))
    if job.system.parallel.attention_op == "xfuser":
        legal, uneven = _even(job, work, legal)
        ruled_out += uneven
    candidates = all_candidates(job, work, legal)
    chosen = _choose(job, candidates)
    by_memory = groupby(candidates, key=lambda c: (c.degrees, c.memory))
    shown = tuple(_best_packs(job, list(group)) for _, group in by_memory)
    return Survey(chosen, _layout(job, work, chosen, shown), shown, tuple(ruled_out))


def _even(
    job: JobConfig, work: Sequence[Work], legal: Sequence[Degrees]
) -> tuple[list[Degrees], list[RuledOut]]:
    """Degrees under which every shape's tokens come out even, and the others. ConfigError if there
    are only others."""
    kept, out = [], []
    family = family_spec(job.model.family)
    for degrees in legal:
        tokens = {part.bucket: family.tokens(job.model, part.bucket) for part in work}
        odd = next((bucket for bucket, n in tokens.items() if n % degrees.sequence), None)
        if odd is None:
            kept.append(degrees)
        else:
            why = f"xfuser wants even shares: {odd} has {tokens[odd]} tokens"
            out.append(RuledOut(degrees, why))
    if not kept:
        first = out[0]
        raise ConfigError(
            f"system.parallel.attention_op: {first.why}, which {first.degrees.sequence} ranks do "
            "not divide; legal: auto, torch"
        )
    return kept, out


# ------------------------------------------------------------------------------------------ choice
def _choose(job: JobConfig, candidates: Sequence[Candidate]) -> Candidate:
    """The best price; on a CPU, which has no figures of links, of those with the most replicas."""
    fitting = [candidate for candidate in candidates if candidate.fits]
    if not fitting:
        first = [c for c in candidates if c.degrees == candidates[0].degrees]
        return min(first, key=lambda candidate: candidate.peak_bytes)
    by_degrees = groupby(fitting, key=lambda candidate: candidate.degrees)
    best = [_first_of_the_best(job, list(group), _TIE) for _, group in by_degrees]
    if on_cpu(job):
        best = [candidate for candidate in best if candidate.degrees.dp == best[0].degrees.dp]
    by_split = groupby(best, key=lambda candidate: (candidate.degrees.dp, candidate.degrees.cfg))
    split = [_first_of_the_best(job, list(group), _SPLIT_TIE) for _, group in by_split]
    return _first_of_the_best(job, split, _TIE)


def _best_packs(job: JobConfig, packs: Sequence[Candidate]) -> Candidate:
    """Of candidates that differ in the items of a forward alone."""
    fitting = [candidate for candidate in packs if candidate.fits]
    return _first_of_the_best(job, fitting, _TIE) if fitting else packs[0]


def _first_of_the_best(job: JobConfig, candidates: Sequence[Candidate], tie: float) -> Candidate:
    enough = max(worth(job, candidate) for candidate in candidates) / tie
    return next(candidate for candidate in candidates if worth(job, candidate) >= enough)


def worth(job: JobConfig, candidate: Candidate) -> float:
    """What the objective of a job makes of a candidate; more is better."""
    if job.system.parallel.objective == "latency":
        return 1 / candidate.last_row_s
    return candidate.samples_per_hour


# ---------------------------------------------------------------------------------------- in words
def _layout(
    job: JobConfig, work: Sequence[Work], chosen: Candidate, shown: Iterable[Candidate]
) -> Layout:
    degrees = chosen.degrees
    decode_pixels = _decoded_together(job, work, chosen)
    chosen = _filled(job, work, chosen, decode_pixels)
    layout = Layout(
        nodes=job.slurm.nodes,
        ranks_per_node=job.slurm.ranks_per_node,
        dp=degrees.dp,
        cfg=degrees.cfg,
        ulysses=degrees.ulysses,
        ring=degrees.ring,
        memory=chosen.memory,
        places=chosen.places,
        resident_blocks=chosen.resident_blocks,
        precision=precision_of(job),
        attention=str(kernel_plan(job.system)),
        device=job.slurm.device.name,
        decode_pixels=decode_pixels,
        kept_gib=chosen.kept_bytes / GIB,
        vram_gib=chosen.peak_bytes / GIB,
        fits=chosen.fits,
        speed=chosen.speed,
        slower=chosen.slower,
    )
    if not chosen.fits:
        return replace(layout, reason=_refusal(job, work, chosen))
    return replace(layout, reason=_reason(job, work, chosen, shown))


def _decoded_together(job: JobConfig, work: Sequence[Work], chosen: Candidate) -> int:
    """Pixels of the rows that are decoded together, all that there is room for. Strict decodes one
    by one."""
    if job.system.determinism == "strict" or not chosen.fits:
        return 0
    pixels = DECODE_PIXELS
    while True:
        need = _need(job, work, chosen, pixels, chosen.kept_bytes)
        if need.peak_bytes <= chosen.peak_bytes or fits(job, chosen.memory, need):
            return pixels
        pixels //= 2


def _filled(job: JobConfig, work: Sequence[Work], chosen: Candidate, pixels: int) -> Candidate:
    """With what rows in flight may keep where there is room for more of them than it was priced
    with."""
    kept = chosen.kept_bytes
    if chosen.fits:
        over = _need(job, work, chosen, pixels, chosen.most_kept).peak_bytes
        over -= int(most_bytes(job, chosen.memory))
        kept = max(kept, chosen.most_kept - max(0, over))
    peak = _need(job, work, chosen, pixels, kept).peak_bytes
    return replace(chosen, kept_bytes=kept, peak_bytes=peak)


def _need(job: JobConfig, work: Sequence[Work], chosen: Candidate, pixels: int, kept: int) -> Need:
    """Of a candidate that decodes so many pixels together, and whose rows keep so many bytes."""
    demanding = most_demanding(job, [part.bucket for part in work])
    return need_of(
        job,
        demanding,
        chosen.memory,
        sequence=chosen.degrees.sequence,
        items=chosen.items,
        kept=kept,
        decoded=rows_decoded(pixels, demanding),
        beside=adapter_bytes(job, work),
        stay=chosen.resident_blocks,
    )


def _inside(job: JobConfig, chosen: Candidate) -> str:
    device, limit = job.slurm.device, job.system.memory.vram_limit
    where = f"{chosen.peak_bytes / GIB:.2f} GiB of {device.memory_gib:g} GiB on {device.name}"
    capped = "" if limit is None else f", system.memory.vram_limit={limit:g}"
    asked = "" if job.system.memory.mode == "auto" else ", as system.memory.mode asks"
    return f"({where}{capped}, {_held(job, chosen)}{asked})"


def _held(job: JobConfig, chosen: Candidate) -> str:
    """What stays on the device, and what that costs."""
    if chosen.memory == "resident":
        return "all components stay"
    slower = f"{chosen.slower:.2f} x the time of a row with all resident"
    if chosen.memory == "model":
        return "one component at a time" + (f": {slower}" if chosen.slower >= 1.005 else "")
    blocks, stay = family_spec(job.model.family).layers(job.model), chosen.resident_blocks
    come = "come from disk" if chosen.memory == "disk" else "stream"
    others = f"of a transformer's {blocks} blocks {stay} stay and the others {come}"
    if stay == blocks:
        others = f"the encoder's blocks {come}"
    return f"one component at a time, {others}: {slower}"


def _reason(
    job: JobConfig, work: Sequence[Work], chosen: Candidate, shown: Iterable[Candidate]
) -> str:
    inside = _inside(job, chosen)
    if chosen.degrees.replica == 1:
        return f"dp first: a replica fits one rank {inside}, and rows are independent"
    found = f"{_price(chosen)}{_against(chosen, shown)} {inside}"
    return found + _heads(job, chosen) + _decodes(job, work, chosen)


def _against(chosen: Candidate, shown: Iterable[Candidate]) -> str:
    """The layout that goes first where prices are alike, and why it was not taken."""
    for other in shown:
        if other.degrees.dp <= chosen.degrees.dp:
            break
        if other.fits:
            return f", against {_price(other)} of {other.degrees}"
    return ""


def _price(candidate: Candidate) -> str:
    return (
        f"{per_hour(candidate)} samples a device-hour and the last row after "
        f"{duration(candidate.last_row_s)}"
    )


def per_hour(candidate: Candidate) -> str:
    """Samples of a device-hour, in three digits or more."""
    rate = candidate.samples_per_hour
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _heads(job: JobConfig, chosen: Candidate) -> str:
    """What becomes of heads that Ulysses does not divide."""
    heads, ulysses = family_spec(job.model.family).heads(job.model), chosen.degrees.ulysses
    if heads % ulysses == 0:
        return ""
    return f"; {heads} heads are padded to {-(-heads // ulysses) * ulysses} for ulysses {ulysses}"


def _decodes(job: JobConfig, work: Sequence[Work], chosen: Candidate) -> str:
    """Who decodes the rows, where they have tiles to divide."""
    shared, ranks = tiles_of_ranks(job), chosen.degrees.replica
    if shared is None:
        return ""
    tiling, tiles = shared
    many = [tiling.tiles_of(part.bucket, tiles.factor) for part in work]
    if max(many) == 1:
        return "; the leader decodes, since all rows are of one tile"
    most = f"{min(many)} to {max(many)}" if len({*many}) > 1 else str(many[0])
    return f"; its {ranks} ranks share the {most} tiles of a decode, for which each has the decoder"


def _refusal(job: JobConfig, work: Sequence[Work], chosen: Candidate) -> str:
    many = chosen.degrees.replica
    ranks = "one rank" if many == 1 else f"{many} ranks"
    return f"a replica does not fit {ranks} {_inside(job, chosen)}: {_way_on(job, work)}"


def _fits_somehow(job: JobConfig, bucket: Bucket, beside: int) -> bool:
    """In one of the modes that the job allows, on one rank."""
    needs = ((mode, need_of(job, bucket, mode, beside=beside)) for mode in residencies(job))
    return any(fits(job, mode, need) for mode, need in needs)


def _way_on(job: JobConfig, work: Sequence[Work]) -> str:
    ways = []
    bucket = most_demanding(job, [part.bucket for part in work])
    memory, beside = replace(job.system.memory, mode="auto"), adapter_bytes(job, work)
    free = replace(job, system=replace(job.system, memory=memory))
    if _fits_somehow(free, bucket, beside):
        ways.append("set system.memory.mode=auto")
    if (tiles := served_by(job.model).tiles) and tiling_of(job.system.vae) is None:
        vae = tiles.resolved(replace(free.system.vae, tiled=True))
        if _fits_somehow(replace(free, system=replace(free.system, vae=vae)), bucket, beside):
            ways.append("decode in tiles (system.vae.tiled=true), which changes pixels by rounding")
    if job.system.memory.vram_limit is not None:
        ways.append("raise system.memory.vram_limit")
    if on_cpu(job) and job.slurm.executor in ONE_MACHINE:
        ways.append("say which device is there (slurm.device.name=... slurm.device.memory_gib=...)")
    if beside:
        ways.append(f"draw with fewer LoRA files in one run: these take {beside / GIB:.2f} GiB")
    ways.append("choose a profile with more memory (slurm=...), a smaller size or a smaller model")
    return "; or ".join(ways)
