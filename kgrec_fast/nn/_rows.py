"""A few rows of a large matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def among(ids: Tensor, size: int) -> Tensor:
    """bool [size], True at ``ids`` (int64)."""
    return torch.zeros(size, dtype=torch.bool, device=ids.device).scatter_(0, ids, True)


def rows_or_zero(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of ``x`` [A, D], zeros for ids from A on. A is above 0."""
    rows = x.shape[0]
    chosen = x.index_select(0, ids.clamp(max=rows - 1))
    return chosen * (ids < rows).to(x.dtype).unsqueeze(1)
