"""The one table of request fields.

A line of a class here is all there is to say about a field: its name, its type, what it is where
nobody sets it, and in `Column` the rest. Everything else is made from these lines: the columns of a
manifest and their ranges, `row_defaults`, the columns of the plan and of the catalog, and what
enters a row key. The class says who fills a field in:

    ModelDefaults   the row, else the job, else the model
    Request         all of these, and what each row has of its own: the whole of what is drawn
    OtherColumns    columns of a manifest that a request does not keep
"""

from __future__ import annotations

import types
from dataclasses import KW_ONLY, dataclass, fields
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

Kind = Literal["text", "integer", "number", "image", "lora"]
Image = NewType("Image", str)  # sha256 (hex) of a file in the run's `inputs/`
Loras = NewType("Loras", str)  # as `loras.written` writes them, each file as its sha256
NO_LORA = Loras("")
Solver = Literal["unipc", "euler", "dpm++", "ddim", "sde", "ddpm", "own"]  # own: a pipeline's
NOISY = ("sde", "ddpm")  # draw noise at their steps

LATENTS = "latents"  # the format of rows that are not decoded
MAX_SEED = 2**63 - 1
MAX_STEPS = 1000  # the schedules are drawn from 1000 training timesteps
MAX_FPS = 240
MAX_SIDE = 16384  # pixels; beyond any model, small enough that products fit in int64
MAX_FRAMES = 65536
MAX_GUIDANCE = 1000.0


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval; None is open on that side. `above_low`: the low end itself is illegal."""

    low: float | None = None
    high: float | None = None
    above_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        if self.low is not None and (value < self.low or (self.above_low and value == self.low)):
            return False
        return self.high is None or value <= self.high

    def __str__(self) -> str:
        low = "" if self.low is None else f"{'> ' if self.above_low else '>= '}{self.low:g}"
        if self.high is None:
            return low
        high = f"{self.high}" if isinstance(self.high, int) else f"{self.high:g}"
        return f"{low} and <= {high}" if low else f"<= {high}"


@dataclass(frozen=True, slots=True)
class Column:
    """What holds for a field beside its name, type and default.

    `set_by`, who may set it:
    - "row": each row, by a column of the manifest; the job for all rows, by `row_defaults.<name>`;
    - "row alone": there is no value for all rows;
    - "plan": planning fills it in;
    - else the key of the job that sets it.

    `key`, its part in the row key:
    - a number: its place. Places up to ALWAYS_IN_KEY are in every key, later ones where the value
      is not the default;
    - "named": after those, with its name, where the value is not the default. So the keys of
      existing runs stay what they are when a field is added; its default must never change;
    - "apart": behind all others, since it differs from row to row;
    - "no": it decides neither pixels nor the file.
    """

    range: Range | None = None  # of a number
    unit: str = ""
    _: KW_ONLY
    set_by: str = "row"
    read_by: Literal["all", "some"] = "all"  # some: families whose capabilities list it
    prose: bool = False  # free text of any length, in which a comma is no more than that
    key: int | Literal["named", "apart", "no"] = "named"
    catalog: bool = True


ALWAYS_IN_KEY = 12
_SIDE = Range(1, MAX_SIDE)
_STEPS = Range(1, MAX_STEPS)
_ENDS = Range(0, MAX_STEPS)  # steps at either end that no cache touches
_SCALE = Range(0.0, MAX_GUIDANCE)
_SHARE = Range(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of one bucket have latents of one shape and may share a forward."""

    width: int  # pixels
    height: int  # pixels
    num_frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """The inverse of `str`."""
        return cls(*map(int, text.split("x")))


# ------------------------------------------------------------------------------------- the table
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """What a model has a value for (`model.request_defaults`), and a job or a row may change."""

    negative_prompt: Annotated[str, Column(prose=True, key=12)] = ""
    # what further text encoders read; None: the prompt, or the negative one
    prompt_2: Annotated[str | None, Column(read_by="some", prose=True)] = None
    prompt_3: Annotated[str | None, Column(read_by="some", prose=True)] = None
    negative_prompt_2: Annotated[str | None, Column(read_by="some", prose=True)] = None
    negative_prompt_3: Annotated[str | None, Column(read_by="some", prose=True)] = None
    width: Annotated[int, Column(_SIDE, "pixels", key=1)]
    height: Annotated[int, Column(_SIDE, "pixels", key=2)]
    num_frames: Annotated[int, Column(Range(1, MAX_FRAMES), "frames", key=3)]
    fps: Annotated[float, Column(Range(1, MAX_FPS), "frames a second", key=4)]
    num_steps: Annotated[int, Column(_STEPS, "solver steps", key=5)]
    guidance_scale: Annotated[float, Column(_SCALE, read_by="some", key=6)]
    # of the low-noise expert of a two-expert model; None: guidance_scale
    guidance_scale_2: Annotated[float | None, Column(_SCALE, read_by="some", key=7)] = None
    # guidance by a second branch of models that embed guidance_scale
    true_cfg_scale: Annotated[float, Column(_SCALE, read_by="some", key=13)] = 1.0
    # 1: the guidance scale follows the timestep
    use_dynamic_cfg: Annotated[int, Column(Range(0, 1), read_by="some")] = 0
    # how far a guided velocity gets the deviation of the prompt's own
    guidance_rescale: Annotated[float, Column(_SHARE, read_by="some")] = 0.0
    # of decoders that take noise: how much they are told, and how much there is (None: the same)
    decode_timestep: Annotated[float, Column(_SHARE, read_by="some")] = 0.0
    decode_noise_scale: Annotated[float | None, Column(_SHARE, read_by="some")] = None
    solver: Annotated[Solver, Column(set_by="system.sampler.solver", key=8)] = "unipc"
    sigma_shift: Annotated[
        float, Column(Range(0, above_low=True), set_by="system.sampler.sigma_shift", key=9)
    ] = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(ModelDefaults):
    """One row of the plan, every field resolved: all that the engine needs to draw it."""

    row_index: Annotated[int, Column(set_by="plan", key="no")]  # in the manifest, 0-based
    row_id: Annotated[str, Column(set_by="row alone", key="no")]
    row_key: Annotated[str, Column(set_by="plan", key="no")]  # sha256, hex
    prompt: Annotated[str, Column(set_by="row alone", prose=True, key="apart")]
    # where nobody sets it: from the job's seed and the row's id
    seed: Annotated[int, Column(Range(0, MAX_SEED), key="apart")]
    format: Annotated[str, Column(set_by="output.format", key=10)]  # a module of media/formats
    # 0: smallest file .. 10: best
    quality: Annotated[int, Column(Range(0, 10), set_by="output.quality", key=11)]
    # 1: the file says how it was made (`media.note`)
    embed_metadata: Annotated[int, Column(Range(0, 1), set_by="output.embed_metadata")] = 0
    # those that may draw it again with another seed (`config.judges`), as JSON
    judges: Annotated[str, Column(prose=True, set_by="output.judges", catalog=False)] = ""
    # a bucket that the media are cut to, where that was padded
    media_size: Annotated[str | None, Column(set_by="plan", key=14, catalog=False)] = None
    # drawn before: where its latents are (`media.stored.MediaPlace`), left to be decoded
    latents: Annotated[str | None, Column(set_by="plan", key="no", catalog=False)] = None
    # of the file, as output.name makes it; none: the row_id
    media_name: Annotated[str | None, Column(set_by="plan", key="no", catalog=False)] = None
    # a step cache, as `caches.settings` resolves it; none: all these are their defaults
    cache_strategy: Annotated[str, Column()] = "none"
    cache_ratio: Annotated[float, Column(Range(0.0, 1.0))] = 0.0  # share of evaluations to be saved
    cache_warmup: Annotated[int, Column(_ENDS, "solver steps")] = 0
    cache_cooldown: Annotated[int, Column(_ENDS, "solver steps")] = 0
    cache_params: Annotated[str, Column(prose=True)] = ""  # knobs of the strategy, as JSON
    cache_table: Annotated[str, Column(set_by="plan")] = ""  # digest of the coefficients it uses
    # the strategy that was asked for, where the job lets rows be drawn without it
    cache_refused: Annotated[str, Column(set_by="plan", key="no")] = ""
    # given to be the first frame, and the last
    image: Annotated[Image | None, Column(read_by="some")] = None
    last_image: Annotated[Image | None, Column(read_by="some")] = None
    # the adapters that it is drawn with, added in this order; "": none
    lora: Annotated[Loras, Column(read_by="some", prose=True)] = NO_LORA
    # predicted: what the row costs, and its transformer evaluations over all branches
    cost_s: Annotated[float, Column(unit="device seconds", set_by="plan", key="no")] = 0.0
    steps_expected: Annotated[float, Column(unit="evaluations", set_by="plan", key="no")] = 0.0
    tags: Annotated[str | None, Column(prose=True, key="no")] = None

    @property
    def undecoded(self) -> bool:
        """Whether the row ends as latents."""
        return self.format == LATENTS

    @property
    def images(self) -> tuple[Image, ...]:
        """Those that are given, the first frame first."""
        return tuple(image for image in (self.image, self.last_image) if image is not None)

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.width, self.height, self.num_frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherColumns:
    """Columns of a manifest that a request does not keep, so that they are in no key: width and
    height by another name."""

    resolution: Annotated[str, Column(catalog=False)] = ""
    aspect_ratio: Annotated[str, Column(catalog=False)] = ""


# ------------------------------------------------------------------------------ the table, as data
@dataclass(frozen=True, slots=True)
class Field:
    """A line of the table."""

    name: str
    kind: Kind
    nullable: bool
    default: Any  # MISSING where it must be given
    column: Column


def fields_of(cls: type) -> tuple[Field, ...]:
    """The lines of a class, those of its base first."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_field(spec.name, hints[spec.name], spec.default) for spec in fields(cls))


def _field(name: str, hint: Any, default: Any) -> Field:
    kind, column = get_args(hint)
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    named: dict[Any, Kind] = {int: "integer", float: "number", Image: "image", Loras: "lora"}
    return Field(name, named.get(options[0], "text"), type(None) in options, default, column)


MODEL_FIELDS = fields_of(ModelDefaults)
REQUEST_FIELDS = (*fields_of(Request)[len(MODEL_FIELDS) :], *MODEL_FIELDS)
FIELDS = {field.name: field for field in (*REQUEST_FIELDS, *fields_of(OtherColumns))}
MANIFEST = {n: field for n, field in FIELDS.items() if field.column.set_by.startswith("row")}
ROW_DEFAULTS = {n: field for n, field in MANIFEST.items() if field.column.set_by == "row"}
