"""The configuration of a job as frozen dataclasses: three tiers (model, system and output, rows)
and the job's own keys. Types and defaults here are the schema; `build.py` checks a mapping against
them. The word `auto` is resolved when a run is planned and recorded as resolved."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from batchgen.request import ROW_DEFAULTS, ModelDefaults, Solver

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Modules:
    """Legal values of a key: the modules of a folder of the package, by their file names alone."""

    folder: str
    also: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """The legal values, sorted, behind those of `also`."""
        there = iter_modules([str(Path(__file__).parents[1] / self.folder)])
        return (*self.also, *sorted(module.name for module in there))


DType = Literal["bfloat16", "float16", "float32"]
StoreDType = Literal["same", "fp8"]  # what blocks are kept in
STORE_DTYPES: tuple[StoreDType, ...] = get_args(StoreDType)


# ---------------------------------------------------------------------------- model: static tier
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model: its family (code), dimensions, weights, and defaults of a request."""

    name: str
    family: str  # a folder of batchgen/families
    weights: str  # folder in diffusers layout, `random`, or `embedded` (shipped in the package)
    variant: str | None = None  # of the weights' files: fp16, bf16; where a component has it
    # transformers from files of their own, in their makers' layout: component -> file
    files: dict[str, str] = field(default_factory=dict)
    dtype: DType = "bfloat16"  # computed in float32 on a CPU
    dims: Any  # the family's `Dims`; its fields are keys of the model, beside these
    request_defaults: ModelDefaults  # not `defaults`: Hydra owns that key in a YAML file
    prompt_overflow: Literal["truncate", "error"] = "truncate"
    media: Literal["video", "image"] = "video"  # what the family draws
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # "480p 16:9" -> width, height

    @property
    def weights_folder(self) -> Path | None:
        """Folder of the checkpoint in diffusers layout; None for random weights."""
        if self.weights == "random":
            return None
        if self.weights == "embedded":
            return Path(__file__).parents[1] / "tiny" / "weights"
        return Path(self.weights)


# ------------------------------------------------------------------------ system: semi-static tier
@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    dp: int | Auto = "auto"
    cfg: int | Auto = "auto"
    ulysses: int | Auto = "auto"
    ring: int | Auto = "auto"
    up_limit: int | None = None  # most ranks that Ulysses divides heads over; the ring has the rest
    objective: Literal["throughput", "latency"] = "throughput"  # what `auto` decides for
    attention_op: Literal["auto", "torch", "xfuser"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    mode: Literal["auto", "resident", "model", "stream", "disk"] = "auto"
    vram_limit: float | None = None  # GiB
    store_dtype: StoreDType = "same"
    prefetch: int = 1
    pin: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentConfig:
    """One component of a model, where it is to be otherwise than the others. None: it is not."""

    memory: Literal["resident", "model", "stream", "disk"] | None = None
    dtype: DType | None = None  # computed in it on a CPU, too


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileConfig:
    mode: Literal["off", "default", "reduce-overhead", "max-autotune-no-cudagraphs"] = "off"
    dynamic: bool = False
    fullgraph: bool = True
    components: tuple[str, ...] = ("transformer",)


Kernel = Literal["sdpa", "cudnn", "flash_attn", "flash_attn_3", "sage", "sparge", "flex", "radial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSchedule:
    """`system.attention` in the first and last solver steps, another kernel between."""

    between: Kernel | None = None
    first: int = 5
    last: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RadialConfig:
    """Radial attention: whole in the first steps and blocks; `decay` scales how far it sees."""

    dense_steps: int = 10
    dense_layers: int = 1
    decay: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeConfig:
    tiled: bool | Auto = "auto"
    tile: int | None = None  # pixels
    stride: int | None = None  # pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    enabled: bool = True
    on_refused: Literal["error", "ignore"] = "error"
    audit_every: int = 0
    min_psnr_db: float | None = None
    calibrate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerConfig:
    """None: from the model."""

    solver: Solver | None = None
    sigma_shift: float | None = None
    boundary: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    token_budget: int | Auto = "auto"  # video tokens of one forward
    max_rows_in_flight: int | Auto = "auto"
    window: int | Auto = "auto"  # rows encoded together
    text_store_gib: float = 0.0  # of encoded texts on disk, for all shards of a run; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemConfig:
    determinism: Literal["strict", "throughput"] = "throughput"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    components: dict[str, ComponentConfig] = field(default_factory=dict)
    attention: Kernel | Auto = "auto"
    attention_schedule: AttentionSchedule = field(default_factory=AttentionSchedule)
    radial: RadialConfig = field(default_factory=RadialConfig)
    compile: CompileConfig = field(default_factory=CompileConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    max_gpu_hours: float | None = None  # device hours of the whole run; then no row is begun


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """A function that is shown the frames of each row; what it says of them are columns of the
    catalog."""

    call: str  # module:function
    columns: tuple[str, ...] = ()  # empty: one, of the function's name
    params: dict[str, Any] = field(default_factory=dict)  # its keyword arguments
    at_least: dict[str, float] = field(default_factory=dict)  # column -> bound, inclusive
    at_most: dict[str, float] = field(default_factory=dict)
    # of a row outside of these; retry draws it again with another seed, `retries` times
    policy: Literal["record", "fail", "retry"] = "record"
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    root_dir: str = "outputs"
    format: Annotated[str, Modules("media/formats", also=("auto",))] = "auto"
    fps: float | None = None  # None: from the model
    quality: int = 8
    name: str = "{row_id}"  # of media files
    embed_metadata: bool = True  # files say how they were made
    judges: tuple[JudgeConfig, ...] = ()
    on_event: str | None = None  # command that gets each event of the run, as JSON on its input
    pack: Literal["tar"] | None = None  # media of many rows in one file
    pack_mib: float = 1024.0  # at which a tar is long enough
    geometry: Literal["error", "round", "pad"] = "error"
    hydra_dump_mode: Literal["default", "video_dir", "off"] = "default"
    enable_timer_dump: bool = True
    enable_run_log: bool = True
    enable_launch_log: bool = False
    log_ranks: tuple[int, ...] = (0,)


# ------------------------------------------------------------------------------------ cluster, rows
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """Figures of one device, for planning where there is none."""

    name: str = "cpu"
    memory_gib: float = 8.0
    matmul_tflops: float = 0.05
    h2d_gbs: float = 10.0
    disk_gbs: float = 2.0  # from the checkpoint's files into the host's memory
    link_gbs: float = 10.0
    nic_gbs: float = 1.0


ONE_MACHINE = ("inline", "local")  # executors


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmConfig:
    """One cluster profile: how tasks start and what one node has.

    `signal_delay_s`: seconds before the wall-time limit at which ranks are told to drain.
    `watchdog_s`: a rank that makes no step for so long is killed; 0 = never. A step is the import
    of torch, a component of the model loaded, a text encoded, a solver step, rows decoded
    together and written: it has to be longer than the longest of these.
    `python`: command that starts python on a node, for containers; None = this interpreter.
    `steward_python`: the same for the steward, which needs Slurm's commands beside it; it then
    starts without `srun_args`. None = as the tasks.
    `extra`: further options of sbatch; true = an option without a value, false = not this one.
    """

    executor: Annotated[str, Modules("runner/executors")] = "local"
    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int = 0
    gres: str | None = None  # instead of gpus_per_node, e.g. gpu:a100:8
    cpus_per_rank: int = 1
    mem_gb: float | None = None  # of a node
    timeout_min: int = 60
    signal_delay_s: int = 90
    watchdog_s: int = 1800
    start_up_s: float | None = None  # process start to first row; None = estimated
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    srun_args: tuple[str, ...] = ()
    steward_partition: str | None = None  # None: as the tasks
    steward_python: str | None = None
    extra: dict[str, str | bool] = field(default_factory=dict)
    array_parallelism: int = 256
    max_attempts: int = 3
    row_retries: int = 1
    device: DeviceConfig = field(default_factory=DeviceConfig)


if TYPE_CHECKING:

    class RowDefaults:
        """Job-wide values of request columns; None: not set."""

        def __getattr__(self, column: str) -> Any: ...

else:
    _TYPES = {"text": str, "integer": int, "number": float, "image": str, "lora": str}
    RowDefaults = make_dataclass(
        "RowDefaults",
        [(name, _TYPES[column.kind] | None, None) for name, column in ROW_DEFAULTS.items()],
        namespace={"__module__": __name__},
        frozen=True,
        slots=True,
        kw_only=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """One runnable job, checked."""

    name: str
    tag: str = ""
    manifest: str  # absolute path of a Parquet file or a directory of Parquet files
    decode: str | None = (
        None  # absolute path of the run whose latents are decoded; nothing is drawn
    )
    seed: int = 0
    model: ModelSpec
    row_defaults: RowDefaults = field(default_factory=RowDefaults)
    locked: tuple[str, ...] = ()
    carry_columns: tuple[str, ...] = ()
    system: SystemConfig = field(default_factory=SystemConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
