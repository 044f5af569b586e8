"""One place that refuses what the schema allows and the engine does not serve yet."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from batchgen.config.schema import CacheConfig, CompileConfig, JobConfig, MemoryConfig, ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.family import Capabilities, family_spec
from batchgen.request import ROW_DEFAULTS, Field

_COMPILE = CompileConfig()
_CACHE = CacheConfig()
_MEMORY = MemoryConfig()


def check_served(config: JobConfig) -> None:
    """Raise ConfigError for the first setting that is legal but not served; nothing is ignored."""
    served = served_by(config.model)
    media: tuple[object, ...] = (family_spec(config.model.family).MEDIA,)
    settings = _settings(config, served)
    for key, value, legal in (("model.media", config.model.media, media), *settings):
        if value not in legal:
            listed = ", ".join(_shown(v) for v in legal)
            raise ConfigError(f"{key}: {_shown(value)} is not served yet; served: {listed}")
    _check_ranks(config)


def served_by(model: ModelSpec) -> Capabilities:
    """What the model's family can do with it."""
    return family_spec(model.family).capabilities(model)


def _check_ranks(config: JobConfig) -> None:
    """The degrees multiply to the ranks of all nodes; `dp: auto` takes what the others leave."""
    parallel, slurm = config.system.parallel, config.slurm
    degrees = [parallel.dp, parallel.cfg, parallel.ulysses, parallel.ring]
    product = prod(1 if isinstance(degree, str) else degree for degree in degrees)
    ranks = slurm.nodes * slurm.ranks_per_node
    if product == ranks or (parallel.dp == "auto" and ranks % product == 0):
        return
    of_a_node = slurm.nodes == 1
    counted = "slurm.ranks_per_node" if of_a_node else "slurm.nodes x slurm.ranks_per_node"
    names, way = "dp x cfg x ulysses x ring", "make them equal, or leave dp: auto"
    if parallel.dp == "auto":
        names, way = "cfg x ulysses x ring", "it has to divide that"
    raise ConfigError(f"system.parallel: {names} is {product}, but {counted} is {ranks}; {way}")


def _settings(
    config: JobConfig, served: Capabilities
) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    """Key, value, served values of every setting that a family may lack."""
    yield from _system(config, served)
    yield from _row_defaults(config, served)


def _system(
    config: JobConfig, served: Capabilities
) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    system = config.system
    memory, compiled, cache = system.memory, system.compile, system.cache
    tiled: tuple[object, ...] = ("auto", True, False) if served.tiled_vae else ("auto", False)
    yield "system.parallel.cfg", system.parallel.cfg, ("auto", *served.cfg)
    yield "system.parallel.ulysses", system.parallel.ulysses, ("auto", *served.ulysses)
    yield "system.parallel.ring", system.parallel.ring, ("auto", *served.ring)
    yield "system.parallel.attention_op", system.parallel.attention_op, ("auto", "torch")
    yield "system.memory.mode", memory.mode, served.memory_modes
    yield "system.memory.store_dtype", memory.store_dtype, served.store_dtypes
    if "stream" not in served.memory_modes:  # these two steer streaming alone
        yield "system.memory.prefetch", memory.prefetch, (_MEMORY.prefetch,)
        yield "system.memory.pin", memory.pin, (_MEMORY.pin,)
    yield "system.components", system.components, ({},)
    yield "system.attention", system.attention, served.attention
    yield "system.compile.mode", compiled.mode, served.compile_modes
    if served.compile_modes == ("off",):
        yield "system.compile.dynamic", compiled.dynamic, (_COMPILE.dynamic,)
        yield "system.compile.fullgraph", compiled.fullgraph, (_COMPILE.fullgraph,)
        yield "system.compile.components", compiled.components, (_COMPILE.components,)
    yield "system.vae.tiled", system.vae.tiled, tiled
    if not served.tiled_vae:
        yield "system.vae.tile", system.vae.tile, (None,)
        yield "system.vae.stride", system.vae.stride, (None,)
    if served.cache_strategies == ("none",):
        yield "system.cache.on_refused", cache.on_refused, (_CACHE.on_refused,)
        yield "system.cache.audit_every", cache.audit_every, (_CACHE.audit_every,)
        yield "system.cache.min_psnr_db", cache.min_psnr_db, (_CACHE.min_psnr_db,)
        yield "system.cache.calibrate", cache.calibrate, (_CACHE.calibrate,)
    yield "system.sampler.solver", system.sampler.solver, (None, *served.solvers)
    yield "model.request_defaults.solver", config.model.request_defaults.solver, served.solvers
    if not served.sigma_shift:
        yield "system.sampler.sigma_shift", system.sampler.sigma_shift, (None,)
    if not served.boundary:
        yield "system.sampler.boundary", system.sampler.boundary, (None,)


def _row_defaults(
    config: JobConfig, served: Capabilities
) -> Iterator[tuple[str, object, tuple[object, ...]]]:
    rows = config.row_defaults
    yield "row_defaults.cache_strategy", rows.cache_strategy, (None, *served.cache_strategies)
    for name in unserved_columns(served):
        yield f"row_defaults.{name}", getattr(rows, name), (None,)


def unserved_columns(served: Capabilities) -> tuple[str, ...]:
    """Request columns that must be null for a family (`cache_strategy` may also say none)."""
    return tuple(name for name, field in ROW_DEFAULTS.items() if not _is_read(field, served))


def _is_read(field: Field, served: Capabilities) -> bool:
    if field.column.read_by == "caching":
        return served.cache_strategies != ("none",)
    return field.column.read_by == "all" or field.name in served.columns


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
