"""A few rows of a large matrix, with one gradient of its size for all who read it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.ops._common import keeps_to_ops, readable
from kgrec_fast.ops._edge_masks import edges_of_rows
from kgrec_fast.ops._projection import takes_kernel

# Filling single rows costs as much as filling so many in their order, where torch does it.
FEW = 8


def narrowed_mask(
    graph: RelGraph | InteractionGraph, mask: EdgeMask | None, ids: Tensor
) -> EdgeMask:
    """The edges of a mask whose head is one of the rows ``ids`` (int64; there need be no such row).

    A mask of None keeps all edges.
    """
    return graph.edge_mask(edges_of_rows(graph, ids, None if mask is None else mask.row), "row")


def _looked_at() -> bool:
    """Whether gradients are searched for NaN (anomaly detection, which the compiler does not know),
    so that no row may be left unwritten.
    """
    return not torch.compiler.is_compiling() and torch.is_anomaly_enabled()


def _takes_kernel(x: Tensor, *others: Tensor) -> bool:
    """Whether the CPU's op adds rows: for eager mode, and not for half types."""
    return all(readable(tensor) for tensor in (x, *others)) and takes_kernel(x)


def _add_rows(x: Tensor, ids: Tensor, rows: Tensor, include_self: bool = True) -> Tensor:
    """``x`` [N, D] itself, with ``rows`` [n, D] added to its rows ``ids`` (int64 [n]) or, without
    ``include_self``, to zero in their place.
    """
    if x.is_contiguous() and _takes_kernel(x, ids, rows):
        torch.ops.kgrec_fast.scatter_add_(x, rows, ids, include_self)
        return x
    if not include_self:
        x.index_fill_(0, ids, 0)
    return x.index_add_(0, ids, rows)


class _OnlyRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor) -> Tensor:
        ctx.shape = x.shape
        ctx.save_for_backward(ids)
        return x.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of this pass, for second derivatives
            return grad.new_zeros(ctx.shape).index_add(0, ids, grad), None
        few = FEW * ids.numel() < ctx.shape[0] or _takes_kernel(grad, ids)
        sparse = few and not _looked_at()
        whole = grad.new_empty(ctx.shape) if sparse else grad.new_zeros(ctx.shape)
        return _add_rows(whole, ids, grad, include_self=not sparse), None


def only_rows(x: Tensor, ids: Tensor) -> Tensor:
    """[n, D] rows ``ids`` (int64 [n]) of an ``x`` [N, D] whose gradient is read there alone.

    The other rows of the gradient are not written, which would cost a pass over memory: ``x`` must
    come from a sum over edges whose mask leaves out all edges of the other rows.
    """
    return x.index_select(0, ids) if keeps_to_ops() else _OnlyRows.apply(x, ids)


class _Readers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, ids: Tensor | None, first: int, copies: int
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        ctx.save_for_backward(ids)
        chosen = x[:0] if ids is None else x.index_select(0, ids)
        return chosen, x.view_as(x), *(x[:first] for _ in range(copies))

    @staticmethod
    def backward(
        ctx: Any, chosen: Tensor | None, whole: Tensor | None, *first: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        (ids,) = ctx.saved_tensors
        terms = [grad for grad in first if grad is not None]
        some = next((g for g in (chosen, whole, *terms) if g is not None), None)
        if some is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # a graph of this pass, for second derivatives
            total = some.new_zeros(ctx.shape) if whole is None else whole
            for term in terms:
                total = total + F.pad(term, (0, 0, 0, ctx.shape[0] - term.shape[0]))
            if chosen is not None and ids is not None:
                total = total.index_add(0, ids, chosen)
            return total, None, None, None
        # The others are added in place: whoever reads all of x makes a gradient for this alone.
        grad = some.new_zeros(ctx.shape) if whole is None else whole
        if terms:
            head = grad[: terms[0].shape[0]]
            for term in terms:
                head.add_(term)  # += would copy the sum onto itself
        if chosen is not None and ids is not None:
            _add_rows(grad, ids, chosen)
        return grad, None, None, None


def readers(
    x: Tensor, ids: Tensor | None, first: int = 0, copies: int = 1
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Rows of ``x`` [N, D] for several readers.

    Read apart, each would make a gradient of N rows of its own, all of them to be added up.

    Args:
        x: [N, D].
        ids: int64 [n], rows wanted; None for none.
        first: How many of its first rows are wanted.
        copies: How often: a reader each, whose gradients are then added in place, not to one
            another in new memory.

    Returns:
        The rows ``ids`` [n, D], ``x`` itself for what reads all of it, and the first rows
        [first, D], ``copies`` times. The gradient of the second is written to: it must be no tensor
        that anyone else holds.
    """
    if keeps_to_ops():
        chosen = x[:0] if ids is None else x.index_select(0, ids)
        return chosen, x, (x[:first],) * copies
    chosen, whole, *others = _Readers.apply(x, ids, first, copies)
    return chosen, whole, tuple(others)


def within(ids: Tensor, x: Tensor) -> Tensor:
    """``ids`` (int64) for an ``x`` whose last row, one of zeros, stands for all that it lacks."""
    return ids.clamp(max=x.shape[0] - 1)
