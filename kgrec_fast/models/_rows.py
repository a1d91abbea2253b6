"""Reading a few rows of a large matrix, with one gradient of its size for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Readers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, views: int, first: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.views = x.shape, views
        ctx.save_for_backward(ids)
        whole = [x.view_as(x) for _ in range(views)]
        return x.index_select(0, ids), x[:first].clone(), *whole

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, chosen: Tensor | None, first: Tensor | None, *whole: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        (ids,) = ctx.saved_tensors
        dense = [g for g in whole if g is not None]
        some = next((g for g in (chosen, first, *dense) if g is not None), None)
        if some is None:
            return None, None, None, None
        if len(dense) > 1:
            grad = torch.add(dense[0], dense[1])
        else:
            grad = dense[0].clone() if dense else some.new_zeros(ctx.shape)
        if first is not None:
            grad[: first.shape[0]] += first
        if chosen is not None:
            grad.index_add_(0, ids, chosen)
        return grad, None, None, None


def readers(x: Tensor, ids: Tensor, views: int = 1, first: int = 0) -> tuple[Tensor, ...]:
    """Rows of ``x`` [N, D] for several readers.

    Read apart, each would make a gradient of N rows of its own, all of them to be added up.

    Args:
        x: [N, D].
        ids: int64 [n], rows wanted.
        views: how many readers take all of ``x``.
        first: how many of its first rows are wanted.

    Returns:
        The rows ``ids`` [n, D], the first rows [first, D], and ``views`` times ``x``.
    """
    return _Readers.apply(x, ids, views, first)


def rows_or_zero(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of ``x`` [A, D], zeros for ids from A on. A is above 0."""
    rows = x.shape[0]
    chosen = x.index_select(0, ids.clamp(max=rows - 1))
    return chosen * (ids < rows).to(x.dtype).unsqueeze(1)
