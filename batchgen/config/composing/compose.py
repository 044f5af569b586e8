"""Hydra composes plain YAML; here it becomes a checked JobConfig.

Groups: `model` (packaged in `conf/model`, own models in `./model`) and `slurm` (packaged, in
`./slurm`, and in the folder `slurm` beside the job's). A user's files never stand in for packaged
ones (`userfiles.py`); overrides are checked before Hydra sees them (`overrides.py`).
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from batchgen.config.build import build, to_mapping
from batchgen.config.capability import check_served, with_tiles
from batchgen.config.checkpoints.detect import checkpoint_folder, detect, is_to_be_found
from batchgen.config.composing.aliases import resolve_aliases
from batchgen.config.composing.overrides import (
    GROUPS,
    hydra_overrides,
    key_of,
    quoted,
    refuse_hydras_own,
)
from batchgen.config.composing.yamlfile import read_yaml
from batchgen.config.judges import SCORE, resolved_judges
from batchgen.config.limits import check_limit
from batchgen.config.schema import JobConfig
from batchgen.config.userfiles import CONF, folder_of, register, source_of
from batchgen.errors import ConfigError, closest, naming
from batchgen.loras import NoLora, parse, written
from batchgen.paths import at_home

log = logging.getLogger(__name__)
_ENTRY = "batchgen-job"  # name of the file that Hydra begins with


@dataclass(frozen=True, slots=True)
class Composed:
    """A checked job and what it was made of."""

    config: JobConfig
    resolved: dict[str, Any]  # the same as plain values, every key present
    overrides: tuple[str, ...]  # as given
    hydra: dict[str, Any]  # Hydra's own configuration


def compose_job(job: Path, overrides: Sequence[str] = ()) -> Composed:
    """Compose the job file with overrides (`key=value`), check it, make it a JobConfig.

    Relative paths of `manifest`, `model.weights` and `row_defaults.lora` are looked for in the
    current folder, then beside the job file, then one folder up; the absolute path is recorded.
    Raises ConfigError naming key, value and legal values.
    """
    text = _job_text(job)
    folder = job.absolute().parent
    if job.stem != "base" and (folder / "base.yaml").is_file():
        log.warning(
            "%s is not used by %s: `base` is the packaged file, every key with its default; to "
            "start jobs from your own, give it another name",
            folder / "base.yaml",
            job,
        )
    roots = [_here(), folder, folder.parent]
    mapping, hydra = _compose(text, str(job), job.stem, hydra_overrides(overrides), roots)
    _note_job(hydra, job)
    mapping["name"] = mapping.get("name") or job.stem
    composed = _checked(mapping, overrides, hydra, roots)
    if composed.config.decode is not None:
        raise ConfigError(
            f"decode: {composed.config.decode}: is set by `batchgen decode RUN` alone"
        )
    return composed


def _job_text(job: Path) -> str:
    try:
        if job.is_dir():
            raise ConfigError(f"{job}: is a folder, not a job{_jobs_nearby(job / 'x')}")
        if not job.is_file():
            raise ConfigError(f"{job}: no such job file{_jobs_nearby(job)}")
    except OSError as error:
        raise ConfigError(f"{job}: cannot be read: {error.strerror}") from error
    if job.suffix != ".yaml":
        given = f"; a manifest is its key: JOB manifest={job}" if job.suffix == ".parquet" else ""
        raise ConfigError(f"{job}: a job is a file that ends in .yaml{given}")
    text, content = read_yaml(job)
    refuse_hydras_own(job, content)
    return text


def _note_job(hydra: dict[str, Any], job: Path) -> None:
    """The record names the job's own file, not the copy that Hydra was given."""
    hydra["job"]["config_name"] = job.stem
    for source in hydra["runtime"]["config_sources"]:
        if source["provider"] == "main":
            source["path"] = str(job.absolute().parent)


def recompose(
    resolved: Mapping[str, Any],
    overrides: Sequence[str] = (),
    hydra: Mapping[str, Any] | None = None,
) -> Composed:
    """A stored configuration (`Composed.resolved`) under further overrides.

    An override of a whole group (`slurm=inline`) replaces that part. Its files are looked for in
    the current folder, then where the job's were: `hydra` (`Composed.hydra`) tells, as far as these
    folders are still there. Raises ConfigError.
    """
    roots = [_here(), *_places(hydra or {})]
    wanted = hydra_overrides(overrides)
    given = {key_of(text) for text in wanted}
    chosen = [group for group in GROUPS if group in given]
    before = _as_it_was(resolved)
    kept = {key: value for key, value in before.items() if key not in chosen}
    defaults = [{group: "inline" if group == "slurm" else "tiny-wan"} for group in chosen]
    text = _yaml({"defaults": [*defaults, "_self_"], **_literal(kept)})
    mapping, used = _compose(text, "the stored configuration", "stored", wanted, roots)
    return _checked(mapping, overrides, used, roots[:1])


def stored_settings(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with every key of this version, those that are newer as they were in
    effect then. Raises ConfigError."""
    return to_mapping(build(JobConfig, _as_it_was(resolved)))


def _as_it_was(resolved: Mapping[str, Any]) -> Mapping[str, Any]:
    """With keys that a run was made without, where their defaults are not what was done then."""
    output, model = resolved.get("output"), resolved.get("model")
    if not isinstance(output, Mapping):
        return resolved
    before: dict[str, Any] = {"embed_metadata": False}
    if isinstance(model, Mapping) and model.get("weights") == "embedded":
        before["judges"] = [to_mapping(SCORE)]
    return {**resolved, "output": {**before, **output}}


def write_hydra(
    resolved: Mapping[str, Any], overrides: Sequence[str], hydra: Mapping[str, Any], folder: Path
) -> None:
    """Write `config.yaml`, `overrides.yaml` and `hydra.yaml`, as Hydra's own launcher does."""
    folder.mkdir(exist_ok=True)
    parts: dict[str, object] = {
        "config.yaml": _literal(resolved),
        "overrides.yaml": list(overrides),
        "hydra.yaml": {"hydra": dict(hydra)},
    }
    for name, content in parts.items():
        (folder / name).write_text(_yaml(content), encoding="utf-8")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes every text that begins like a number: Hydra reads 1e5 as one, plain YAML does not."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.match(r"[-+.\d]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _yaml(content: object) -> str:
    """YAML that Hydra and every other reader takes for `content`."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


# -------------------------------------------------------------------------------------- composing
def _compose(
    text: str, label: str, name: str, overrides: Sequence[str], roots: Sequence[Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The composed job and Hydra's own configuration, as plain mappings.

    `text`: the YAML that Hydra begins with, in a folder of its own, so that nothing lies beside it.
    `label`: what messages call it.
    """
    register()
    sources = [*(source_of(path) for path in dict.fromkeys(roots)), f"file://{CONF}"]
    places = ",".join(quoted(source) for source in sources)
    GlobalHydra.instance().clear()  # another use of Hydra in this process is no obstacle
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
            warnings.simplefilter("error", UserWarning)
            with naming({"TMPDIR": tempfile.gettempdir()}, written="TMPDIR"):
                Path(folder, f"{_ENTRY}.yaml").write_text(text, encoding="utf-8")
            with initialize_config_dir(folder, job_name=name, version_base="1.3"):
                whole = compose(
                    _ENTRY, [f"hydra.searchpath=[{places}]", *overrides], return_hydra_config=True
                )
        return _plain_parts(whole)
    except RecursionError as error:
        raise ConfigError(f"{label}: its defaults lead back to itself") from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UserWarning) as error:
        raise ConfigError(_explain(error, label).replace(_ENTRY, name)) from error


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError("the current folder is gone; change to another one") from error


def _places(hydra: Mapping[str, Any]) -> list[Path]:
    """The folders that a stored search path names and that are there."""
    listed = [folder_of(str(place)) for place in hydra.get("searchpath") or ()]
    return [place for place in listed if place.is_dir() and place != CONF]


def _plain_parts(whole: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    hydra = OmegaConf.to_container(whole.hydra, resolve=False)
    OmegaConf.set_readonly(whole, False)
    OmegaConf.set_struct(whole, False)
    whole.pop("hydra")
    job = OmegaConf.to_container(whole, resolve=True, throw_on_missing=True)
    assert isinstance(job, dict) and isinstance(hydra, dict)
    return {str(k): v for k, v in job.items()}, {str(k): v for k, v in hydra.items()}


def _explain(error: Exception, job: str) -> str:
    """A message in the job's terms for what Hydra or OmegaConf raised."""
    if isinstance(error, MissingConfigException) and error.options:
        missing = (error.missing_cfg_file or "").strip("/")
        group, _, wanted = missing.rpartition("/")
        if missing.partition("/")[0] in GROUPS:
            group, _, wanted = missing.partition("/")
        listed = ", ".join(sorted(error.options))
        own = f"; own ones are {group}/NAME.yaml here, beside the job or one folder up"
        near = closest(wanted, error.options) or own
        return f"{group}: {wanted!r} is not one of {listed}{near}"
    if "`_self_`" in str(error):
        return f"{job}: the defaults list must name _self_ (put it last: what the job says, wins)"
    key = getattr(error, "full_key", None)
    if isinstance(error, MissingMandatoryValue) and key:
        return f"{key}: required, but not set in {job} nor on the command line"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = lines[0].replace("'++", "'")
    if first.startswith("Error merging override") and error.__cause__:
        override = first.removeprefix("Error merging override ").lstrip("+")
        return f"{override}: {str(error.__cause__).splitlines()[0]}"
    return f"{job}: {f'{key}: ' if key else ''}{first}"


def _checked(
    mapping: dict[str, Any], overrides: Sequence[str], hydra: dict[str, Any], roots: Sequence[Path]
) -> Composed:
    mapping = resolve_aliases(mapping)
    rows = mapping.get("row_defaults")
    if isinstance(rows, dict) and isinstance(rows.get("lora"), str):
        rows["lora"] = _loras(rows["lora"], roots)
    if "model" in mapping:
        mapping["model"] = _detected(mapping["model"], roots)
    config = build(JobConfig, mapping)
    config = replace(
        config,
        manifest=_located("manifest", config.manifest, roots),
        model=replace(
            config.model,
            weights=_weights(config.model.weights, roots),
            files={
                name: _located(f"model.files.{name}", file, roots)
                for name, file in config.model.files.items()
            },
        ),
        output=replace(
            config.output,
            root_dir=_root(config.output.root_dir),
            judges=resolved_judges(config.output.judges),
        ),
    )
    config = with_tiles(config)
    check_served(config)
    return Composed(config, to_mapping(config), tuple(overrides), hydra)


def _detected(model: Any, roots: Sequence[Path]) -> Any:
    """The model with what its checkpoint says, if it is to be found out."""
    if not isinstance(model, Mapping) or not is_to_be_found(model):
        return model
    given = {**model, "weights": _weights(str(model.get("weights")), roots)}
    return detect(given, checkpoint_folder(given))


def _weights(weights: str, roots: Sequence[Path]) -> str:
    if weights in ("random", "embedded"):
        return weights
    return _located("model.weights", weights, roots)


def _loras(given: str, roots: Sequence[Path]) -> str:
    """The job's LoRA files, as absolute paths."""
    key = "row_defaults.lora"
    try:
        found = parse(given)
    except NoLora as error:
        raise ConfigError(f"{key}: {error}") from error
    return written([replace(one, file=_located(key, one.file, roots)) for one in found])


def _root(folder: str) -> str:
    return str(at_home(folder)) if folder.startswith("~") else folder


def _located(key: str, path: str, roots: Sequence[Path]) -> str:
    """Where a relative path leads: the first root that has it, else the first root."""
    given = at_home(path)
    found = [root / given for root in roots if os.path.lexists(root / given)]
    located = os.path.abspath((found or [roots[0] / given])[0])  # no `..` left in it
    check_limit(key, located)
    return located


def _literal(value: Any) -> Any:
    """Stored values are final: a `${` in a prompt must not be read as an interpolation again."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _jobs_nearby(job: Path) -> str:
    """A hint at the job that may be meant, of those beside it and in `jobs/` there."""
    folder = job.parent
    found = [*sorted(folder.glob("[!.]*.yaml")), *sorted((folder / "jobs").glob("[!.]*.yaml"))]
    names = [str(path) for path in found]
    same = [str(path) for path in found if path.stem == job.stem]
    near = closest(str(job), names) or "".join(f" (did you mean {name!r}?)" for name in same[:1])
    return near or (f"; {folder} has {', '.join(names)}" if names else "")
