"""Where the content of a tensor is, while the tensor itself holds nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_IN_FILE = "_in_file"  # attribute of a tensor that stays there


def left_in_file(source: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A parameter that stands for `source`, in the precision that it is to be computed in. Whoever
    computes with it before it is brought gets what is no number."""
    nothing = torch.zeros((), dtype=dtype).fill_(torch.nan).expand(source.shape)
    parameter = nn.Parameter(nothing, requires_grad=False)
    setattr(parameter, _IN_FILE, source)
    return parameter


def source_of(tensor: Tensor) -> Tensor:
    """What a tensor of a component holds, wherever that is: in a file in the file's precision."""
    source: Tensor = getattr(tensor, _IN_FILE, tensor.data)
    return source
