"""Attention of a rank's own queries to keys that every rank has whole, such as a text's.

No rank needs another for it. But a CPU attends by blocks of queries, and a last block of one to
three takes other kernels: where the whole ends in such a block, its queries are attended to by
themselves here, too, and nowhere else does one come up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from batchgen.engine.parallel.shares import SAME_KERNEL_ROWS, Share

SAME_KERNEL_QUERIES = 4  # as measured; products of linear layers want more rows
BLOCKS = ((768, 256), (192, 64), (0, 32))  # from so many queries on: so many in a block of torch's


def cross_attend(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    share: Share,
    total: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """(B, held, H, D) of a share of `total` queries -> what the whole gives for them."""
    if q.device.type != "cpu":
        return attend(q, k, v)
    ending = short_end(total)
    common = max(0, min(share.own, total - ending - share.start))
    parts = (
        _attend(attend, q[:, :common], k, v, rows=_rows(common, total)),
        _attend(attend, q[:, common : share.own], k, v, rows=ending, behind=BLOCKS[-1][1]),
    )
    if share.own == 0:
        return torch.zeros_like(q)
    out = torch.cat(parts, dim=1)
    return torch.cat([out, _copies(out, share.held - share.own)], dim=1)


def short_end(total: int) -> int:
    """Queries of the whole's last block, if that is a short one and not the only one."""
    block = next(size for least, size in BLOCKS if total >= least)
    last = total % block
    return last if total > block and last < SAME_KERNEL_QUERIES else 0


def _rows(count: int, total: int) -> int:
    """Enough that no block is a short one: its size is 32 or a multiple."""
    last = count % BLOCKS[-1][1]
    if count > last and 0 < last < SAME_KERNEL_QUERIES:
        return count - last + SAME_KERNEL_QUERIES
    return max(count, min(SAME_KERNEL_ROWS, total))


def _attend(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: int,
    behind: int = 0,
) -> Tensor:
    """Attention of the queries, as part of so many `rows`, behind so many others."""
    count = q.shape[1]
    if count == 0:
        return q
    padded = torch.cat([_copies(q, behind), q, _copies(q, rows - count)], dim=1)
    return attend(padded, k, v)[:, behind : behind + count]


def _copies(x: Tensor, count: int) -> Tensor:
    """The first row (B, 1, ...) so many times."""
    return x[:, :1].expand(-1, count, *x.shape[2:])
