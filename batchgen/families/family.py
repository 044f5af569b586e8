"""What a model family is, and how it is found by the name of its folder.

`families/<name>/spec.py` (`FamilySpec`) answers the questions of planning and loading, without
torch. `families/<name>/model.py` computes: its `build` makes a `FamilyModel` from loaded
components. The engine does the rest: packing, ticks, windows, solver steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

from batchgen.caches.blocks import Attention, Blocks
from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import STORE_DTYPES, ModelSpec, SystemConfig
from batchgen.errors import ConfigError, closest
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import SequencePlan
from batchgen.families.tiling import TiledDecoder
from batchgen.request import Bucket, ModelDefaults, Request

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from batchgen.numerics.solver import Schedule

FAMILIES = Path(__file__).parent
Stage = Literal["encode", "denoise", "decode"]
STAGES: tuple[Stage, ...] = ("encode", "denoise", "decode")
# Strategies that need nothing of a family but its velocities.
OUTPUT_CACHES = ("none", "planned", "uniform", "taylorseer", "meancache", "easycache")
BLOCK_CACHES = ("teacache", "magcache", "seacache", "first_block", "blockdance", "pab")
# of `system.compile`: blocks whose forward torch can trace as one graph
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune-no-cudagraphs")
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


# ------------------------------------------------------------------------------------ without torch
@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the engine can do with a model now; every other legal setting is refused."""

    cfg: tuple[int, ...] = (1,)
    ulysses: tuple[int, ...] = (1,)
    ring: tuple[int, ...] = (1,)
    memory_modes: tuple[str, ...] = ("auto", "resident", "model", "stream", "disk")
    store_dtypes: tuple[str, ...] = STORE_DTYPES
    attention: tuple[str, ...] = ("auto", "sdpa")
    compile_modes: tuple[str, ...] = COMPILE_MODES
    tiles: TiledDecoder | None = None  # how its decoder goes tile by tile; None: it does not
    cache_strategies: tuple[str, ...] = ("none",)
    solvers: tuple[str, ...] = ("unipc", "euler", "dpm++")
    sigma_shift: bool = True  # False: the checkpoint's scheduler shifts by the row's size
    boundary: bool = False  # the job may set where the second expert takes over
    columns: tuple[str, ...] = ("guidance_scale",)  # those that only some models read
    needs: tuple[str, ...] = ()  # of these, those that no row may leave out
    unread: tuple[str, ...] = ()  # those that all others read
    packs: bool = True  # rows share forwards
    pairs: bool = False  # its pipeline draws both branches of a row as one forward
    prompt_overflow: tuple[str, ...] = ("truncate", "error")
    costs_known: bool = True  # False: until rows were measured they are a guess
    note: str = ""  # what `plan` says of it


@dataclass(frozen=True, slots=True)
class Stride:
    """Legal sizes: width and height are multiples of `pixels`, frames are 1 + k x `frames`."""

    pixels: int
    frames: int
    max_side: int  # pixels
    max_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One folder of a checkpoint in diffusers layout."""

    name: str  # name of the folder
    # a scheduler is settings alone; `files`: all that are in its folder
    kind: Literal["model", "tokenizer", "processor", "scheduler", "files"] = "model"
    loads: str  # class that loads it: `library.Class`
    model_type: str = ""  # `model_type` in config.json of a transformers model
    stage: Stage  # when it has to be on the device
    also: tuple[Stage, ...] = ()  # further stages that need it
    dims: str = ""  # field of the family's `Dims` that describes it; experts share one
    float32: bool = False  # runs in float32 whatever the model's dtype
    original: bool = False  # diffusers reads it from a file of its makers, too
    stacks: tuple[str, ...] = ()  # attributes that are lists of blocks, in the order of the forward
    flows: tuple[str, ...] = ("hidden_states",)  # arguments that a block returns, in order
    drawn: int = -1  # which of them becomes the velocity
    layers: tuple[str, ...] = ()  # of an encoder: lists of blocks that run one behind the other
    joined: tuple[str, ...] = ()  # stacks whose blocks see all of these as one, that of the last
    predicts: str = "flow_prediction"  # a scheduler's `prediction_type`
    recalled: tuple[Recalled, ...] = ()  # modules that see a timestep or a text alone

    @property
    def blocks(self) -> tuple[str, ...]:
        """Attributes that are lists of blocks, which can stream."""
        return (*self.stacks, *self.layers)

    def works_in(self, stage: Stage) -> bool:
        return stage in (self.stage, *self.also)

    @property
    def library(self) -> str:
        return self.loads.partition(".")[0]

    @property
    def class_name(self) -> str:
        return self.loads.rpartition(".")[2]


class Scales(Protocol):
    """The guidance scales of one row, or of many rows as arrays."""

    @property
    def guidance_scale(self) -> Any: ...
    @property
    def true_cfg_scale(self) -> Any: ...


class FamilySpec(Protocol):
    """What `spec.py` of a family has. FLOPs count a multiply-add as two."""

    NUMERICS_VERSION: int  # raised by hand whenever pixels of equal requests change
    COMPONENTS: tuple[Component, ...]
    Dims: type  # dataclass: one field per component, and further dimensions
    PIPELINE: str  # diffusers' class, as in model_index.json; "" for none
    MEDIA: Literal["video", "image", "either"]
    OWN_ENGINE: bool  # `model.py` holds an engine (`FamilyEngine`), not a model for the common one

    def capabilities(self, model: ModelSpec) -> Capabilities: ...

    def serves(self, index: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with this model_index.json is of the family."""

    def settings(self, index: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields of `Dims` that a checkpoint's model_index.json holds."""

    def defaults(self, dims: Any, scheduler: Mapping[str, Any]) -> ModelDefaults:
        """Request values without a preset; `scheduler` is the checkpoint's scheduler config."""

    def stride(self, model: ModelSpec) -> Stride:
        """Widths, heights and frame counts that the model can draw."""

    def tokens(self, model: ModelSpec, bucket: Bucket) -> int:
        """Tokens of one item in a forward: the unit of the packing budget."""

    def layers(self, model: ModelSpec) -> int:
        """Number of blocks in one forward; each costs a launch of kernels."""

    def heads(self, model: ModelSpec) -> int:
        """Of its attentions over all tokens: Ulysses divides them over ranks."""

    def branches(self, model: ModelSpec, row: Scales) -> Any:
        """Forwards in one step: 2 if the row is guided. Elementwise if `row` holds arrays."""

    def boundary(self, model: ModelSpec) -> float | None:
        """Share of the training timesteps at and above which the first of two experts draws."""

    def max_tokens(self, model: ModelSpec) -> int:
        """Most tokens of one text; longer texts are cut."""

    def forward_flops(self, model: ModelSpec, bucket: Bucket) -> float:
        """FLOPs of the transformer for one item: one row, one branch, one step."""

    def attention_flops(self, model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
        """FLOPs of the attentions of each kind in one such forward, with their projections."""

    def encode_flops(self, model: ModelSpec) -> float:
        """FLOPs of the text encoders for one text."""

    def decode_flops(self, model: ModelSpec, bucket: Bucket) -> float:
        """FLOPs of the decoder for one row."""

    def parameters(self, model: ModelSpec, component: str) -> int:
        """Number of weights of a component of kind `model`."""

    def block_parameters(self, model: ModelSpec) -> tuple[int, ...]:
        """Number of weights of each block of a transformer."""

    def fp8_parameters(self, model: ModelSpec) -> tuple[int, ...]:
        """Of these the number that may be kept in 8 bits (`memory.fp8`); asked where the model's
        `store_dtypes` have fp8."""

    def width(self, model: ModelSpec) -> int:
        """Channels of a token between two blocks."""

    def forward_bytes(self, model: ModelSpec, bucket: Bucket) -> int:
        """Peak bytes beside the weights while the transformer runs on one item."""

    def decode_bytes(self, model: ModelSpec, bucket: Bucket) -> int:
        """Peak bytes beside the weights while one row is decoded."""


@runtime_checkable
class DrawsByItself(Protocol):
    """A `spec.py` of rows that a pipeline draws, whose version counts."""

    def in_key(self, model: ModelSpec) -> str:
        """What decides pixels beside the request and the checkpoint."""


def share_computed(model: ModelSpec, bucket: Bucket, blocks: Blocks) -> float:
    """What a forward that leaves out blocks or attentions computes of a whole one: by its blocks,
    beside which the rest is little, and their FLOPs."""
    spec = family_spec(model.family)
    layers = spec.layers(model)
    ran = blocks.ran(layers) / layers
    if not blocks.reuses:
        return ran
    attention = spec.attention_flops(model, bucket)
    left_out = sum(attention.get(kind, 0.0) for kind in blocks.reuses)
    return ran * (1 - left_out / spec.forward_flops(model, bucket))


def latent_frames(model: ModelSpec, bucket: Bucket) -> int:
    """Frames of the tokens: one, and one more for each stride."""
    return 1 + (bucket.num_frames - 1) // family_spec(model.family).stride(model).frames


def family_names() -> list[str]:
    """Names of all families: the folders beside this file."""
    return sorted(path.parent.name for path in FAMILIES.glob("*/spec.py"))


@cache
def family_spec(name: str) -> FamilySpec:
    """`spec.py` of a family; ConfigError naming the existing ones if it is unknown."""
    known = family_names()
    if name not in known:
        listed = ", ".join(known)
        raise ConfigError(f"model.family: {name!r} is not one of {listed}{closest(name, known)}")
    return cast(FamilySpec, importlib.import_module(f"batchgen.families.{name}.spec"))


# --------------------------------------------------------------------------------------- with torch
@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A cleaned and tokenised text."""

    inputs: tuple[Tensor, ...]  # what the family's text encoders take
    count: int  # tokens before truncation, with the end-of-text token
    truncated: bool


# What one branch is told: a text for all encoders, or one for each; the last is of the encoder
# whose tokens are counted.
Text: TypeAlias = "str | tuple[str, ...]"


def told(text: str, *others: str | None) -> Text:
    """The text of a branch whose further encoders read `others`; None: the same as the first."""
    each = (text, *(text if other is None else other for other in others))
    return text if len(set(each)) == 1 else each


def told_to_each(text: Text, encoders: int) -> tuple[str, ...]:
    """What each of the encoders reads."""
    return (text,) * encoders if isinstance(text, str) else text


Condition: TypeAlias = "tuple[Tensor, ...]"  # what the transformer gets for a branch's texts


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One branch (with or without the prompt) of one row in one forward."""

    request: Request
    latents: Tensor  # first dimension 1
    timestep: float
    condition: Condition
    shared: Condition = ()  # what the row's images come to, the same for all its branches


class FamilyModel(Protocol):
    """One loaded model. All items of one forward have the same `group` and `expert`."""

    modules: Mapping[str, nn.Module]  # loaded components that can be moved, by name
    max_tokens: int  # most tokens of one text
    state_dtype: torch.dtype  # of latents between two steps
    sequence: SequencePlan  # of its transformers
    signals_alike: bool  # all branches of a row have the same `signal`s, which see no text

    def texts(self, request: Request) -> tuple[Text, ...]:
        """The texts to encode, one for each guidance branch, the prompt first."""

    def tokenize(self, text: Any) -> Tokens:
        """Clean and tokenise one that `texts` gives, as the family's diffusers pipeline does."""

    def encode(self, tokens: Tokens) -> Condition:
        """Run the text encoder(s) over one text."""

    def initial_latents(self, request: Request) -> Tensor:
        """Noise (1, ...) from the row's seed alone, on the host."""

    def schedule(self, request: Request) -> Schedule:
        """Timesteps and solver coefficients of the row."""

    def group(self, request: Request) -> Hashable:
        """A key: only items with equal keys can share a forward."""

    def expert(self, request: Request, timestep: float) -> str:
        """Name of the transformer component that draws the step."""

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """Velocities of the items, each in the shape of its latents."""

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """What an adaptive cache looks at, of one item (1, ...), without its blocks. On a replica
        of several ranks it is whole, and takes no other rank."""

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        """One velocity from those of the row's branches, in the pipeline's order of operations."""

    def decode(self, latents: Tensor, bucket: Bucket) -> Tensor:
        """Denoised latents of one row -> uint8 (frames, height, width, 3) on the device. Its
        bits are the pipeline's where the pipeline decodes this row alone."""

    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """An item of noise with a random condition, for the device's self-test."""


@runtime_checkable
class DecodesPacks(Protocol):
    """A family that can decode several rows at once; rows of others are decoded one by one."""

    def decode_pack(self, latents: Sequence[Tensor], bucket: Bucket) -> list[Tensor]:
        """`decode` of several rows at once, or of one, by what is fastest; before pixels are
        rounded, float32 values in -1..1 differ from it by 2e-5 at most."""


@runtime_checkable
class DrawsFromImages(Protocol):
    """A `FamilyModel` whose rows are given images."""

    def encode_images(self, request: Request, images: Sequence[Image.Image]) -> Condition:
        """Encode a row's images (`Request.images`, RGB), once for rows of equal ones and shape."""

    def put_back(self, latents: Tensor, shared: Condition) -> Tensor:
        """The latents after the last step, with what the images say about them."""


@runtime_checkable
class DecodesRows(Protocol):
    """A family whose decoder takes more of a row than its size."""

    def decode_row(self, latents: Tensor, request: Request) -> Tensor:
        """In place of `decode`."""


class FamilyCode(Protocol):
    """What `model.py` of a family has."""

    def build(
        self,
        spec: ModelSpec,
        system: SystemConfig,
        components: Mapping[str, Any],
        device: torch.device,
    ) -> FamilyModel:
        """Make the family's model from its loaded components. A rank that follows has those that
        denoise, and may have those that decode: it does not encode."""


def family_code(name: str) -> FamilyCode:
    """`model.py` of a family; ConfigError naming the existing ones if it is unknown."""
    family_spec(name)
    return cast(FamilyCode, importlib.import_module(f"batchgen.families.{name}.model"))


def probe_request(bucket: Bucket) -> Request:
    """A request that belongs to no row, for items of noise."""
    return Request(
        row_index=-1,
        row_id="self-test",
        row_key="",
        prompt="",
        negative_prompt="",
        seed=0,
        width=bucket.width,
        height=bucket.height,
        num_frames=bucket.num_frames,
        fps=1,
        num_steps=1,
        guidance_scale=1.0,
        guidance_scale_2=None,
        solver="euler",
        sigma_shift=1.0,
        format="npy",
        quality=8,
    )
