"""Relation attention: scores, softmax over the edges of a head, and their sum, in one pass.

KGRec, equations 1 to 4 (Yang et al., KDD 2023). No tensor of edges times width exists, forward or
backward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.graph import EdgeMask, RelGraph
from kgrec_fast.ops import _common


def relation_attention(
    query: Tensor,
    value: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    return_lse: bool = False,
    zero_edges: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Attention of every head node over its edges, per attention head `k` of width `d = D / H`.

    For an edge `e = (h, r, t)`: ``s_e = sum(query[h] * query[t] * relation[r]) / sqrt(d)``,
    ``a_e = softmax(s)`` over the edges of `h`, ``out[h] = sum_e a_e * (value[t] * relation[r])``.

    Args:
        query: [N, D], projected embeddings, shared by heads and tails; N >= rows and columns.
        value: [M, D], what is summed; M >= columns.
        relation: [>= R, D].
        graph: the edges.
        num_heads: H, a divisor of D.
        edge_mask: edges to keep, an `EdgeMask` or bool [E] in the caller's order.
        return_lse: also return the log-sum-exp of the scores.
        zero_edges: [num_rows], how many edges each row has beside those of the graph, to nodes
            whose query and value are zero: each has the score 0, adds 1 to the denominator of the
            softmax and nothing to the sum. No gradient goes to them.

    Returns:
        out [num_rows, D] in the dtype of the operands, and, if asked, lse [num_rows, H] (float32
        for half types). Rows without an unmasked edge: 0, and -inf (or log(zero_edges)).

    float32, float64, bfloat16 and float16 (accumulated in float32). Differentiable once in query,
    value and relation. O(E * D) time, O(N * D + E * H) memory. Bitwise repeatable for every number
    of threads.

    Raises:
        TypeError, ValueError: an operand's type, shape, dtype or device does not fit.
    """
    _common.check_graph(graph, RelGraph)
    query, value, relation = _common.autocast(query, value, relation)  # type: ignore[assignment]
    _common.check_matrix("query", query, max(graph.num_rows, graph.num_cols))
    _common.check_device("query", query, graph.device)
    _common.check_matrix("value", value, graph.num_cols, like=query)
    _common.check_matrix("relation", relation, graph.num_relations, like=query)
    num_heads = _common.check_heads(num_heads, query.size(1))
    zero_edges = as_zero_edges(zero_edges, graph, query)
    mask = _common.prepare_mask(graph, edge_mask)
    if not _common.runs_native(query.device):
        return relation_attention_reference(
            query, value, relation, graph, num_heads, mask, return_lse, zero_edges
        )
    backward = _common.wants_grad(query, value, relation)
    out, lse, _ = _relation_attention(
        query,
        value,
        relation,
        graph.tensors(columns=backward),
        *_common.mask_tensors(mask, columns=backward),
        num_heads,
        backward,
        zero_edges,
    )
    # The op keeps float32 for half types: backward needs the unrounded sum.
    out = out.to(query.dtype)
    return (out, lse) if return_lse else out


def as_zero_edges(zero_edges: object, graph: RelGraph, like: Tensor) -> Tensor | None:
    """Counts of edges beside the graph, checked, in the type in which `like` is added up."""
    if zero_edges is None:
        return None
    if not isinstance(zero_edges, Tensor):
        raise TypeError(f"zero_edges is a {type(zero_edges).__name__}, expected a torch.Tensor")
    _common.check_dense("zero_edges", zero_edges)
    if zero_edges.shape != (graph.num_rows,):
        raise ValueError(
            f"zero_edges has shape {list(zero_edges.shape)}, expected [{graph.num_rows}]"
        )
    _common.check_device("zero_edges", zero_edges, graph.device)
    return zero_edges.detach().to(_common.accumulate_dtype(like.dtype)).contiguous()


def relation_attention_reference(
    query: Tensor,
    value: Tensor,
    relation: Tensor,
    graph: RelGraph,
    num_heads: int,
    edge_mask: EdgeMask | Tensor | None = None,
    return_lse: bool = False,
    zero_edges: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`relation_attention` in plain PyTorch: edge tensors, scatters, torch's autograd."""
    mask = _common.prepare_mask(graph, edge_mask)
    _, head, tail, rel = _common.kept_edges(graph, mask)
    dtype, width = query.dtype, query.size(1)
    query, value, relation = (
        x.to(_common.accumulate_dtype(dtype)).unflatten(1, (num_heads, width // num_heads))
        for x in (query, value, relation)
    )
    score = (query[head] * query[tail] * relation[rel]).sum(-1) / math.sqrt(width // num_heads)
    lse = segment_logsumexp(score, head, graph.num_rows, zero_edges)
    weight = torch.exp(score - lse[head]).unsqueeze(-1)
    out = torch.zeros(graph.num_rows, *value.shape[1:], dtype=value.dtype, device=value.device)
    out = out.index_add(0, head, weight * value[tail] * relation[rel]).flatten(1).to(dtype)
    return (out, lse) if return_lse else out


def segment_logsumexp(
    score: Tensor, head: Tensor, num_rows: int, zeros: Tensor | None = None
) -> Tensor:
    """log(sum(exp(score))) over equal `head`: [num_rows, H], -inf where there is none.

    `zeros` [num_rows] counts further scores of each row, which are 0.
    """
    index = head.unsqueeze(1).expand_as(score)
    top = torch.full((num_rows, score.size(1)), -math.inf, dtype=score.dtype, device=score.device)
    top = top.scatter_reduce(0, index, score.detach(), "amax")
    if zeros is not None:
        has_zeros = (zeros > 0).unsqueeze(1)
        top = torch.where(has_zeros, top.clamp(min=0), top)
    total = torch.zeros_like(top).index_add(0, head, torch.exp(score - top[head]))
    if zeros is not None:
        total = total + torch.where(has_zeros, zeros.unsqueeze(1) * torch.exp(-top), 0)
    # Rows without edges keep -inf, without a NaN in their gradient.
    empty = total == 0
    return torch.log(total.masked_fill(empty, 1)) + top


def output_for_backward(out: Tensor) -> Tensor | None:
    """What backward wants of the output: all on CUDA, where delta is dO . O, nothing on the CPU,
    where it is added up from the weights that are kept.
    """
    return out if out.is_cuda else None


def _setup_context(ctx: Any, inputs: _common.Inputs, output: tuple[Tensor, ...]) -> None:
    query, value, relation, graph, row_mask, col_mask, ctx.num_heads, _, zero_edges = inputs
    out, lse, weight = output
    ctx.mark_non_differentiable(weight)
    kept = output_for_backward(out)
    ctx.save_for_backward(
        query, value, relation, kept, lse, weight, row_mask, col_mask, zero_edges, *graph
    )


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor, _: Tensor) -> _common.Gradients:
    saved = ctx.saved_tensors
    query, value, relation, out, lse, weight, row_mask, col_mask, zero_edges, *graph = saved
    grads = _relation_attention_backward(
        grad_out, grad_lse, query, value, relation, out, lse, weight, graph, row_mask, col_mask,
        ctx.num_heads, zero_edges,
    )  # fmt: skip
    return *grads, [None] * len(graph), None, None, None, None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::relation_attention")
    def _(
        query: Tensor,
        value: Tensor,
        relation: Tensor,
        graph: list[Tensor],
        row_mask: Tensor | None,
        col_mask: Tensor | None,
        num_heads: int,
        keep_weight: bool,
        zero_edges: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype, rows = _common.accumulate_dtype(query.dtype), graph[0].size(0) - 1
        # What backward wants: a_e on the CPU; CUDA makes them anew from the log-sum-exp.
        keeps = keep_weight and query.device.type != "cuda"
        return (
            query.new_empty(rows, query.size(1), dtype=dtype),
            query.new_empty(rows, num_heads, dtype=dtype),
            query.new_empty(graph[2].size(0) if keeps else 0, num_heads, dtype=dtype),
        )

    @torch.library.register_fake("kgrec_fast::relation_attention_backward")
    def _(
        grad_out: Tensor, grad_lse: Tensor, query: Tensor, value: Tensor, relation: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(x.new_empty(x.shape) for x in (query, value, relation))  # type: ignore[return-value]

    _relation_attention = _common.differentiable("relation_attention", _setup_context, _backward)
    _relation_attention_backward = _common.register_no_grad("relation_attention_backward")
