"""Relation attention together with the projection in front of it, for the sake of its gradient.

Embeddings enter attention twice, projected as queries and keys, and as values, and a third time the
relation mean of another view. Left to autograd, their gradient is a matrix of N rows for each, made
and added up; here each share is accumulated onto the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kgrec_fast.graph import EdgeMask, RelGraph
from kgrec_fast.ops import _common
from kgrec_fast.ops._projection import project, project_backward_onto
from kgrec_fast.ops.relation_attention import (
    as_zero_edges,
    output_for_backward,
    relation_attention,
    relation_attention_reference,
)
from kgrec_fast.ops.relation_mean import relation_mean, relation_mean_reference


def projected_attention(
    x: Tensor,
    weight: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    return_lse: bool = False,
    query: Tensor | None = None,
    zero_edges: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`relation_attention` of ``query = x @ weight`` and ``value = x`` (KGRec, equations 1 to 4).

    Args:
        x: [N, D] embeddings; N >= rows and columns.
        weight: [D, D], the projection shared by queries and keys.
        relation: [>= R, D].
        graph, num_heads, edge_mask, return_lse, zero_edges: as in `relation_attention`.
        query: [N, D], ``x @ weight`` where it is known already. It is taken as a number: gradients
            go to `x` and `weight`, none to `query`.

    Returns:
        out [num_rows, D], and, if asked, lse [num_rows, H], as `relation_attention`.

    Differentiable once in x, weight and relation. One matrix of N rows less is written in backward
    than by the two steps apart.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    x, weight, relation, query = _checked(x, weight, relation, graph, query)
    zero_edges = as_zero_edges(zero_edges, graph, x)
    needs_grad = _common.wants_grad(x, weight, relation)
    if not needs_grad or not _common.runs_native(x.device) or _common.keeps_to_ops():
        # Without a gradient there is nothing to save; the others leave it to autograd.
        if query is None or needs_grad:
            query = x @ weight
        return relation_attention(
            query, x, relation, graph, num_heads, edge_mask, return_lse, zero_edges
        )
    num_heads = _common.check_heads(num_heads, x.size(1))
    mask = _common.prepare_mask(graph, edge_mask)
    row_mask, col_mask = _common.mask_tensors(mask, columns=True)
    if query is None:
        query = project(x, weight)
    out, lse = _ProjectedAttention.apply(
        x, weight, relation, query.detach(), row_mask, col_mask, zero_edges, num_heads,
        *graph.tensors(True),
    )  # fmt: skip
    return (out, lse) if return_lse else out


def _checked(
    x: Tensor, weight: Tensor, relation: Tensor, graph: RelGraph, query: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The operands, in autocast's type where it is on."""
    _common.check_graph(graph, RelGraph)
    x, weight, relation, query = _common.autocast(x, weight, relation, query)  # type: ignore[assignment]
    _common.check_matrix("x", x, max(graph.num_rows, graph.num_cols))
    _common.check_matrix("weight", weight, x.size(1), like=x)
    if weight.size(0) != x.size(1):
        raise ValueError(f"weight has {weight.size(0)} rows, expected {x.size(1)}")
    if query is not None:
        _common.check_matrix("query", query, x.size(0), like=x)
        if query.size(0) != x.size(0):
            raise ValueError(f"query has {query.size(0)} rows, expected {x.size(0)}")
    _common.check_device("x", x, graph.device)
    _common.check_matrix("relation", relation, graph.num_relations, like=x)
    return x, weight, relation, query


def projected_attention_reference(
    x: Tensor,
    weight: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    return_lse: bool = False,
    query: Tensor | None = None,
    zero_edges: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`projected_attention` in plain PyTorch; it has no use for a known `query`."""
    return relation_attention_reference(
        x @ weight, x, relation, graph, num_heads, edge_mask, return_lse, zero_edges
    )


def attention_and_mean(
    x: Tensor,
    weight: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    mean_mask: EdgeMask | Tensor | None = None,
    query: Tensor | None = None,
    mean_graph: RelGraph | None = None,
) -> tuple[Tensor, Tensor]:
    """`projected_attention` and `relation_mean` of one `x`: the first hops of both views of KGRec.

    Args:
        x, weight, relation, graph, num_heads, edge_mask, query: as in `projected_attention`.
        mean_mask: edges that the mean takes, as `edge_mask`.
        mean_graph: the graph of the mean and of its mask, where it is another: of as many rows,
            columns and relations.

    Returns:
        Attention and mean, [num_rows, D] each.

    Differentiable once in x, weight and relation; the gradient of x is one matrix of N rows.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    x, weight, relation, query = _checked(x, weight, relation, graph, query)
    mean_graph = _like(graph, mean_graph)
    mask = _common.prepare_mask(graph, edge_mask)
    mean_mask = _common.prepare_mask(mean_graph, mean_mask, "mean_mask")
    fused = _common.wants_grad(x, weight, relation) and _common.runs_native(x.device)
    if not fused or _common.keeps_to_ops():
        out = projected_attention(x, weight, relation, graph, num_heads, mask, False, query)
        return out, relation_mean(x, relation, mean_graph, mean_mask)  # type: ignore[return-value]
    num_heads = _common.check_heads(num_heads, x.size(1))
    # torch.compile takes no tensor twice.
    one_mask = mask is mean_mask
    masks = (mask, None if one_mask else mean_mask)
    columns = (m for mask in masks for m in _common.mask_tensors(mask, columns=True))
    graphs = graph.tensors(True)
    more = [] if mean_graph is graph else mean_graph.tensors(True)
    if query is None:
        query = project(x, weight)
    outputs: tuple[Tensor, Tensor] = _AttentionAndMean.apply(
        x,
        weight,
        relation,
        query.detach(),
        *columns,
        one_mask,
        num_heads,
        len(graphs),
        *graphs,
        *more,
    )
    return outputs


def _like(graph: RelGraph, other: RelGraph | None) -> RelGraph:
    if other is None:
        return graph
    _common.check_graph(other, RelGraph, "mean_graph")
    for size in ("num_rows", "num_cols", "num_relations"):
        found, expected = getattr(other, size), getattr(graph, size)
        if found != expected:
            raise ValueError(f"mean_graph has {size} {found}, expected {expected}, as graph")
    _common.check_device("mean_graph", other.rowptr, graph.device)
    return other


def attention_and_mean_reference(
    x: Tensor,
    weight: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    mean_mask: EdgeMask | Tensor | None = None,
    query: Tensor | None = None,
    mean_graph: RelGraph | None = None,
) -> tuple[Tensor, Tensor]:
    """`attention_and_mean` in plain PyTorch."""
    out = projected_attention_reference(x, weight, relation, graph, num_heads, edge_mask)
    mean = relation_mean_reference(x, relation, _like(graph, mean_graph), mean_mask)
    return out, mean  # type: ignore[return-value]


def _attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    saved: tuple[Any, ...],
    masks: tuple[Tensor | None, Tensor | None],
    graph: list[Tensor],
    num_heads: int,
    zero_edges: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, value and relation."""
    query, x, relation, out, lse, edge_weight = saved
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.kgrec_fast.relation_attention_backward(
        grad_out.to(lse.dtype), grad_lse, query, x, relation, out, lse, edge_weight, graph, *masks,
        num_heads, zero_edges,
    )  # fmt: skip
    return grads


def _project_back(
    ctx: Any, x: Tensor, weight: Tensor, grad_query: Tensor, grad_x: Tensor
) -> Tensor | None:
    """Adds what ``query = x @ weight`` gives to the gradient of x; returns that of weight."""
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    onto = grad_x if needs_x else None
    return project_backward_onto(onto, grad_query, x, weight, needs_weight)


def _two_graphs(tensors: tuple[Tensor, ...], first: int) -> tuple[list[Tensor], list[Tensor]]:
    """The first so many tensors, a graph, and the rest, another; without a rest the first again."""
    return list(tensors[:first]), list(tensors[first:] or tensors)


class _AttentionAndMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        relation: Tensor,
        query: Tensor,
        row_mask: Tensor | None,
        col_mask: Tensor | None,
        mean_row_mask: Tensor | None,
        mean_col_mask: Tensor | None,
        one_mask: bool,
        num_heads: int,
        first_graph: int,
        *graphs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        graph, mean_graph = _two_graphs(graphs, first_graph)
        out, lse, edge_weight = torch.ops.kgrec_fast.relation_attention(
            query, x, relation, graph, row_mask, col_mask, num_heads, True, None
        )
        if one_mask:
            mean_row_mask, mean_col_mask = row_mask, col_mask
        mean, inverse_count = torch.ops.kgrec_fast.relation_mean(
            x, relation, mean_graph, mean_row_mask, mean_col_mask
        )
        ctx.num_heads, ctx.first_graph = num_heads, first_graph
        ctx.save_for_backward(
            query, x, relation, output_for_backward(out), lse, edge_weight, weight, inverse_count,
            row_mask, col_mask, mean_row_mask, mean_col_mask, *graphs,
        )  # fmt: skip
        return out.to(x.dtype), mean

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_mean: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # once: under checkpoint and hooks each look makes them anew
        saved, (weight, inverse_count) = tensors[:6], tensors[6:8]
        masks, mean_masks, graphs = tensors[8:10], tensors[10:12], tensors[12:]
        graph, mean_graph = _two_graphs(graphs, ctx.first_graph)
        _, x, relation = saved[:3]
        grad_query, grad_x, grad_relation = _attention_backward(
            grad_out, None, saved, masks, graph, ctx.num_heads
        )
        whole = grad_x.dtype == _common.accumulate_dtype(grad_x.dtype)
        if whole and not torch.is_grad_enabled():
            more_relation = torch.ops.kgrec_fast.relation_mean_backward_onto(
                grad_x, grad_mean, x, relation, inverse_count, mean_graph, *mean_masks
            )
        else:  # sums would be rounded in between, or a second derivative needs the rule of the op
            more_x, more_relation = torch.ops.kgrec_fast.relation_mean_backward(
                grad_mean, x, relation, inverse_count, mean_graph, *mean_masks
            )
            grad_x += more_x
        grad_weight = _project_back(ctx, x, weight, grad_query, grad_x)
        return grad_x, grad_weight, grad_relation + more_relation, *[None] * (8 + len(graphs))


class _ProjectedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        relation: Tensor,
        query: Tensor,
        row_mask: Tensor | None,
        col_mask: Tensor | None,
        zero_edges: Tensor | None,
        num_heads: int,
        *graph: Tensor,
    ) -> tuple[Tensor, Tensor]:
        out, lse, edge_weight = torch.ops.kgrec_fast.relation_attention(
            query, x, relation, graph, row_mask, col_mask, num_heads, True, zero_edges
        )
        ctx.num_heads = num_heads
        ctx.set_materialize_grads(False)  # few read the log-sum-exp
        ctx.save_for_backward(
            query, x, relation, output_for_backward(out), lse, edge_weight, weight,
            row_mask, col_mask, zero_edges, *graph,
        )  # fmt: skip
        # The op keeps float32 for half types: backward needs the unrounded sum.
        return out.to(x.dtype), lse

    @staticmethod
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # once: under checkpoint and hooks each look makes them anew
        saved, weight, masks, zero_edges = tensors[:6], tensors[6], tensors[7:9], tensors[9]
        graph = list(tensors[10:])
        if grad_out is None:
            grad_out = saved[1].new_zeros(len(graph[0]) - 1, saved[1].shape[1])
        grad_query, grad_x, grad_relation = _attention_backward(
            grad_out, grad_lse, saved, masks, graph, ctx.num_heads, zero_edges
        )
        grad_weight = _project_back(ctx, saved[1], weight, grad_query, grad_x)
        return grad_x, grad_weight, grad_relation, *[None] * (5 + len(graph))
