"""A few rows of a large matrix, with one gradient of its size for all who read it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kgrec_fast.ops._common import keeps_to_ops


def among(ids: Tensor, size: int) -> Tensor:
    """bool [size], True at ``ids`` (int64)."""
    return torch.zeros(size, dtype=torch.bool, device=ids.device).scatter(0, ids, True)


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
    return x.index_select(0, ids) if keeps_to_ops() else _OnlyRows.apply(x, ids)


class _Readers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, first: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        ctx.save_for_backward(ids)
        return x.index_select(0, ids), x[:first], x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, chosen: Tensor | None, first: Tensor | None, whole: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        some = next((g for g in (chosen, first, whole) if g is not None), None)
        if some is None:
            return None, None, None
        # The others are added in place: whoever reads all of x makes a gradient for this alone.
        grad = some.new_zeros(ctx.shape) if whole is None else whole
        if first is not None:
            grad[: first.shape[0]] += first
        if chosen is not None:
            grad.index_add_(0, ids, chosen)
        return grad, None, None


def readers(x: Tensor, ids: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of ``x`` [N, D] for several readers.

    Read apart, each would make a gradient of N rows of its own, all of them to be added up.

    Args:
        x: [N, D].
        ids: int64 [n], rows wanted.
        first: How many of its first rows are wanted.

    Returns:
        The rows ``ids`` [n, D], the first rows [first, D], and ``x`` itself for what reads all of
        it. The gradient of the last is written to: it must be no tensor that anyone else holds.
    """
    if keeps_to_ops():
        return x.index_select(0, ids), x[:first], x
    return _Readers.apply(x, ids, first)


def in_range(ids: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """[n, 1] of ``dtype``: 1 where an id is below ``rows``, else 0."""
    return (ids < rows).to(dtype).unsqueeze(1)


def rows_or_zero(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of ``x`` [A, D], zeros for ids from A on. A is above 0."""
    rows = x.shape[0]
    return x.index_select(0, ids.clamp(max=rows - 1)) * in_range(ids, rows, x.dtype)
