"""Mean score of the edges that lead to each node."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_int
from kgrec_fast.graph import EdgeMask, RelGraph, _Graph
from kgrec_fast.ops import _common


def edge_score_means(
    score: Tensor,
    graph: RelGraph,
    edge_mask: EdgeMask | Tensor | None = None,
    num_items: int | None = None,
    edge_order: str = "caller",
) -> Tensor:
    """Mean over the unmasked edges with a tail (a column of the graph); 0 where there is none.

    Scores and mask are read through the column order's positions in row order: no copy of either in
    column order is made. Half types are widened to float32. Bitwise repeatable, whatever the
    number of threads. Not differentiable: a backward pass through the native op raises. O(E), of
    which only the edges of the first `num_items` columns are read.

    Args:
        score: [E], floating point.
        graph: the edges; the column order is made if it is not there yet.
        edge_mask: edges that count, an `EdgeMask` or bool [E] in the caller's order.
        num_items: how many columns, from the first on; None for all.
        edge_order: the order of `score`: "caller", or "row" for the graph's own (no permutation).

    Returns:
        [num_items or graph.num_cols], dtype of `score`.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    count = _check(score, graph, num_items, edge_order)
    mask = _common.prepare_mask(graph, edge_mask)
    if not _common.runs_native(score.device):
        return edge_score_means_reference(score, graph, mask, count, edge_order)
    in_row_order = graph.to_row_order(score) if edge_order == "caller" else score
    wide = in_row_order.to(_common.accumulate_dtype(score.dtype))
    row_mask = None if mask is None else mask.row
    means = _edge_score_means(wide, graph.tensors(columns=True), row_mask, count)
    return means.to(score.dtype)


def edge_score_means_reference(
    score: Tensor,
    graph: RelGraph,
    edge_mask: EdgeMask | Tensor | None = None,
    num_items: int | None = None,
    edge_order: str = "caller",
) -> Tensor:
    """`edge_score_means` in plain PyTorch."""
    count = _check(score, graph, num_items, edge_order)
    mask = _common.prepare_mask(graph, edge_mask)
    in_row_order = graph.to_row_order(score) if edge_order == "caller" else score
    kept, _, tail, _ = _common.kept_edges(graph, mask)
    wide = in_row_order.index_select(0, kept).to(_common.accumulate_dtype(score.dtype))
    zeros = wide.new_zeros(graph.num_cols)
    total = zeros.index_add(0, tail, wide)
    edges = zeros.index_add(0, tail, torch.ones_like(wide))
    return (total / edges.clamp(min=1))[:count].to(score.dtype)


def _check(score: Tensor, graph: _Graph, num_items: int | None, edge_order: str) -> int:
    """The number of columns that are asked for."""
    _common.check_graph(graph)
    if not isinstance(score, Tensor) or score.dtype not in _common.FLOAT_TYPES:
        found = score.dtype if isinstance(score, Tensor) else type(score).__name__
        raise TypeError(f"score is {found}, expected a floating point tensor")
    _common.check_dense("score", score)
    if score.shape != (graph.num_edges,):
        raise ValueError(f"score has shape {list(score.shape)}, expected [{graph.num_edges}]")
    _common.check_device("score", score, graph.device)
    _common.check_order("edge_order", edge_order)
    if num_items is None:
        return graph.num_cols
    num_items = check_int("num_items", num_items)
    if not 0 <= num_items <= graph.num_cols:
        raise ValueError(f"num_items is {num_items}, expected 0 <= num_items <= {graph.num_cols}")
    return num_items


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::edge_score_means")
    def _(score: Tensor, graph: list[Tensor], row_mask: Tensor | None, num_items: int) -> Tensor:
        return score.new_empty(num_items)

    _edge_score_means: _common.TensorOp = _common.register_no_grad("edge_score_means")
