"""Relation attention together with the projection in front of it, for the sake of its gradient.

Embeddings enter attention twice, projected as queries and keys, and as values. Left to autograd,
their gradient is two matrices of N rows, made and added up; here the projection's share is
accumulated onto the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kgrec_fast.graph import EdgeMask, RelGraph
from kgrec_fast.ops import _common
from kgrec_fast.ops.relation_attention import relation_attention, relation_attention_reference


def projected_attention(
    x: Tensor,
    weight: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    return_lse: bool = False,
    query: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`relation_attention` of ``query = x @ weight`` and ``value = x`` (KGRec, equations 1 to 4).

    Args:
        x: [N, D] embeddings; N >= rows and columns.
        weight: [D, D], the projection shared by queries and keys.
        relation: [>= R, D].
        graph, num_heads, edge_mask, return_lse: as in `relation_attention`.
        query: [N, D], ``x @ weight`` where it is known already. It is taken as a number: gradients
            go to `x` and `weight`, none to `query`.

    Returns:
        As `relation_attention`: out [num_rows, D], and, if asked, lse [num_rows, H].

    Differentiable once in x, weight and relation. One matrix of N rows less is written in backward
    than by the two steps apart.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
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
    needs_grad = _common.wants_grad(x, weight, relation)
    if not needs_grad or not _common.runs_native(x.device):
        # Without a gradient there is nothing to save; the reference leaves it to autograd.
        if query is None or needs_grad:
            query = x @ weight
        return relation_attention(query, x, relation, graph, num_heads, edge_mask, return_lse)
    _common.check_device("x", x, graph.device)
    _common.check_matrix("relation", relation, graph.num_relations, like=x)
    _common.check_heads(num_heads, x.size(1))
    mask = _common.prepare_mask(graph, edge_mask)
    row_mask, col_mask = _common.mask_tensors(mask, columns=True)
    if query is None:
        query = x.detach() @ weight.detach()
    out, lse = _ProjectedAttention.apply(
        x, weight, relation, query.detach(), row_mask, col_mask, num_heads, *graph.tensors(True)
    )
    return (out, lse) if return_lse else out


def projected_attention_reference(
    x: Tensor,
    weight: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    return_lse: bool = False,
    query: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`projected_attention` in plain PyTorch; it has no use for a known `query`."""
    return relation_attention_reference(
        x @ weight, x, relation, graph, num_heads, edge_mask, return_lse
    )


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
        num_heads: int,
        *graph: Tensor,
    ) -> tuple[Tensor, Tensor]:
        out, lse, edge_weight = torch.ops.kgrec_fast.relation_attention(
            query, x, relation, graph, row_mask, col_mask, num_heads, True
        )
        ctx.num_heads = num_heads
        ctx.save_for_backward(
            x, weight, relation, query, out, lse, edge_weight, row_mask, col_mask, *graph
        )
        # The op keeps float32 for half types: backward needs the unrounded sum.
        return out.to(x.dtype), lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, relation, query, out, lse, edge_weight, row_mask, col_mask, *graph = (
            ctx.saved_tensors
        )
        grad_query, grad_x, grad_relation = torch.ops.kgrec_fast.relation_attention_backward(
            grad_out.to(out.dtype), grad_lse, query, x, relation, out, lse, edge_weight, graph,
            row_mask, col_mask, ctx.num_heads,
        )  # fmt: skip
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_weight = x.t() @ grad_query if needs_weight else None
        if needs_x:
            grad_x.addmm_(grad_query, weight.t())
        return grad_x, grad_weight, grad_relation, *[None] * (4 + len(graph))
