"""Weighted sums by torch's sparse matrices: the product of a CSR matrix with a dense one.

Written as someone would who knows that the graph stays: both orders of the edges are there before,
in int32 as MKL takes them. torch's own gradient for the values of a CSR matrix fails where two
edges join the same nodes, so backward is written out: the transposed matrix for x, and
`torch.sparse.sampled_addmm` for the values.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kgrec_fast.graph import RelGraph

with warnings.catch_warnings():  # at the first CSR matrix of a process torch says that it is beta
    warnings.simplefilter("ignore")
    torch.empty(0, 0, layout=torch.sparse_csr)


class Order(NamedTuple):
    """The edges in one order: pointers and ids int32, and where each stands in the other order."""

    ptr: Tensor
    ids: Tensor
    size: tuple[int, int]
    position: Tensor

    def matrix(self, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(
            self.ptr, self.ids, values, self.size, check_invariants=False
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, order: Order, other: Order) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.orders = order, other
        product: Tensor = torch.sparse.mm(order.matrix(values), x)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values = ctx.saved_tensors
        order, other = ctx.orders
        grad_x = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.sparse.mm(other.matrix(values[other.position]), grad)
        if ctx.needs_input_grad[1]:
            places = order.matrix(torch.zeros_like(values))
            grad_values = torch.sparse.sampled_addmm(places, grad, x.t(), beta=0.0).values()
        return grad_x, grad_values, None, None


def _orders(graph: RelGraph) -> tuple[Order, Order]:
    colptr, col_row, _, col_pos, _ = graph.columns()
    col_pos = col_pos.long()
    shape = (graph.num_rows, graph.num_cols)
    rows = Order(graph.rowptr.int(), graph.col.int(), shape, torch.argsort(col_pos))
    return rows, Order(colptr.int(), col_row.int(), shape[::-1], col_pos)


def aggregate(graph: RelGraph, transpose: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The sums of `kgrec_fast.ops.weighted_aggregate`, weights in the caller's order."""
    rows, columns = _orders(graph)
    order = graph.perm.long()
    if transpose:
        in_columns = order[columns.position]
        return lambda x, weight: _Product.apply(x, weight[in_columns], columns, rows)
    return lambda x, weight: _Product.apply(x, weight[order], rows, columns)


def mean(graph: RelGraph) -> Callable[[Tensor], Tensor]:
    """The mean over the edges of each row."""
    rows, columns = _orders(graph)
    degree = graph.rowptr.diff()
    values = degree.clamp(min=1).reciprocal().repeat_interleave(degree)
    return lambda x: _Product.apply(x, values.to(x.dtype), rows, columns)
