"""Who a row is: its key over everything that decides its pixels, and its seed.

Nothing about shards, nodes, order or attempts enters here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.config.kernels import in_key
from batchgen.config.schema import JobConfig
from batchgen.errors import RunStateError
from batchgen.families.family import DrawsByItself, family_spec
from batchgen.planning.digests import CheckpointDigest, checkpoint_digest
from batchgen.request import ALWAYS_IN_KEY, REQUEST_FIELDS, Field, Request

if TYPE_CHECKING:
    from hashlib import _Hash

Settings = tuple[object, ...]  # what enters a key beside seed and prompt, as `settings_of` makes it


def _placed() -> list[Field]:
    """Fields with a place in the key, in order."""
    placed = {f.column.key: f for f in REQUEST_FIELDS if isinstance(f.column.key, int)}
    return [placed[place] for place in range(1, len(placed) + 1)]


_ALWAYS = _placed()[:ALWAYS_IN_KEY]
_LATER = [*_placed()[ALWAYS_IN_KEY:], *(f for f in REQUEST_FIELDS if f.column.key == "named")]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyContext:
    """Everything in a row's key beside the row's own request."""

    family: str
    numerics_version: int
    weights: str  # digest
    tokenizer: str  # digest
    dtype: str
    max_tokens: int
    boundary: float | None
    store_dtype: str
    tiled_vae: str
    attention: str  # `exact` for kernels that compute the same function
    pipeline: str = ""  # of diffusers, that draws rows itself: class, version, arguments

    def to_json(self) -> dict[str, Any]:
        """Plain values for run.json and the plan's metadata. Without a pipeline there is no key, as
        in keys that were made before there were any."""
        plain = asdict(self)
        return plain if self.pipeline else {k: v for k, v in plain.items() if k != "pipeline"}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> KeyContext:
        """The inverse of `to_json`; RunStateError if it is of another version, or damaged."""
        try:
            return cls(**stored)
        except TypeError as error:
            raise RunStateError(f"key_context of this run cannot be read: {error}") from error

    @property
    def hash_mode(self) -> str:
        """How the checkpoint was read, for whoever makes the context again: sampled or full."""
        return "full" if self.weights.startswith("full:") else "sampled"

    def differences(self, other: KeyContext) -> list[str]:
        """Names of the settings in which two contexts differ."""
        return [
            _SETTINGS[field.name]
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]


# Field of the context -> the setting a user knows it by.
_SETTINGS = {
    "family": "model.family",
    "numerics_version": "the numerics version of model.family",
    "weights": "model.weights",
    "tokenizer": "the tokenizer of model.weights",
    "dtype": "model.dtype",
    "max_tokens": "max_tokens of the model's text encoder",
    "boundary": "system.sampler.boundary",
    "store_dtype": "system.memory.store_dtype",
    "tiled_vae": "system.vae.tiled",
    "attention": "system.attention and system.attention_schedule",
    "pipeline": "model.params, or the installed diffusers (or bs4)",
}


def key_context(config: JobConfig, hash_weights: str = "sampled") -> KeyContext:
    """The context of a job. Reads the checkpoint (`hash_weights`: sampled or full).

    Raises WeightsError when files are missing or their dimensions are not the model's.
    """
    return context_of(config, checkpoint_digest(config.model, hash_weights))


def context_of(config: JobConfig, checkpoint: CheckpointDigest) -> KeyContext:
    """The context of a job whose checkpoint has been read."""
    model, system = config.model, config.system
    family = family_spec(model.family)
    tiled = system.vae.tiled is True
    return KeyContext(
        family=model.family,
        numerics_version=family.NUMERICS_VERSION,
        weights=checkpoint.weights,
        tokenizer=checkpoint.tokenizer,
        dtype=_precisions(config),
        max_tokens=family.max_tokens(model),
        boundary=family.boundary(model)
        if system.sampler.boundary is None
        else system.sampler.boundary,
        store_dtype=system.memory.store_dtype,
        tiled_vae=f"{system.vae.tile} {system.vae.stride}" if tiled else "off",
        attention=in_key(system),
        pipeline=family.in_key(model) if isinstance(family, DrawsByItself) else "",
    )


def _precisions(config: JobConfig) -> str:
    """That of the model, and those of components which have another."""
    own = sorted((n, c.dtype) for n, c in config.system.components.items() if c.dtype is not None)
    return ", ".join([config.model.dtype, *(f"{name} {dtype}" for name, dtype in own)])


def row_key(context: KeyContext, request: Request) -> str:
    """sha256 (hex) over the context and the request as resolved; row_id and index stay out."""
    return row_keys(context, [request])[0]


def row_keys(context: KeyContext, requests: Sequence[Request]) -> list[str]:
    """`row_key` of many rows."""
    settings = settings_of(lambda field: [_value(request, field) for request in requests])
    seeds = [request.seed for request in requests]
    prompts = [request.prompt.encode() for request in requests]
    return [key.hex() for key in KeyHasher(context).keys(settings, seeds, prompts)]


def check_keys(context: KeyContext, requests: Sequence[Request], source: Path) -> None:
    """Make the key of every request anew; RunStateError naming the first whose own is another:
    then its values, or those of the context, are not the ones that were planned."""
    for request in requests:
        try:
            key = row_key(context, request)
        except (TypeError, ValueError, AttributeError) as error:
            raise RunStateError(f"{source}: row {request.row_id!r} is damaged: {error}") from error
        if key != request.row_key:
            raise RunStateError(
                f"{source}: row {request.row_id!r} is damaged: its key is {request.row_key}, "
                f"its values make {key}"
            )


def settings_of(values: Callable[[Field], Sequence[object]]) -> Iterator[Settings]:
    """What enters the key of each row beside seed and prompt; `values`: a field of all rows.

    The fields that are always there, then the later ones where they are not at their default.
    """
    always = zip(*map(values, _ALWAYS), strict=True)
    later = [
        _changed(field, column) for field in _LATER if _is_used(field, column := values(field))
    ]
    return ((*row, *chain(*more)) for row, *more in zip(always, *later, strict=True))


def _is_used(field: Field, column: Sequence[object]) -> bool:
    return any(value != field.default for value in column)


def _changed(field: Field, column: Sequence[object]) -> Iterator[Settings]:
    """Of each row what the field adds to its key."""
    for value in column:
        if value == field.default:
            yield ()
        else:
            yield ((field.name, value),) if field.column.key == "named" else (value,)


def _value(request: Request, field: Field) -> object:
    """A field as it enters a key, whatever kind of number it came as."""
    value = getattr(request, field.name)
    if field.name == "fps":
        return rate_in_key(value)
    return float(value) if field.kind == "number" and value is not None else value


def rate_in_key(fps: float) -> float:
    """A frame rate as it enters a key: whole ones without a decimal point."""
    return int(fps) if fps == int(fps) else fps


class KeyHasher:
    """Keys of many rows: rows of equal settings share the hash up to seed and prompt."""

    def __init__(self, context: KeyContext) -> None:
        text = json.dumps(context.to_json(), sort_keys=True)
        self._context = hashlib.sha256(text.encode() + b"\0")
        self._prefixes: dict[Settings, _Hash] = {}

    def keys(
        self,
        settings: Iterable[Settings],
        seeds: Iterable[int],
        prompts: Iterable[bytes | memoryview],
    ) -> list[bytes]:
        """One digest (32 bytes) per row; the prompts are UTF-8."""
        prefixes = self._prefixes
        if len(prefixes) > 100_000:  # rows that all differ: do not keep every one
            prefixes.clear()
        digests = []
        for setting, seed, prompt in zip(settings, seeds, prompts, strict=True):
            prefix = prefixes.get(setting)
            if prefix is None:
                prefix = prefixes[setting] = self._prefix(setting)
            row = prefix.copy()
            row.update(b"%d\0" % seed)
            row.update(prompt)
            digests.append(row.digest())
        return digests

    def _prefix(self, settings: Settings) -> _Hash:
        prefix = self._context.copy()
        prefix.update(json.dumps(settings).encode() + b"\0")
        return prefix


def derived_seeds(job_seed: int, row_ids: Sequence[str]) -> list[int]:
    """Seeds in 0 .. 2^63-1 of rows that have none: a hash of the job's seed and the row's id."""
    job = hashlib.sha256(b"%d\0" % job_seed)
    seeds = []
    for row_id in row_ids:
        row = job.copy()
        row.update(row_id.encode())
        seeds.append(int.from_bytes(row.digest()[:8], "big") >> 1)
    return seeds
