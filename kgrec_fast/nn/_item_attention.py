"""Attention over a user's interactions, from a score of each item."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast import ops
from kgrec_fast.graph import EdgeMask, InteractionGraph
from kgrec_fast.nn._arguments import check_floating
from kgrec_fast.nn._edges import edge_softmax


def user_softmax(item_attn: Tensor, inter: InteractionGraph, mask: EdgeMask | None) -> Tensor:
    """Softmax of ``item_attn`` over each user's interactions, times their number: [M]."""
    check_floating("item_attn", item_attn)
    items = inter.num_cols
    if item_attn.dim() == 1 and item_attn.shape[0] < items:
        # A graph of raw edges has as many columns as there are nodes.
        items = int(inter.col.max()) + 1 if inter.num_edges else 0
    if item_attn.dim() != 1 or item_attn.shape[0] < items:
        raise ValueError(
            f"item_attn has shape {list(item_attn.shape)}, "
            f"expected [n] with n at least {items}, the number of items"
        )
    attention = item_attn.index_select(0, inter.col)
    counted = torch.ones_like(attention) if mask is None else mask.row.to(attention.dtype)
    degree = ops.segment_sum(counted, inter.rowptr).index_select(0, inter.head)
    return inter.to_caller_order(edge_softmax(attention, inter, mask) * degree)
