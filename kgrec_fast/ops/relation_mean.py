"""Relation mean: the attention-free aggregation of KGRec's contrastive view (`kg_agg`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.graph import EdgeMask, RelGraph
from kgrec_fast.ops import _common


def relation_mean(
    x: Tensor, relation: Tensor, graph: RelGraph, edge_mask: EdgeMask | Tensor | None = None
) -> Tensor:
    """Mean over the unmasked edges (h, r, t) of h of ``x[t] * relation[r]``.

    Args:
        x: [M, D], M >= columns of the graph.
        relation: [>= R, D].
        graph: the edges.
        edge_mask: edges to keep, an `EdgeMask` or bool [E] in the caller's order.

    Returns:
        [num_rows, D] in the dtype of x, 0 for rows without an unmasked edge.

    Differentiable once in x and relation. O(E * D) time, O(N * D) memory.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    _common.check_graph(graph, RelGraph)
    x, relation = _common.autocast(x, relation)  # type: ignore[assignment]
    _common.check_matrix("x", x, graph.num_cols)
    _common.check_device("x", x, graph.device)
    _common.check_matrix("relation", relation, graph.num_relations, like=x)
    mask = _common.prepare_mask(graph, edge_mask)
    if not _common.runs_native(x.device):
        return relation_mean_reference(x, relation, graph, mask)
    backward = _common.wants_grad(x, relation)
    out, _ = _relation_mean(
        x,
        relation,
        graph.tensors(columns=backward),
        *_common.mask_tensors(mask, columns=backward),
    )
    return out


def relation_mean_reference(
    x: Tensor, relation: Tensor, graph: RelGraph, edge_mask: EdgeMask | Tensor | None = None
) -> Tensor:
    """`relation_mean` in plain PyTorch."""
    mask = _common.prepare_mask(graph, edge_mask)
    _, head, tail, rel = _common.kept_edges(graph, mask)
    dtype, accumulate = x.dtype, _common.accumulate_dtype(x.dtype)
    x, relation = x.to(accumulate), relation.to(accumulate)
    total = x.new_zeros(graph.num_rows, x.size(1)).index_add(0, head, x[tail] * relation[rel])
    count = torch.bincount(head, minlength=graph.num_rows).clamp(min=1)
    return (total / count.unsqueeze(1)).to(dtype)


def _setup_context(ctx: Any, inputs: _common.Inputs, output: tuple[Tensor, ...]) -> None:
    x, relation, graph, row_mask, col_mask = inputs
    _, inverse_count = output
    ctx.mark_non_differentiable(inverse_count)
    ctx.save_for_backward(x, relation, inverse_count, row_mask, col_mask, *graph)


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> _common.Gradients:
    x, relation, inverse_count, row_mask, col_mask, *graph = ctx.saved_tensors
    grads = _relation_mean_backward(grad_out, x, relation, inverse_count, graph, row_mask, col_mask)
    return *grads, [None] * len(graph), None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::relation_mean")
    def _(
        x: Tensor,
        relation: Tensor,
        graph: list[Tensor],
        row_mask: Tensor | None,
        col_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows = graph[0].size(0) - 1
        count = x.new_empty(rows, dtype=_common.accumulate_dtype(x.dtype))
        return x.new_empty(rows, x.size(1)), count

    @torch.library.register_fake("kgrec_fast::relation_mean_backward")
    def _(grad_out: Tensor, x: Tensor, relation: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), relation.new_empty(relation.shape)

    @torch.library.register_fake("kgrec_fast::relation_mean_backward_onto")
    def _(grad_x: Tensor, grad_out: Tensor, x: Tensor, relation: Tensor, *_: Any) -> Tensor:
        return relation.new_empty(relation.shape)

    _relation_mean: _common.TensorsOp = _common.differentiable(
        "relation_mean", _setup_context, _backward
    )
    _relation_mean_backward = _common.register_no_grad("relation_mean_backward")
