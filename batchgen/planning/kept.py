"""What rows in flight keep on a rank's device between two steps."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from batchgen.caches.strategy import NONE, Keeps, strategy
from batchgen.config.degrees import Degrees
from batchgen.config.schema import JobConfig, ModelSpec
from batchgen.families.family import family_spec
from batchgen.request import Bucket

# Of a token, in float32: up to 128 numbers (2x2 latent cells of 16 channels are 64).
LATENT_BYTES = 4 * 128
_STATES = 4  # a row's latents, and what its solver keeps of earlier steps


def kept_bytes(model: ModelSpec, bucket: Bucket, keeps: Keeps, sequence: int = 1) -> int:
    """Of one branch of a row under a step cache. Ranks that share its tokens share what flows
    between blocks; latents are on each of them."""
    family = family_spec(model.family)
    tokens, width = family.tokens(model, bucket), family.width(model)
    element = 4 if model.dtype == "float32" else 2
    streams = keeps.streams + len(keeps.attention) * family.layers(model)
    flows = tokens * width * (streams * element + keeps.wide * 4)
    whole = tokens * keeps.latents * LATENT_BYTES + keeps.vectors * width * element
    return whole + -(-flows // sequence)


def in_flight(job: JobConfig, branches: float, degrees: Degrees, items: int) -> int:
    """Branches of rows that a rank keeps at a time: about those of one forward, or of as many rows
    as the job says; one row is always there. Ranks along `cfg` share the branches of a row."""
    rows = job.system.batch.max_rows_in_flight
    own = ceil(branches * (1 if rows == "auto" else rows) / degrees.cfg)
    return max(items, own) if rows == "auto" else own


def reserve_bytes(
    model: ModelSpec, bucket: Bucket, strategies: Iterable[str], sequence: int = 1
) -> int:
    """Of one branch of a row: its state, and what that one of the strategies keeps that keeps
    most."""
    state = family_spec(model.family).tokens(model, bucket) * _STATES * LATENT_BYTES
    keeps = [strategy(name).FACTS.keeps for name in strategies if name != NONE]
    return state + max((kept_bytes(model, bucket, each, sequence) for each in keeps), default=0)
