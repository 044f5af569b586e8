"""Decoding: a run of its own, whose rows are what another run has left as latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchgen.catalog.frames import current_catalog
from batchgen.config.composing.compose import Composed, recompose
from batchgen.config.composing.overrides import hydra_overrides, key_of, verbatim
from batchgen.errors import ConfigError, RunStateError, naming
from batchgen.media.stored import MediaPlace
from batchgen.paths import RunPaths, as_typed
from batchgen.planning.decoding import make_decoding_plan
from batchgen.request import LATENTS
from batchgen.runfile import RunFile, read_run
from batchgen.runner.begin import Begun, check_tensors, inputs_of, ready_settings
from batchgen.runner.create import create_run

# What may differ from the run that drew: nothing before the latents can be changed any more.
FREE = (
    "slurm", "slurm.", "tag", "name", "model.weights", "system.determinism", "system.vae.",
    "system.max_gpu_hours", "output.root_dir", "output.format", "output.quality",
    "output.embed_metadata", "output.hydra_dump_mode", "output.enable_", "output.log_ranks",
    "output.pack", "output.pack_mib", "output.on_event",
)  # fmt: skip
# A row is decoded by one rank, which holds the autoencoder alone.
_ALONE = (
    "system.parallel.dp=auto", "system.parallel.cfg=1", "system.parallel.ulysses=1",
    "system.parallel.ring=1", "system.memory.mode=resident",
)  # fmt: skip


def begin_decoding(source: RunPaths, overrides: Sequence[str], *, verb: str) -> Begun:
    """Make the run that decodes the ok rows of `source`; nothing is decoded yet. Raises
    RunStateError naming the row and its file where latents are missing, and what `begin` raises."""
    header = read_run(source)
    _refuse_fixed(overrides)
    rows = _drawn(source, header)
    composed = _composed(source, header, overrides)
    settings = ready_settings(composed, verb)
    with naming(inputs_of(composed.config)):
        check_tensors(composed.config)
        run = create_run(
            composed, lambda draft: make_decoding_plan(composed.config, draft, source.plan, rows)
        )
    return Begun(run, settings)


def _refuse_fixed(overrides: Sequence[str]) -> None:
    for key in map(key_of, hydra_overrides(overrides)):
        if not any(key == free or (free[-1] in "._" and key.startswith(free)) for free in FREE):
            legal = ", ".join(f"{free}*" if free[-1] in "._" else free for free in FREE)
            raise ConfigError(f"{key}: was decided when the rows were drawn; legal here: {legal}")


def _composed(source: RunPaths, header: RunFile, overrides: Sequence[str]) -> Composed:
    """The job of `source` with what decoding is beside it; what the user says comes last."""
    given = [
        verbatim("tag", f"{(header.tag or header.name)[:57]}-decode"),
        verbatim("output.root_dir", str(source.root.absolute().parent)),
        verbatim("decode", str(source.root.absolute())),
        "output.format=auto",
        *_ALONE,
        *overrides,
    ]
    composed = recompose(header.config, given, header.hydra)
    if composed.config.output.format == LATENTS:
        raise ConfigError("output.format: latents: is what the rows are; legal: any other")
    return replace(composed, overrides=(*header.overrides, *given))


def _drawn(source: RunPaths, header: RunFile) -> list[str]:
    """Of each row of the run's plan where its latents are; empty for rows that are not ok."""
    if of := header.config.get("decode"):
        raise RunStateError(
            f"{source.root}: has no latents: it decodes those of {of}; `batchgen decode "
            f"{as_typed(Path(of))}` does so again"
        )
    if header.config["output"]["format"] != LATENTS:
        raise RunStateError(
            f"{source.root}: has no latents: its output.format is "
            f"{header.config['output']['format']}; latents are drawn under output.format=latents"
        )
    found = [_latents(source, row) for row in _rows(current_catalog(source))]
    if not any(found):
        raise RunStateError(
            f"{source.root}: no row is ok; see `batchgen status {as_typed(source.root)}`"
        )
    return found


def _rows(catalog: pa.Table) -> list[dict[str, Any]]:
    names = ["row_id", "status", "media_path", "media_sha256", "media_bytes", "media_offset"]
    there = [name for name in names if name in catalog.column_names]  # it may be an older one
    rows: list[dict[str, Any]] = catalog.sort_by("row_index").select(there).to_pylist()
    return rows


def _latents(source: RunPaths, row: dict[str, Any]) -> str:
    """RunStateError if they are not there in their size; who decodes them compares the content."""
    if row["status"] != "ok":
        return ""
    stored = MediaPlace.of_row(row)
    file = source.root / stored.file
    try:
        size = file.stat().st_size
    except OSError as error:
        raise _damaged(source, row, f"{file}: {error.strerror}") from error
    if size < stored.offset + stored.size or (not stored.is_member and size != stored.size):
        raise _damaged(source, row, f"{file}: {size} bytes, published were {stored.size}")
    return str(stored)


def _damaged(source: RunPaths, row: dict[str, Any], what: str) -> RunStateError:
    name = as_typed(source.root)
    way = f"`batchgen verify {name} --repair`, then `batchgen resume {name}`, draw them again"
    return RunStateError(f"row {row['row_id']!r}: latents {what}; {way}")
