"""Attention over the edges of rows, from scores: what several layers share.

Everything per edge is in row order, one number for each attention head: [E, H].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kgrec_fast import ops
from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.ops._common import accumulate_dtype, keeps_to_ops
from kgrec_fast.ops.relation_attention import segment_logsumexp


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        ctx.save_for_backward(ids)
        return x.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        return ops.scatter_sum(grad, ids, 0, None, ctx.rows), None


def gather(x: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` (int64 [E]) of a narrow ``x`` [n, H], in the type of sums.

    torch adds up the gradient of a selection in no fixed order on CUDA, and slowly on the CPU,
    where it also selects slowly from what is not contiguous.
    """
    x = x.to(accumulate_dtype(x.dtype)).contiguous()
    return x.index_select(0, ids) if keeps_to_ops() else _Gather.apply(x, ids)


def edge_softmax(
    score: Tensor, graph: RelGraph | InteractionGraph, mask: EdgeMask | None
) -> Tensor:
    """Softmax of ``score`` [E] or [E, H] over the unmasked edges of each row.

    What masked edges get is no number to use: sums over edges must leave them out.
    """
    if mask is not None:
        # The lowest finite number instead of -inf: a row whose edges are all masked must not turn
        # into NaN.
        masked = ~mask.row.view(-1, *[1] * (score.dim() - 1))
        score = score.masked_fill(masked, torch.finfo(score.dtype).min)
    return ops.segment_softmax(score, graph.rowptr)


def attended(x: Tensor, weight: Tensor, graph: RelGraph, mask: EdgeMask | None) -> Tensor:
    """Sums of the tails of each row, weighted: [num_rows, D].

    Args:
        x: [N, D].
        weight: [E, H], of each attention head: its columns of ``x`` are D / H.
        graph: The edges.
        mask: Which of them count.
    """
    heads = weight.shape[1]
    parts = [
        ops.weighted_aggregate(part, w, graph, edge_mask=mask, edge_order="row")
        for part, w in zip(x.split(x.shape[1] // heads, 1), weight.unbind(1), strict=True)
    ]
    return parts[0] if heads == 1 else torch.cat(parts, 1)


def attended_reference(
    x: Tensor, score: Tensor, head: Tensor, tail: Tensor, num_rows: int
) -> Tensor:
    """:func:`edge_softmax` and :func:`attended` in plain PyTorch, of the edges that count."""
    weight = torch.exp(score - segment_logsumexp(score, head, num_rows)[head]).unsqueeze(-1)
    message: Tensor = weight * x.unflatten(1, (score.shape[1], -1))[tail]
    out = message.new_zeros(num_rows, *message.shape[1:])
    return out.index_add(0, head, message).flatten(1)
