"""A few rows of a large matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def among(ids: Tensor, size: int) -> Tensor:
    """bool [size], True at ``ids`` (int64)."""
    return torch.zeros(size, dtype=torch.bool, device=ids.device).scatter_(0, ids, True)


class _OnlyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor) -> Tensor:
        ctx.shape = x.shape
        ctx.save_for_backward(ids)
        return x.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return grad.new_empty(ctx.shape).index_fill_(0, ids, 0).index_add_(0, ids, grad), None


def only_rows(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of an ``x`` [N, D] whose gradient is read there alone.

    The other rows of the gradient are not written, which would cost a pass over memory: ``x`` must
    come from a sum over edges whose mask leaves out all edges of the other rows.
    """
    return _OnlyRows.apply(x, ids)


def rows_or_zero(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of ``x`` [A, D], zeros for ids from A on. A is above 0."""
    rows = x.shape[0]
    chosen = x.index_select(0, ids.clamp(max=rows - 1))
    return chosen * (ids < rows).to(x.dtype).unsqueeze(1)
