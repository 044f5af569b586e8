"""Tells whoever resumes a run whether the manifest has changed since it was planned."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from batchgen.config.composing.compose import recompose
from batchgen.errors import ManifestError
from batchgen.paths import RunPaths
from batchgen.planning.identity import KeyContext
from batchgen.planning.manifest_changes import ManifestChanges, manifest_changes
from batchgen.runfile import RunFile, read_run
from batchgen.runner.tables import as_planned

_NAMED = 3  # row ids named for each kind of change


def manifest_news(run: RunPaths) -> str:
    """What has changed in the manifest since the run was planned, and what to type; empty if
    nothing has. The run goes on either way, with the rows of its plan."""
    header = read_run(run)
    if header.config.get("decode") is not None:  # its rows are another run's
        return ""
    job = recompose(header.config, (), header.hydra).config
    context = KeyContext.from_json(header.key_context)
    if not Path(header.manifest).exists():
        return f"manifest {header.manifest} is not there any more; the run goes on with its plan"
    try:
        digest = header.manifest_digest
        changes = manifest_changes(job, context, run.plan, digest, as_planned(run))
    except ManifestError as error:
        reason = str(error).splitlines()[0]
        return _told(header, f"and cannot be planned now: {reason}")
    if changes is None:
        return ""
    return _told(header, _counts(changes)) if changes else ""


def _told(header: RunFile, what: str) -> str:
    return (
        f"manifest {header.manifest} has changed since this run was planned {what}\n"
        "         this run goes on with the rows it was planned with; for the manifest as it is "
        f"now, start another: {_command(header)}"
    )


def _counts(changes: ManifestChanges) -> str:
    kinds = {"added": changes.added, "changed": changes.changed, "gone": changes.gone}
    parts = [f"{len(ids):,} {kind} ({_few(ids)})" for kind, ids in kinds.items() if ids]
    return f"(it has {changes.rows:,} rows now): {', '.join(parts)}"


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def _command(header: RunFile) -> str:
    """The command that made the run, as far as it is known."""
    sources = header.hydra.get("runtime", {}).get("config_sources", [])
    folders = [source["path"] for source in sources if source.get("provider") == "main"]
    name = header.hydra.get("job", {}).get("config_name") or header.name
    job = Path(*folders[:1], f"{name}.yaml")
    known = shlex.quote(str(job)) if job.is_file() else "JOB"
    # a relative path was meant from the folder where it was typed
    here = f"manifest={header.manifest}"
    words = [here if text.startswith("manifest=") else text for text in header.overrides]
    return " ".join(["batchgen run", known, *map(shlex.quote, words)])
