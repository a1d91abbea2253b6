"""Weighted sums over the edges of a row or a column, and inner products of the ends of each edge.

The first are both directions of user-item aggregation, the second scores of edges; they are each
other's gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.ops import _common


def weighted_aggregate(
    x: Tensor,
    weight: Tensor | None,
    graph: InteractionGraph | RelGraph,
    transpose: bool = False,
    edge_mask: EdgeMask | Tensor | None = None,
    row_weight: Tensor | None = None,
    edge_order: str = "caller",
) -> Tensor:
    """``out[row] = sum of weight[e] * x[col]`` over the unmasked edges of a row (`ui_agg`).

    Args:
        x: [M, D], M >= columns of the graph (rows, if `transpose`).
        weight: [E] in the caller's order, or None for ones. Half-type x takes float32 weights too.
        graph: the edges; relations, if any, are not looked at.
        transpose: sum over the edges of a column instead: ``out[col] = sum weight[e] * x[row]``.
        edge_mask: edges to keep, an `EdgeMask` or bool [E] in the caller's order.
        row_weight: [num_rows] in the dtype of x or of its sums: in place of `weight`, one number
            for all edges of a row, which is read once a row instead of once an edge. It gets no
            gradient.
        edge_order: the order of `weight`: "caller", or "row" for the graph's own (no permutation).

    Returns:
        [num_rows, D] ([num_cols, D] if `transpose`) in the dtype of x.

    Differentiable in x and weight, as often as wanted. O(E * D) time, O(N * D) memory.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    _common.check_graph(graph)
    if not isinstance(transpose, bool):
        raise TypeError(f"transpose is a {type(transpose).__name__}, expected a bool")
    (x,) = _common.autocast(x)  # type: ignore[assignment]
    _common.check_matrix("x", x, graph.num_rows if transpose else graph.num_cols)
    _common.check_device("x", x, graph.device)
    _check_weight("weight", weight, x, graph.num_edges)
    _check_weight("row_weight", row_weight, x, graph.num_rows)
    if weight is not None and row_weight is not None:
        raise ValueError("weight and row_weight are both given, expected one of them")
    _common.check_order("edge_order", edge_order)
    mask = _common.prepare_mask(graph, edge_mask)
    if not _common.runs_native(x.device):
        return weighted_aggregate_reference(
            x, weight, graph, transpose, mask, row_weight, edge_order
        )
    columns = transpose or _common.wants_grad(x, weight)
    if weight is not None:
        weight = weight.to(_common.accumulate_dtype(x.dtype))
        weight = graph.to_row_order(weight) if edge_order == "caller" else weight.contiguous()
    if row_weight is not None:
        row_weight = row_weight.detach().to(_common.accumulate_dtype(x.dtype)).contiguous()
    return _weighted_aggregate(
        x,
        weight,
        row_weight,
        graph.tensors(columns),
        *_common.mask_tensors(mask, columns),
        transpose,
        graph.num_cols if transpose else graph.num_rows,
    )


def weighted_aggregate_reference(
    x: Tensor,
    weight: Tensor | None,
    graph: InteractionGraph | RelGraph,
    transpose: bool = False,
    edge_mask: EdgeMask | Tensor | None = None,
    row_weight: Tensor | None = None,
    edge_order: str = "caller",
) -> Tensor:
    """`weighted_aggregate` in plain PyTorch."""
    mask = _common.prepare_mask(graph, edge_mask)
    kept, row, col, _ = _common.kept_edges(graph, mask)
    source, target, size = (row, col, graph.num_cols) if transpose else (col, row, graph.num_rows)
    message = x.to(_common.accumulate_dtype(x.dtype))[source]
    if weight is not None:
        weight = weight.to(message.dtype)
        weight = graph.to_row_order(weight) if edge_order == "caller" else weight
        message = message * weight[kept].unsqueeze(1)
    if row_weight is not None:
        message = message * row_weight.detach().to(message.dtype)[row].unsqueeze(1)
    return message.new_zeros(size, x.size(1)).index_add(0, target, message).to(x.dtype)


def edge_dot(
    row_side: Tensor,
    col_side: Tensor,
    graph: InteractionGraph | RelGraph,
    edge_mask: EdgeMask | Tensor | None = None,
    edge_order: str = "caller",
) -> Tensor:
    """``out[e] = <row_side[row], col_side[col]>`` for the edges e = (row, col) of a graph.

    Args:
        row_side: [N, D], N >= rows of the graph.
        col_side: [M, D], M >= columns of the graph.
        graph: the edges; relations, if any, are not looked at.
        edge_mask: edges to keep, an `EdgeMask` or bool [E] in the caller's order.
        edge_order: the order of the result: "caller", or "row" for the graph's own.

    Returns:
        [E], float64 for float64 operands, else float32; 0 for masked edges.

    Differentiable in both operands, as often as wanted. O(E * D) time, O(N * D + E) memory. Bitwise
    repeatable for every number of threads.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    _common.check_graph(graph)
    row_side, col_side = _common.autocast(row_side, col_side)  # type: ignore[assignment]
    _common.check_matrix("row_side", row_side, graph.num_rows)
    _common.check_device("row_side", row_side, graph.device)
    _common.check_matrix("col_side", col_side, graph.num_cols, like=row_side)
    _common.check_order("edge_order", edge_order)
    mask = _common.prepare_mask(graph, edge_mask)
    if not _common.runs_native(row_side.device):
        return edge_dot_reference(row_side, col_side, graph, mask, edge_order)
    columns = _common.wants_grad(row_side, col_side)
    masks = _common.mask_tensors(mask, columns)
    out = _edge_dot(row_side, col_side, graph.tensors(columns), *masks)
    return graph.to_caller_order(out) if edge_order == "caller" else out


def edge_dot_reference(
    row_side: Tensor,
    col_side: Tensor,
    graph: InteractionGraph | RelGraph,
    edge_mask: EdgeMask | Tensor | None = None,
    edge_order: str = "caller",
) -> Tensor:
    """`edge_dot` in plain PyTorch."""
    mask = _common.prepare_mask(graph, edge_mask)
    kept, row, col, _ = _common.kept_edges(graph, mask)
    dtype = _common.accumulate_dtype(row_side.dtype)
    dot = (row_side.to(dtype)[row] * col_side.to(dtype)[col]).sum(1)
    out = dot.new_zeros(graph.num_edges).index_copy(0, kept, dot)
    return graph.to_caller_order(out) if edge_order == "caller" else out


def _check_weight(name: str, weight: Tensor | None, x: Tensor, size: int) -> None:
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} is a {type(weight).__name__}, expected a torch.Tensor or None")
    _common.check_dense(name, weight)
    if weight.dtype not in (x.dtype, _common.accumulate_dtype(x.dtype)):
        raise TypeError(f"{name} has dtype {weight.dtype}, expected {x.dtype}, as x")
    if weight.shape != (size,):
        raise ValueError(f"{name} has shape {list(weight.shape)}, expected [{size}]")
    _common.check_device(name, weight, x.device)


# Both backward passes are made of the two ops themselves, so derivatives of any order exist.


def _aggregate_setup(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    x, weight, row_weight, graph, row_mask, col_mask, ctx.transpose, _ = inputs
    ctx.x_rows = x.size(0)
    # The values are needed for a gradient of the weights alone.
    ctx.save_for_backward(
        x if weight is not None and weight.requires_grad else None,
        weight, row_weight, row_mask, col_mask, *graph,
    )  # fmt: skip


def _aggregate_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    x, weight, row_weight, row_mask, col_mask, *graph = ctx.saved_tensors
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = _weighted_aggregate(
            grad, weight, row_weight, graph, row_mask, col_mask, not ctx.transpose, ctx.x_rows
        )
    if ctx.needs_input_grad[1]:
        row_side, col_side = (x, grad) if ctx.transpose else (grad, x)
        grad_weight = _edge_dot(row_side, col_side, graph, row_mask, col_mask)
    return grad_x, grad_weight, None, [None] * len(graph), None, None, None, None


def _edge_dot_setup(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    row_side, col_side, graph, row_mask, col_mask = inputs
    ctx.save_for_backward(row_side, col_side, row_mask, col_mask, *graph)


def _edge_dot_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    row_side, col_side, row_mask, col_mask, *graph = ctx.saved_tensors
    args = (grad, None, graph, row_mask, col_mask)
    grad_row = grad_col = None
    if ctx.needs_input_grad[0]:
        grad_row = _weighted_aggregate(col_side, *args, False, row_side.size(0))
    if ctx.needs_input_grad[1]:
        grad_col = _weighted_aggregate(row_side, *args, True, col_side.size(0))
    return grad_row, grad_col, [None] * len(graph), None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::weighted_aggregate")
    def _(
        x: Tensor,
        weight: Tensor | None,
        row_weight: Tensor | None,
        graph: list[Tensor],
        row_mask: Tensor | None,
        col_mask: Tensor | None,
        transpose: bool,
        out_rows: int,
    ) -> Tensor:
        return x.new_empty(out_rows, x.size(1))

    @torch.library.register_fake("kgrec_fast::edge_dot")
    def _(
        row_side: Tensor,
        col_side: Tensor,
        graph: list[Tensor],
        row_mask: Tensor | None,
        col_mask: Tensor | None,
    ) -> Tensor:
        dtype = _common.accumulate_dtype(row_side.dtype)
        return row_side.new_empty(graph[1].size(0), dtype=dtype)

    _weighted_aggregate: _common.TensorOp = _common.differentiable(
        "weighted_aggregate", _aggregate_setup, _aggregate_backward
    )
    _edge_dot: _common.TensorOp = _common.differentiable(
        "edge_dot", _edge_dot_setup, _edge_dot_backward
    )
