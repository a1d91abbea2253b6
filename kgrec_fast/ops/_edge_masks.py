"""Masks of the edges of a graph, by its rows: on the CPU by kernels of our own, else torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.ops import _common
from kgrec_fast.ops.segment import sum_segments


def among(ids: Tensor, size: int) -> Tensor:
    """bool [size], True at ``ids`` (int64)."""
    return torch.zeros(size, dtype=torch.bool, device=ids.device).scatter(0, ids, True)


def count_edges(
    graph: RelGraph | InteractionGraph, mask: Tensor, other: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """How many edges of each row are in both masks.

    Args:
        graph: The graph.
        mask: bool [E], row order.
        other: Likewise; None for all edges.
        dtype: float32 or float64.

    Returns:
        [num_rows] of that dtype. O(E).
    """
    if _common.runs_cpu_op(mask.device) and not _common.keeps_to_ops():
        return torch.ops.kgrec_fast.count_edges(  # type: ignore[no-any-return]
            graph.rowptr, mask, other, dtype == torch.float64
        )
    both = mask if other is None else mask & other
    return sum_segments(both.to(dtype), graph.rowptr)


def edges_of_rows(graph: RelGraph | InteractionGraph, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The edges of some rows that are in a mask.

    Args:
        graph: The graph.
        ids: int64 [n], not negative; one beyond the last row names none.
        mask: bool [E], row order; None for all edges.

    Returns:
        bool [E], row order. O(E + n).
    """
    if _common.runs_cpu_op(ids.device) and not _common.keeps_to_ops():
        return torch.ops.kgrec_fast.edges_of_rows(  # type: ignore[no-any-return]
            graph.rowptr, ids, mask, graph.num_edges
        )
    rows = among(ids.clamp(max=graph.num_rows), graph.num_rows + 1)
    chosen = rows.index_select(0, graph.head)
    return chosen if mask is None else chosen & mask


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::count_edges")
    def _(rowptr: Tensor, mask: Tensor, other: Tensor | None, wide: bool) -> Tensor:
        dtype = torch.float64 if wide else torch.float32
        return rowptr.new_empty(rowptr.size(0) - 1, dtype=dtype)

    @torch.library.register_fake("kgrec_fast::edges_of_rows")
    def _(rowptr: Tensor, ids: Tensor, mask: Tensor | None, num_edges: int) -> Tensor:
        return rowptr.new_empty(num_edges, dtype=torch.bool)
