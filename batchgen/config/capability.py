"""One place that refuses what the schema allows and the engine does not serve yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec

from batchgen.config.caching import cache_rules
from batchgen.config.checkpoints.original import check_files
from batchgen.config.compiler import missing_compiler
from batchgen.config.degrees import CFG, Bounds, degrees_of, product_of
from batchgen.config.kernels import KERNELS, kernel_plan, legal_here
from batchgen.config.schema import (
    BatchConfig,
    CacheConfig,
    CompileConfig,
    JobConfig,
    MemoryConfig,
    ModelSpec,
    ParallelConfig,
    VaeConfig,
)
from batchgen.config.stages import check_stages
from batchgen.errors import ConfigError, closest
from batchgen.families.family import Capabilities, Stage, family_spec
from batchgen.families.tiling import TiledDecoder, Tiling, tiling_of
from batchgen.request import ROW_DEFAULTS, Field

_COMPILE = CompileConfig()
_CACHE = CacheConfig()
_MEMORY = MemoryConfig()
_BATCH = BatchConfig()


def check_served(config: JobConfig) -> None:
    """Raise ConfigError for the first setting that is legal but not served; nothing is ignored."""
    served = served_by(config.model)
    check_stages(config)
    check_files(config.model)
    _check_pack(config)
    _check_cfg(config.system.parallel)
    drawn = family_spec(config.model.family).MEDIA
    media: tuple[object, ...] = ("video", "image") if drawn == "either" else (drawn,)
    _check_heads(config)
    _check_limit(config.system.memory, served)
    _check_components(config)
    _check_disk(config)
    _check_fp8(config)
    _check_attention_op(config)
    settings = _settings(config, served)
    for key, value, legal in (("model.media", config.model.media, media), *settings):
        if value not in legal:
            listed, model = ", ".join(_shown(v) for v in legal), config.model.name
            raise ConfigError(
                f"{key}: {_shown(value)} is not served by {model} yet; served: {listed}"
            )
    _check_kernels(config, served)
    _check_compile(config)
    _check_tiles(config, served)
    _check_degrees(config)
    cache_rules(config)


def served_by(model: ModelSpec) -> Capabilities:
    """What the model's family can do with it."""
    return family_spec(model.family).capabilities(model)


def shared_tiles(
    model: ModelSpec, vae: VaeConfig, stages: Sequence[Stage]
) -> tuple[Tiling, TiledDecoder] | None:
    """What a frame is cut into where the ranks of a replica, which draws rows to their end, share
    the tiles of a decode; None: its leader decodes alone."""
    tiling, tiles = tiling_of(vae), served_by(model).tiles
    if tiling is None or tiles is None or not {"denoise", "decode"}.issubset(stages):
        return None
    return tiling, tiles


def bounds_of(config: JobConfig) -> Bounds:
    """What decides which degrees of parallelism a job may have."""
    model, slurm = config.model, config.slurm
    heads, served = family_spec(model.family).heads(model), served_by(model)
    if kernel_plan(config.system).names != ("sdpa",):  # a ring attends with torch's own
        served = replace(served, ring=(1,))
    if config.system.compile.mode != "off":  # no block waits for other ranks
        served = replace(served, ring=(1,), ulysses=(1,))
    return Bounds(served, heads, slurm.nodes, slurm.ranks_per_node)


def _check_pack(config: JobConfig) -> None:
    if config.output.pack is not None and config.output.format == "frames":
        raise ConfigError(
            "output.pack: tar: takes one file of a row, and output.format=frames makes a folder; "
            "legal: null, or another format"
        )


def _check_cfg(parallel: ParallelConfig) -> None:
    if parallel.cfg not in ("auto", *CFG):
        raise ConfigError(
            f"system.parallel.cfg: {parallel.cfg}: the branches of guidance are two at most; "
            "legal: auto, 1, 2"
        )


def _check_heads(config: JobConfig) -> None:
    """A Ulysses degree given by hand divides the attention heads; `auto` may pad them."""
    degree, bounds = config.system.parallel.ulysses, bounds_of(config)
    heads = bounds.heads
    if isinstance(degree, int) and heads % degree:
        listed = ", ".join(map(str, bounds.served.ulysses))
        raise ConfigError(
            f"system.parallel.ulysses: {degree} does not divide the {heads} attention heads of "
            f"{config.model.name}; legal: {listed}"
        )


def _check_limit(memory: MemoryConfig, served: Capabilities) -> None:
    """No memory at all for blocks is a way to say that they stream."""
    modes = [mode for mode in ("auto", "stream", "disk") if "stream" in served.memory_modes]
    if memory.vram_limit == 0 and memory.mode not in modes:
        legal = f"with system.memory.mode={' or '.join(modes)}" if modes else "above 0"
        raise ConfigError(
            "system.memory.vram_limit: 0 lets every block stream, which mode "
            f"{memory.mode} does not; legal: {legal}"
        )


def _check_components(config: JobConfig) -> None:
    """Each is one that the model has weights for."""
    parts = family_spec(config.model.family).COMPONENTS
    known = [part.name for part in parts if part.kind == "model"]
    for name in config.system.components:
        if name not in known:
            raise ConfigError(
                f"system.components.{name}: {config.model.name} has no such component"
                f"{closest(name, known)}; legal: {', '.join(known) or 'none'}"
            )


def _memory_of(model: ModelSpec, name: str, served: Capabilities) -> tuple[object, ...]:
    """What a component's memory can be; without blocks there is nothing to stream."""
    parts = {part.name: part for part in family_spec(model.family).COMPONENTS}
    modes = [mode for mode in served.memory_modes if mode != "auto"]
    return (None, *(m for m in modes if m != "stream" or parts[name].blocks))


def _check_disk(config: JobConfig) -> None:
    """What stays on disk is in files there."""
    system, legal = config.system, "resident, model, stream"
    asked: dict[str, str | None] = {"system.memory.mode": system.memory.mode}
    asked |= {f"system.components.{n}.memory": c.memory for n, c in system.components.items()}
    for key, mode in asked.items():
        if mode == "disk" and config.model.weights_folder is None:
            raise ConfigError(f"{key}: disk: model.weights=random has no files; legal: {legal}")


def _check_fp8(config: JobConfig) -> None:
    """Files hold what is computed with: it would be rounded anew for each forward."""
    memory, model = config.system.memory, config.model
    if memory.store_dtype != "fp8":
        return
    experts = [c.name for c in family_spec(model.family).COMPONENTS if c.stacks]
    own = {config.system.components[n].memory for n in experts if n in config.system.components}
    if memory.mode == "disk" or "disk" in own:
        raise ConfigError(
            "system.memory.store_dtype: fp8 is made once, in host memory, which a transformer on "
            "disk has not; legal with it: system.memory.mode=auto, resident, model, stream"
        )


def with_tiles(config: JobConfig) -> JobConfig:
    """With the sizes of tiles that the job leaves to the family, so that they are in the key."""
    vae, tiles = config.system.vae, served_by(config.model).tiles
    if vae.tiled is not True or tiles is None:
        return config
    return replace(config, system=replace(config.system, vae=tiles.resolved(vae)))


def _check_tiles(config: JobConfig, served: Capabilities) -> None:
    """Whole cells, and so many around each tile that it shows no seam."""
    vae, tiles = config.system.vae, served.tiles
    for key, pixels in (("tile", vae.tile), ("stride", vae.stride)):
        if pixels is not None and vae.tiled is not True:
            raise ConfigError(
                f"system.vae.{key}: {pixels}: without system.vae.tiled=true there are no tiles; "
                "legal: null"
            )
    if tiles is None or vae.tile is None or vae.stride is None:
        return
    if not tiles.beside and vae.tile != vae.stride:
        raise ConfigError(
            f"system.vae.tile: {vae.tile}: {config.model.name} is decoded layer by layer, where "
            "tiles have nothing beside what they are there for; "
            f"legal with system.vae.stride={vae.stride}: null, {vae.stride}"
        )
    if vae.tile - vae.stride < tiles.beside or vae.stride <= 0:
        own = f" with system.vae.stride={vae.stride}" if vae.stride > 0 else ""
        raise ConfigError(
            f"system.vae.tile: {vae.tile}: a tile of {config.model.name} needs {tiles.beside} "
            "pixels beside what it is there for, else seams show; "
            f"legal: from {max(vae.stride, tiles.factor) + tiles.beside} on{own}"
        )
    for key, pixels in (("tile", vae.tile), ("stride", vae.stride)):
        if pixels % tiles.factor:
            raise ConfigError(
                f"system.vae.{key}: {pixels}: the latents of {config.model.name} have cells of "
                f"{tiles.factor} pixels; legal: multiples of that"
            )


def _check_attention_op(config: JobConfig) -> None:
    """xfuser is installed, as far as that can be seen here; whether it loads, ranks find out."""
    asked, elsewhere = config.system.parallel.attention_op, config.slurm.python is not None
    if asked == "xfuser" and not elsewhere and find_spec("xfuser") is None:
        raise ConfigError(
            "system.parallel.attention_op: xfuser is not installed; legal here: auto, torch"
        )


def _check_kernels(config: JobConfig, served: Capabilities) -> None:
    """Kernels can run on the profile's devices, as far as that can be seen here, and together with
    what divides attention; ranks look again."""
    system, asked = config.system, ("attention", "attention_schedule.between")
    device, installed = config.slurm.device.name, config.slurm.python is None
    for key, name in zip(asked, (system.attention, system.attention_schedule.between), strict=True):
        if name is None or name == "auto":
            continue
        if missing := KERNELS[name].missing(device, config.model.dtype, installed):
            legal = ", ".join(legal_here(served.attention, device, config.model.dtype, installed))
            raise ConfigError(f"system.{key}: {name} {missing}; legal here: {legal}")
    _check_kernels_together(config)


def _check_kernels_together(config: JobConfig) -> None:
    system = config.system
    parallel, names = system.parallel, kernel_plan(system).names
    if system.attention == "radial" and system.attention_schedule.between is not None:
        raise ConfigError(
            "system.attention_schedule.between: radial has its own first steps "
            "(system.radial.dense_steps); legal with system.attention=radial: null"
        )
    if names == ("sdpa",):
        return
    if parallel.attention_op == "xfuser":
        raise ConfigError(
            f"system.parallel.attention_op: xfuser brings its own kernel, not "
            f"{', '.join(names)}; legal with it: auto, torch"
        )
    if isinstance(parallel.ring, int) and parallel.ring > 1:
        raise ConfigError(
            f"system.parallel.ring: {parallel.ring} attends chunk by chunk with torch's own "
            f"kernel, not with {', '.join(names)}; legal with it: auto, 1"
        )


def _check_compile(config: JobConfig) -> None:
    """What compiled blocks do not go together with; and, for a CPU, a compiler."""
    system, mode = config.system, config.system.compile.mode
    if mode == "off":
        return
    device, here = config.slurm.device.name, config.slurm.python is None
    if here and device == "cpu" and (missing := missing_compiler(device)):
        raise ConfigError(f"system.compile.mode: {mode}: {missing}; legal here: off")
    parallel = system.parallel
    if any(isinstance(d, int) and d > 1 for d in (parallel.ulysses, parallel.ring)):
        raise ConfigError(
            f"system.compile.mode: {mode}: blocks whose tokens are divided over ranks are not "
            "compiled; legal with it: system.parallel.ulysses and ring auto or 1"
        )
    if mode == "reduce-overhead" and (
        system.memory.mode in ("stream", "disk") or system.memory.vram_limit
    ):
        raise ConfigError(
            "system.compile.mode: reduce-overhead records where blocks lie, and those that stream "
            "move; legal with it: off, default, max-autotune-no-cudagraphs"
        )
    if "radial" in kernel_plan(system).names:
        raise ConfigError(
            f"system.compile.mode: {mode}: radial attention differs from block to block; legal "
            "with it: off"
        )


def _check_degrees(config: JobConfig) -> None:
    """Some legal degrees multiply to the ranks of all nodes."""
    parallel, bounds = config.system.parallel, bounds_of(config)
    legal, out = degrees_of(parallel, bounds)
    if legal:
        return
    if out and all(isinstance(d, int) for d in (parallel.cfg, parallel.ulysses, parallel.ring)):
        raise ConfigError(f"system.parallel: {out[0].degrees}: {out[0].why}")
    raise ConfigError(_mismatch(config, bounds))


def _mismatch(config: JobConfig, bounds: Bounds) -> str:
    """The degrees given do not multiply to the ranks, whatever the others are."""
    parallel, of_a_node = config.system.parallel, bounds.nodes == 1
    counted = "slurm.ranks_per_node" if of_a_node else "slurm.nodes x slurm.ranks_per_node"
    names, way = "dp x cfg x ulysses x ring", "make them equal, or leave dp: auto"
    if parallel.dp == "auto":
        names, way = "cfg x ulysses x ring", "it has to divide that"
    product = product_of(config)
    return f"system.parallel: {names} is {product}, but {counted} is {bounds.ranks}; {way}"


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
    tiled: tuple[object, ...] = ("auto", True, False) if served.tiles else ("auto", False)
    yield "system.parallel.cfg", system.parallel.cfg, ("auto", *served.cfg)
    yield "system.parallel.ulysses", system.parallel.ulysses, ("auto", *served.ulysses)
    yield "system.parallel.ring", system.parallel.ring, ("auto", *served.ring)
    yield "system.memory.mode", memory.mode, served.memory_modes
    yield "system.memory.store_dtype", memory.store_dtype, served.store_dtypes
    if "stream" not in served.memory_modes:  # these two steer streaming alone
        yield "system.memory.prefetch", memory.prefetch, (_MEMORY.prefetch,)
        yield "system.memory.pin", memory.pin, (_MEMORY.pin,)
    for name, own in system.components.items():
        yield f"system.components.{name}.memory", own.memory, _memory_of(config.model, name, served)
    yield "model.prompt_overflow", config.model.prompt_overflow, served.prompt_overflow
    if not served.packs:  # rows go one by one
        for name in (spec.name for spec in fields(BatchConfig)):
            one = (1,) if name == "max_rows_in_flight" else ()
            legal = (getattr(_BATCH, name), *one)
            yield f"system.batch.{name}", getattr(system.batch, name), legal
    yield "system.attention", system.attention, served.attention
    between = tuple(name for name in served.attention if name != "auto")
    yield "system.attention_schedule.between", system.attention_schedule.between, (None, *between)
    yield "system.compile.mode", compiled.mode, served.compile_modes
    if served.compile_modes == ("off",):
        yield "system.compile.dynamic", compiled.dynamic, (_COMPILE.dynamic,)
        yield "system.compile.fullgraph", compiled.fullgraph, (_COMPILE.fullgraph,)
    yield "system.compile.components", compiled.components, (_COMPILE.components,)
    yield "system.vae.tiled", system.vae.tiled, tiled
    if served.cache_strategies == ("none",):  # nothing to audit or to fit
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
    for name in unserved_columns(served):
        yield f"row_defaults.{name}", getattr(rows, name), (None,)


def unserved_columns(served: Capabilities) -> tuple[str, ...]:
    """Request columns that must be null for a family."""
    return tuple(name for name, field in ROW_DEFAULTS.items() if not _is_read(field, served))


def _is_read(field: Field, served: Capabilities) -> bool:
    if field.name in served.unread:
        return False
    return field.column.read_by == "all" or field.name in served.columns


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
