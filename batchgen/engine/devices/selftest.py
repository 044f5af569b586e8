"""Does a device keep the promise that neither packing nor dividing a forward changes pixels?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from batchgen.engine.isolation import Failed, attempt
from batchgen.families.family import FamilyModel, Item
from batchgen.request import NO_LORA, Bucket, Loras


def pack_equals_solo(
    family: FamilyModel, bucket: Bucket, items: int, expert: str, lora: Loras = NO_LORA
) -> bool:
    """Do `items` random items give the same bits in one forward as each alone, drawn with these
    adapters?"""
    drawn = [family.random_item(bucket, seed, expert) for seed in range(items)]
    pack = [replace(item, request=replace(item.request, lora=lora)) for item in drawn]
    together = family.forward(pack)
    return all(
        torch.equal(y, family.forward([item])[0]) for y, item in zip(together, pack, strict=True)
    )


def split_equals_whole(family: FamilyModel, item: Item, velocity: Tensor) -> bool:
    """Does an item give the bits of `velocity`, which a forward over many ranks gave, in a forward
    of its own on this rank alone? No, where that does not fit."""
    whole = attempt(lambda: family.forward([item])[0])
    return not isinstance(whole, Failed) and torch.equal(whole, velocity)
