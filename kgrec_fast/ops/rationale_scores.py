"""Rationale scores: how much each edge explains, as KGRec ranks it (equation 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.graph import EdgeMask, RelGraph, _Graph
from kgrec_fast.ops import _common
from kgrec_fast.ops.relation_attention import segment_logsumexp


@torch.no_grad()
def rationale_scores(
    query: Tensor,
    relation: Tensor | None,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    edge_order: str = "caller",
) -> tuple[Tensor, Tensor]:
    """Score and logit of every edge; no gradient flows.

    The logit is the mean over attention heads of ``sum(query[h] * query[t] * relation[r]) /
    sqrt(d)``, the score its softmax over the unmasked edges of `h`, times their number.

    Args:
        query: [N, D], projected embeddings; N >= rows and columns of the graph.
        relation: [>= R, D], or None to leave the factor out.
        graph: the edges.
        num_heads: H, a divisor of D.
        edge_mask: edges to keep, an `EdgeMask` or bool [E] in the caller's order.
        edge_order: "caller", or "row" for the graph's own order (one permutation less).

    Returns:
        scores [E], logits [E], float64 for float64 operands, else float32. Masked edges have
        score 0 and logit -inf.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    _common.check_graph(graph)
    query, relation = _common.autocast(query, relation)  # type: ignore[assignment]
    _common.check_matrix("query", query, max(graph.num_rows, graph.num_cols))
    _common.check_device("query", query, graph.device)
    if relation is not None:
        _common.check_graph(graph, RelGraph)
        _common.check_matrix("relation", relation, graph.num_relations, like=query)
    num_heads = _common.check_heads(num_heads, query.size(1))
    _common.check_order("edge_order", edge_order)
    mask = _common.prepare_mask(graph, edge_mask)
    if not _common.runs_native(query.device):
        return rationale_scores_reference(query, relation, graph, num_heads, mask, edge_order)
    row_mask = None if mask is None else mask.row
    scores, logits = _rationale_scores(
        query, relation, graph.tensors(columns=False), row_mask, num_heads
    )
    return _reorder(graph, edge_order, scores, logits)


@torch.no_grad()
def rationale_scores_reference(
    query: Tensor,
    relation: Tensor | None,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    edge_order: str = "caller",
) -> tuple[Tensor, Tensor]:
    """`rationale_scores` in plain PyTorch."""
    mask = _common.prepare_mask(graph, edge_mask)
    kept, head, tail, rel = _common.kept_edges(graph, mask)
    query = query.to(_common.accumulate_dtype(query.dtype))
    product = query[head] * query[tail]
    if relation is not None:
        product = product * relation.to(query.dtype)[rel]
    # Mean over heads of the per-head sums: one sum over the whole width.
    width = query.size(1)
    logit = product.sum(1, keepdim=True) / (num_heads * math.sqrt(width // num_heads))
    lse = segment_logsumexp(logit, head, graph.num_rows)
    degree = torch.bincount(head, minlength=graph.num_rows).to(query.dtype)
    score = torch.exp(logit - lse[head]).flatten() * degree[head]
    scores = query.new_zeros(graph.num_edges).index_copy(0, kept, score)
    logits = query.new_full((graph.num_edges,), -math.inf).index_copy(0, kept, logit.flatten())
    return _reorder(graph, edge_order, scores, logits)


def _reorder(graph: _Graph, edge_order: str, *values: Tensor) -> tuple[Tensor, Tensor]:
    if edge_order == "caller":
        return tuple(graph.to_caller_order(x) for x in values)  # type: ignore[return-value]
    return values  # type: ignore[return-value]


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::rationale_scores")
    def _(
        query: Tensor,
        relation: Tensor | None,
        graph: list[Tensor],
        row_mask: Tensor | None,
        num_heads: int,
    ) -> tuple[Tensor, Tensor]:
        dtype, edges = _common.accumulate_dtype(query.dtype), graph[1].size(0)
        return query.new_empty(edges, dtype=dtype), query.new_empty(edges, dtype=dtype)

    _rationale_scores = _common.register_no_grad("rationale_scores")
