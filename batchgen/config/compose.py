"""Hydra composes plain YAML; here it becomes a checked JobConfig.

Groups: `model` (packaged in `conf/model`, own models in `./model`) and `slurm` (packaged, in
`./slurm`, and in the folder `slurm` beside the job's). Overrides are checked against the schema
before Hydra sees them, so that a misspelt key is answered with the key that was meant.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from batchgen.config.aliases import COMPOUND, canonical_key, resolve_aliases
from batchgen.config.build import build, leaf_keys, to_mapping, unknown_key_message
from batchgen.config.capability import check_served
from batchgen.config.detect import AUTO, checkpoint_folder, detect
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, closest

CONF = Path(__file__).parent / "conf"
GROUPS = ("model", "slurm")
_STORED = "batchgen-stored"  # name of the file that a stored configuration is composed from


@dataclass(frozen=True, slots=True)
class Composed:
    """A checked job and what it was made of."""

    config: JobConfig
    resolved: dict[str, Any]  # the same as plain values, every key present
    overrides: tuple[str, ...]  # as given
    hydra: dict[str, Any]  # Hydra's own configuration


def compose_job(job: Path, overrides: Sequence[str] = ()) -> Composed:
    """Compose the job file with overrides (`key=value`), check it, make it a JobConfig.

    Relative paths of `manifest` and `model.weights` are looked for in the current folder, then
    beside the job file, then one folder up; the absolute path is recorded.
    Raises ConfigError naming key, value and legal values.
    """
    if job.is_dir():
        raise ConfigError(f"{job}: is a folder, not a job{_jobs_nearby(job / 'x')}")
    if not job.is_file():
        raise ConfigError(f"{job}: no such job file{_jobs_nearby(job)}")
    if job.suffix != ".yaml":
        raise ConfigError(f"{job}: a job is a file that ends in .yaml")
    folder = job.absolute().parent
    roots = [Path.cwd(), folder, folder.parent]
    mapping, hydra = _compose(folder, job.stem, overrides, roots)
    mapping["name"] = mapping.get("name") or job.stem
    return _checked(mapping, overrides, hydra, roots)


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
    roots = [Path.cwd(), *_places(hydra or {})]
    given = {override.key_or_group for override in _parse(overrides)}
    chosen = [group for group in GROUPS if group in given]
    kept = {key: value for key, value in resolved.items() if key not in chosen}
    defaults = [{group: "inline" if group == "slurm" else "tiny-wan"} for group in chosen]
    with tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
        stored = {"defaults": [*defaults, "_self_"], **_literal(kept)}
        file = Path(folder) / f"{_STORED}.yaml"
        file.write_text(yaml.safe_dump(stored), encoding="utf-8")
        mapping, used = _compose(Path(folder), _STORED, overrides, roots)
    return _checked(mapping, overrides, used, [Path.cwd()])


def write_hydra(composed: Composed, folder: Path) -> None:
    """Write `config.yaml`, `overrides.yaml` and `hydra.yaml`, as Hydra's own launcher does."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, object] = {
        "config.yaml": _literal(composed.resolved),
        "overrides.yaml": list(composed.overrides),
        "hydra.yaml": {"hydra": composed.hydra},
    }
    for name, content in parts.items():
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (folder / name).write_text(text, encoding="utf-8")


# -------------------------------------------------------------------------------------- composing
def _compose(
    folder: Path, name: str, overrides: Sequence[str], roots: Sequence[Path]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The composed job and Hydra's own configuration, as plain mappings."""
    wanted = _last_of_each_group([_forced(parsed) for parsed in _parse(overrides)])
    # The packaged folder comes first: a folder of the user's cannot shadow `base` by accident.
    places = ",".join(_quoted(f"file://{path}") for path in (CONF, *dict.fromkeys(roots)))
    GlobalHydra.instance().clear()  # another use of Hydra in this process is no obstacle
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with initialize_config_dir(str(folder), job_name=name, version_base="1.3"):
                whole = compose(
                    name, [f"hydra.searchpath=[{places}]", *wanted], return_hydra_config=True
                )
        return _plain_parts(whole)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UserWarning) as error:
        raise ConfigError(_explain(error, _label(folder, name))) from error


def _places(hydra: Mapping[str, Any]) -> list[Path]:
    """The folders that a stored search path names and that are there."""
    listed = [str(place).removeprefix("file://") for place in hydra.get("searchpath") or ()]
    return [Path(place) for place in listed if Path(place).is_dir() and Path(place) != CONF]


def _plain_parts(whole: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    hydra = OmegaConf.to_container(whole.hydra, resolve=False)
    OmegaConf.set_readonly(whole, False)
    OmegaConf.set_struct(whole, False)
    whole.pop("hydra")
    job = OmegaConf.to_container(whole, resolve=True, throw_on_missing=True)
    assert isinstance(job, dict) and isinstance(hydra, dict)
    return {str(k): v for k, v in job.items()}, {str(k): v for k, v in hydra.items()}


def _label(folder: Path, name: str) -> str:
    return "the stored configuration" if name == _STORED else str(folder / f"{name}.yaml")


def _explain(error: Exception, job: str) -> str:
    """A message in the job's terms for what Hydra or OmegaConf raised."""
    if isinstance(error, MissingConfigException) and error.options:
        missing = (error.missing_cfg_file or "").strip("/")
        group, _, wanted = missing.rpartition("/")
        listed = ", ".join(sorted(error.options))
        return f"{group}: {wanted!r} is not one of {listed}{closest(wanted, error.options)}"
    if "`_self_`" in str(error):
        return f"{job}: the defaults list must name _self_ (put it last: what the job says, wins)"
    key = getattr(error, "full_key", None)
    if isinstance(error, MissingMandatoryValue) and key:
        return f"{key}: required, but not set in {job} nor on the command line"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = lines[0].replace("'++", "'")
    if first.startswith("Ambiguous value"):
        return f"{first}: a list is written key=[a,b], a text with commas \"key='a,b'\""
    return f"{job}: {f'{key}: ' if key else ''}{first}"


def _checked(
    mapping: dict[str, Any], overrides: Sequence[str], hydra: dict[str, Any], roots: Sequence[Path]
) -> Composed:
    mapping = resolve_aliases(mapping)
    if "model" in mapping:
        mapping["model"] = _detected(mapping["model"], roots)
    config = build(JobConfig, mapping)
    config = replace(
        config,
        manifest=str(_located(config.manifest, roots)),
        model=replace(config.model, weights=_weights(config.model.weights, roots)),
    )
    check_served(config)
    return Composed(config, to_mapping(config), tuple(overrides), hydra)


def _detected(model: Any, roots: Sequence[Path]) -> Any:
    """The model with what its checkpoint says, if it is to be found out."""
    if not isinstance(model, Mapping) or model.get("family") != AUTO:
        return model
    given = {**model, "weights": _weights(str(model.get("weights")), roots)}
    return detect(given, checkpoint_folder(given))


def _weights(weights: str, roots: Sequence[Path]) -> str:
    return weights if weights in ("random", "embedded") else str(_located(weights, roots))


def _located(path: str, roots: Sequence[Path]) -> Path:
    """Where a relative path leads: the first root that has it, else the first root."""
    given = Path(path).expanduser()
    found = [root / given for root in roots if (root / given).exists()]
    return Path(os.path.abspath((found or [roots[0] / given])[0]))  # no `..` left in it


def _literal(value: Any) -> Any:
    """Stored values are final: a `${` in a prompt must not be read as an interpolation again."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_literal(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _jobs_nearby(job: Path) -> str:
    folder = job.parent
    names = [str(path) for path in sorted(folder.glob("*.yaml"))] if folder.is_dir() else []
    near = closest(str(job), names)
    return near or (f"; {folder} has {', '.join(names)}" if names else "")


# -------------------------------------------------------------------------------------- overrides
def _parse(overrides: Sequence[str]) -> list[Override]:
    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"an override cannot be read: {lines[0]}; write key=value, and quote a value with "
            "spaces, commas or =: key='a, b'"
        ) from error
    return parsed


def _forced(override: Override) -> str:
    """The override as Hydra gets it: groups as they are, values under `++` once their key is known
    to the schema (a value may then replace one that no file mentions)."""
    text, key = str(override.input_line), override.key_or_group
    if key in GROUPS and not override.is_sweep_override() and not isinstance(override.value(), str):
        raise ConfigError(f"{text}: {key} takes the name of one of its files")
    if key in GROUPS or key.startswith("hydra"):
        return text
    if override.is_delete():
        _check_key(key)
        return text
    value = text.partition("=")[2]
    target = canonical_key(key, value)
    _check_key(target)
    return f"++{target}={value}"


def _last_of_each_group(overrides: Sequence[str]) -> list[str]:
    """Hydra refuses `slurm=a slurm=b`; for values the last one wins, so let it win here too."""
    last = {text.partition("=")[0]: i for i, text in enumerate(overrides)}
    return [
        text
        for i, text in enumerate(overrides)
        if text.partition("=")[0] not in GROUPS or last[text.partition("=")[0]] == i
    ]


def _check_key(key: str) -> None:
    """Raise ConfigError unless `key` is a leaf of the schema, its parent, or in a mapping."""
    if key in COMPOUND:
        return
    for leaf, hint in leaf_keys():
        inside_mapping = str(hint).startswith("dict[") and key.startswith(f"{leaf}.")
        if key == leaf or leaf.startswith(f"{key}.") or inside_mapping:
            return
    raise ConfigError(unknown_key_message(key))


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
