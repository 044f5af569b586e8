"""Any other text-to-image or text-to-video pipeline of diffusers, through its own call.

Rows are drawn one at a time, with the arguments that the call's signature has. Nothing inside the
call is ours: no shared forwards, no saved rows, no step caches, no ranks that share a row. What a
forward costs is not known either: the formulas here are a guess, until rows were measured.

    FLOPs of a forward = 2 x weights of the denoisers x tokens, of 16x16 pixels and 4 frames
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError, closest
from batchgen.families.family import BYTES, Capabilities, Component, Scales, Stage, Stride
from batchgen.families.generic.call import (
    UNREAD,
    Call,
    call_of,
    diffusers_version,
    is_library,
)
from batchgen.families.generic.columns import argument_of, arguments_of, default_of
from batchgen.request import MAX_FRAMES, MAX_SIDE, ROW_DEFAULTS, Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = ""  # any
MEDIA: Literal["video", "image", "either"] = "either"
OWN_ENGINE = True
COMPONENTS: tuple[Component, ...] = ()  # those that the checkpoint has: `components`

# What no row gives. Of the first a call may do without, if diffusers lists it for text.
_SEEN = ("image", "images", "video")
_CONTROLS = ("mask_image", "control_image", "strength")
_NEEDED = ("prompt", "width", "height", "num_inference_steps", "generator", "output_type")
_FILLED = ("prompt", "generator", "output_type")  # by the engine
_PIXELS, _FRAMES = 16, 4  # of a token
_TEXT_TOKENS = 300
_CLEANERS = ("bs4", "ftfy")
_DECODE_FLOPS, _DECODE_BYTES = 3e6, 2000  # of a pixel, as decoders of latents have about
_STAGES: tuple[tuple[str, Stage], ...] = (
    ("Transformer", "denoise"), ("UNet", "denoise"), ("DiT", "denoise"), ("Autoencoder", "decode"),
    ("VAE", "decode"), ("VQ", "decode"),
)  # fmt: skip
FRAMES, RATE, SIDE, GRID = 16, 16, 1024, 8  # where neither call nor checkpoint says


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """What a checkpoint says of itself, and how it is to be called."""

    pipeline: str  # diffusers' class
    parts: dict[str, str]  # folder -> library.Class
    part_weights: dict[str, int]  # folder -> number of weights, of those that have any
    side: int = SIDE  # pixels of a square image that the model was made for
    grid: int = GRID  # sides are multiples of it: pixels of a latent cell
    params: dict[str, Any] = field(default_factory=dict)  # further arguments of the call


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """Columns are those that the call has an argument for. ConfigError for a pipeline that is not
    installed, and for `model.params` that its call does not take."""
    name = dims(model).pipeline
    call = call_of(name)
    _check_params(name, call, dims(model).params)
    read = arguments_of(call)
    some = {name for name, one in ROW_DEFAULTS.items() if one.column.read_by == "some"}
    return Capabilities(
        memory_modes=("auto", "resident"),
        store_dtypes=("same",),
        compile_modes=("off",),
        solvers=("own",),
        sigma_shift=False,
        columns=tuple(name for name in read if name in some),
        unread=() if "negative_prompt" in read else ("negative_prompt",),
        packs=False,
        prompt_overflow=("truncate",),
        costs_known=False,
        note=f"generic: {name} of diffusers {diffusers_version()} through its own call, one row at "
        "a time: rows share no forward, an interrupted row begins anew, no step caches, no ranks "
        "that share a row",
    )


def _check_params(name: str, call: Call, params: Mapping[str, Any]) -> None:
    filled = {argument: column for column, argument in arguments_of(call).items()}
    legal = call.settable((*_FILLED, *filled))
    for key, value in params.items():
        if key in filled:
            raise ConfigError(f"model.params.{key}: is the column {filled[key]} of rows")
        if key not in legal:
            raise ConfigError(
                f"model.params.{key}: the call of {name} takes no {key} from a job"
                f"{closest(key, legal)}; legal: {', '.join(legal) or 'none'}"
            )
        _check_kind(f"model.params.{key}", value, call.arguments[key].default, name)


def _check_kind(key: str, value: Any, default: Any, pipeline: str) -> None:
    """What a call has a plain default for is of that kind."""
    alike = ((int, float), (list, tuple))
    kinds = next((kinds for kinds in alike if type(default) is kinds[1]), (type(default),))
    if default is None or default is UNREAD or type(value) in kinds:
        return
    wanted = " or ".join(kind.__name__ for kind in kinds)
    raise ConfigError(
        f"{key}: {value!r} is no {wanted}, as the call of {pipeline} takes it; its default is "
        f"{default!r}"
    )


def serves(index: Mapping[str, Any]) -> bool:
    """Never by itself: other families go first (`refusal`)."""
    return False


def refusal(index: Mapping[str, Any]) -> str:
    """Why rows cannot be drawn with such a checkpoint; empty if they can."""
    name = str(index.get("_class_name"))
    try:
        call = call_of(name)
    except ConfigError as error:
        return str(error)
    parts, listed = settings(index)["parts"], ", ".join
    conditions = _CONTROLS if call.from_text else (*_SEEN, *_CONTROLS)
    given = [n for n in conditions if n in call.arguments]
    if given := given or [n for n in parts if n.startswith("controlnet")]:
        return f"it draws from {listed(given)}, not from text alone"
    if missing := [n for n in _NEEDED if n not in call.arguments]:
        return f"its call has no {listed(missing)}"
    if asked := [n for n, one in call.arguments.items() if one.needed and n != "prompt"]:
        return f"its call also asks for {listed(asked)}"
    if heard := [n for n in parts if "audio" in n or "vocoder" in n]:
        return f"it makes sound ({listed(heard)}), which no media file here holds"
    optional = {n for n, one in call.parts.items() if not one.needed}
    if absent := [n for n in call.parts if n not in {*parts, *optional, *index}]:
        return f"{listed(absent)} is missing in the checkpoint"
    if foreign := [n for n, loads in parts.items() if not is_library(loads.partition(".")[0])]:
        return f"the component {foreign[0]} is {parts[foreign[0]]}, of no library that is loaded"
    return _other_denoiser(parts, call)


def _other_denoiser(parts: Mapping[str, str], call: Call) -> str:
    """Why a class does not draw with its denoisers; of other components it may take several."""
    for part in components_in(parts):
        wanted = call.parts[part.name].annotation if part.name in call.parts else ""
        if part.stage == "denoise" and wanted not in ("", "Any") and part.class_name not in wanted:
            return f"its {part.name} is {part.loads}, but that class takes {wanted}"
    return ""


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """Class and components."""
    parts = {
        name: ".".join(map(str, entry))
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
    }
    return {"pipeline": str(index.get("_class_name")), "parts": parts}


def components(model: ModelSpec) -> tuple[Component, ...]:
    """All folders that the checkpoint's index names."""
    return components_in(dims(model).parts)


def components_in(parts: Mapping[str, str]) -> tuple[Component, ...]:
    return tuple(_component(name, loads) for name, loads in parts.items())


def _component(name: str, loads: str) -> Component:
    library, _, kind = loads.rpartition(".")
    if "Tokenizer" in kind:
        return Component(name=name, kind="tokenizer", loads=loads, stage="encode")
    if any(word in kind for word in ("Scheduler", "Processor", "FeatureExtractor")):
        return Component(name=name, kind="files", loads=loads, stage="encode")
    stages = (stage for word, stage in _STAGES if word in kind and library == "diffusers")
    # classes of a pipeline's own folder, such as safety checkers, are stored as transformers' are
    library = "diffusers" if library == "diffusers" else "transformers"
    return Component(name=name, loads=f"{library}.{kind}", stage=next(stages, "encode"))


def in_key(model: ModelSpec) -> str:
    """What of pixels the request and the checkpoint do not say: class, version and arguments."""
    own = dims(model)
    said = f"{own.pipeline} of diffusers {diffusers_version()}"
    # some calls clean texts where these are installed, and leave them as they are elsewhere
    there = [name for name in _CLEANERS if find_spec(name) is not None]
    if "clean_caption" in call_of(own.pipeline).arguments:
        said += f" and {' '.join(there)}"
    return f"{said} with {json.dumps(own.params, sort_keys=True)}"


def media(dims: Dims) -> Literal["video", "image"]:
    """A clip where the call asks how long it is to be."""
    return "video" if argument_of(call_of(dims.pipeline), "num_frames") else "image"


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """The call's own, where it says."""
    call, moves = call_of(dims.pipeline), media(dims) == "video"
    plain = ModelDefaults(
        width=dims.side,
        height=dims.side,
        num_frames=FRAMES if moves else 1,
        fps=RATE if moves else 1,
        num_steps=50,
        guidance_scale=1.0,
        solver="own",
        sigma_shift=1.0,
    )
    said = {column: default_of(call, column) for column in arguments_of(call)}
    return replace(plain, **{column: value for column, value in said.items() if value is not None})


def branches(model: ModelSpec, row: Scales) -> Any:
    """One: steps are counted, whatever the call does in one."""
    return 1 + 0 * row.guidance_scale


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Not known; the call cuts texts as it does."""
    return 0


def layers(model: ModelSpec) -> int:
    return 1


def heads(model: ModelSpec) -> int:
    return 1


def width(model: ModelSpec) -> int:
    return 1


def stride(model: ModelSpec) -> Stride:
    """Latent cells; how many frames a call draws is seen when it has drawn them."""
    frames = MAX_FRAMES if media(dims(model)) == "video" else 1
    return Stride(dims(model).grid, 1, MAX_SIDE, frames)


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """A guess (module docstring)."""
    frames = 1 + (bucket.num_frames - 1) // _FRAMES
    return max(1, frames * bucket.width * bucket.height // _PIXELS**2)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """A guess (module docstring)."""
    return 2.0 * _weights(model, "denoise") * tokens(model, bucket)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    return {}


def encode_flops(model: ModelSpec) -> float:
    """A guess: of one text."""
    return 2.0 * _weights(model, "encode") * _TEXT_TOKENS


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """A guess."""
    return _DECODE_FLOPS * _pixels(bucket)


def parameters(model: ModelSpec, component: str) -> int:
    """As the files have them."""
    return dims(model).part_weights.get(component, 0)


def _weights(model: ModelSpec, stage: Stage) -> int:
    own = (part for part in components(model) if part.kind == "model" and part.stage == stage)
    return sum(parameters(model, part.name) for part in own)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    return ()


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """A guess: 20 maps of 2000 channels."""
    return 40_000 * tokens(model, bucket) * BYTES[model.dtype]


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """A guess."""
    return _DECODE_BYTES * _pixels(bucket)


def _pixels(bucket: Bucket) -> int:
    return bucket.width * bucket.height * bucket.num_frames
