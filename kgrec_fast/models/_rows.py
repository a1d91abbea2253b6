"""Reading a few rows of a large matrix, with one gradient of its size for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Readers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, count: int, ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        ctx.save_for_backward(ids)
        return x.view_as(x), x.view_as(x), x[:count].clone(), x.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        one: Tensor | None,
        other: Tensor | None,
        first: Tensor | None,
        chosen: Tensor | None,
    ) -> tuple[Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        grads = [g for g in (one, other, first, chosen) if g is not None]
        if not grads:
            return None, None, None
        if one is not None and other is not None:
            grad = one + other
        elif one is not None or other is not None:
            grad = (one if one is not None else other).clone()  # type: ignore[union-attr]
        else:
            grad = grads[0].new_zeros(ctx.shape)
        if first is not None:
            grad[: first.shape[0]] += first
        if chosen is not None:
            grad.index_add_(0, ids, chosen)
        return grad, None, None


def readers(x: Tensor, count: int, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of ``x`` [N, D] twice, its first ``count`` rows, and its rows ``ids`` (int64 [n]).

    Read apart, each would make a gradient of N rows of its own, all of them to be added up.
    """
    return _Readers.apply(x, count, ids)


def rows_or_zero(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of ``x`` [A, D], zeros for ids from A on. A is above 0."""
    rows = x.shape[0]
    chosen = x.index_select(0, ids.clamp(max=rows - 1))
    return chosen * (ids < rows).to(x.dtype).unsqueeze(1)
