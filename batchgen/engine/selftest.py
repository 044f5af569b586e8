"""Does a device keep the promise that packing does not change pixels?"""

from __future__ import annotations

import torch

from batchgen.families.family import FamilyModel
from batchgen.request import Bucket


def pack_equals_solo(family: FamilyModel, bucket: Bucket, items: int, expert: str) -> bool:
    """Do `items` random items give the same bits in one forward as each alone?"""
    pack = [family.random_item(bucket, seed, expert) for seed in range(items)]
    together = family.forward(pack)
    return all(
        torch.equal(y, family.forward([item])[0]) for y, item in zip(together, pack, strict=True)
    )
