"""Reading a few rows of a large matrix, with one gradient of its size for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _FirstAndChosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.shape = x.shape
        ctx.save_for_backward(ids)
        return x[:count].clone(), x.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor, chosen: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        grad = first.new_zeros(ctx.shape)
        grad[: first.shape[0]] = first
        return grad.index_add_(0, ids, chosen), None, None


def first_and_chosen(x: Tensor, count: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The first ``count`` rows of ``x`` [N, D], and the rows ``ids`` (int64 [n]).

    Slicing and selecting apart would each make a gradient of N rows, and add them up.
    """
    return _FirstAndChosen.apply(x, count, ids)


def rows_or_zero(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of ``x`` [A, D], zeros for ids from A on. A is above 0."""
    rows = x.shape[0]
    chosen = x.index_select(0, ids.clamp(max=rows - 1))
    return chosen * (ids < rows).to(x.dtype).unsqueeze(1)
