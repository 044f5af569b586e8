"""Makes report.html: one pass over the catalog, then one file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from batchgen.durable import write_bytes_atomic
from batchgen.errors import StorageError
from batchgen.paths import RunPaths
from batchgen.report.data import About, Money, Page
from batchgen.report.failures import Failures
from batchgen.report.figures import Figures, ranks, shares
from batchgen.report.page import html
from batchgen.report.sheet import Sample
from batchgen.report.shortage import Shortages
from batchgen.report.source import Source
from batchgen.report.text import cut
from batchgen.report.timeline import Times
from batchgen.report.unpack import unpacked
from batchgen.words import hours_name

_CONFIG_BYTES = 100_000


def write_report(run: RunPaths) -> Path:
    """Write the report of a run, also of one that goes on, and return its path. A catalog that is
    behind is collected first. RunStateError or StorageError as `collect` raises them."""
    page = read_page(Source.of(run))
    try:
        write_bytes_atomic(run.report, html(page))
    except OSError as error:
        raise StorageError(f"{run.report} cannot be written: {error}") from error
    return run.report


def read_page(source: Source) -> Page:
    """What the page of a run says."""
    figures, failures = Figures(), Failures()
    times = Times(source.attempts, source.status.ok)
    shortages, sample = Shortages(), Sample(source.header.rows)
    for rows in source.pieces():
        figures.add(rows)
        failures.add(rows)
        shortages.add(rows)
        times.add(rows)
        sample.add(rows)
    return Page(
        about=_about(source),
        counts=figures.counts(),
        money=_money(source, figures),
        timeline=times.timeline(),
        ranks=ranks(source.attempts),
        failures=failures.groups(),
        failure_kinds=failures.kinds,
        shortages=shortages.groups(),
        sheet=unpacked(source.run, sample.sheet(), sample.packed()),
    )


def _about(source: Source) -> About:
    header, status = source.header, source.status
    model, slurm = (header.config.get(part) or {} for part in ("model", "slurm"))
    return About(
        run=source.run.root.name,
        tag=header.tag,
        state=status.state,
        alive=status.alive,
        made=time.time(),
        created=header.created,
        model=str(model.get("name") or ""),
        weights=str(model.get("weights") or ""),
        executor=str(slurm.get("executor") or ""),
        device=", ".join(source.devices),
        layout=str(status.layout or ""),
        manifest=header.manifest,
        config=_yaml(header.config),
        overrides=tuple(header.overrides),
        versions=tuple(f"{name} {version}" for name, version in header.versions.items()),
    )


def _money(source: Source, figures: Figures) -> Money:
    buckets, caches, parts = figures.buckets(), figures.caches(), shares(source.attempts)
    return Money(
        unit=hours_name(next(iter(source.devices), "")),
        hours=sum(part.hours for part in parts),
        seconds=sum(bucket.seconds for bucket in buckets),
        predicted=sum(bucket.predicted for bucket in buckets),
        planned=source.header.cost_s_total,
        total=sum(line.total for line in caches),
        computed=sum(line.computed for line in caches),
        shares=parts,
        buckets=buckets,
        hosts=figures.hosts(),
        caches=caches,
        fidelity=source.fidelity,
        histogram=figures.histogram(),
    )


def _yaml(config: dict[str, Any]) -> str:
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
    return cut(text, _CONFIG_BYTES)
