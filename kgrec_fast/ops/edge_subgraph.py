"""The edges that a mask keeps, as a graph of their own."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.ops import _common

G = TypeVar("G", RelGraph, InteractionGraph)

# Results of the op, by the fields of a graph, and the positions of the edges in the whole one.
_ROW_ORDER = ("rowptr", "head", "col", "rel", "position", "perm", "part", "slot")
_COLUMN_ORDER = ("colptr", "col_row", "col_rel", "col_pos", "col_part")


def edge_subgraph(graph: G, edge_mask: EdgeMask | Tensor) -> tuple[G, Tensor]:
    """The graph of the unmasked edges, on the same nodes and relations.

    A pass over it gives what one with the mask gives (sums to the bit, attention up to rounding),
    and looks at no masked edge: a few passes make up for building it. How many edges it has depends
    on data: on CUDA this waits for the device, and it cannot be compiled. O(E).

    Args:
        graph: E edges.
        edge_mask: which of them to keep, an `EdgeMask` or bool [E] in the caller's order.

    Returns:
        The subgraph of n edges, and their positions in the row order of `graph`, int32 [n]. Its
        own order of the caller is row order; it has the column order where `graph` has it.

    Raises:
        TypeError, ValueError: an argument's type, shape or device does not fit.
    """
    mask = _checked(graph, edge_mask)
    if not _common.runs_cpu_op(mask.row.device):
        return edge_subgraph_reference(graph, mask)
    tensors = graph.tensors(columns=graph.colptr is not None)
    return _made(graph, *torch.ops.kgrec_fast.edge_subgraph(tensors, mask.row))


def edge_subgraph_reference(graph: G, edge_mask: EdgeMask | Tensor) -> tuple[G, Tensor]:
    """`edge_subgraph` in plain PyTorch."""
    mask = _checked(graph, edge_mask)
    position: Tensor = mask.row.nonzero().flatten()
    before = F.pad(mask.row.long().cumsum(0), (1, 0))
    row_order = [
        before[graph.rowptr],
        *(x[position] if x.numel() else x for x in (graph.head, graph.col, graph.rel)),
        position.int(),
        torch.arange(position.numel(), dtype=torch.int32, device=position.device),
        torch.stack([graph.part[0], before[graph.part[1]]]),
        graph.slot[position] if graph.slot.numel() else graph.slot,
    ]
    if graph.colptr is None:
        return _made(graph, *row_order, *[graph.rel] * 5)
    colptr, row, rel, pos, part = graph.columns()
    kept = mask.row[pos]
    order, col_before = kept.nonzero().flatten(), F.pad(kept.long().cumsum(0), (1, 0))
    return _made(
        graph,
        *row_order,
        col_before[colptr],
        row[order],
        rel[order] if rel.numel() else rel,
        before[pos[order]].int(),
        torch.stack([part[0], col_before[part[1]]]),
    )


def _checked(graph: object, edge_mask: object) -> EdgeMask:
    _common.check_graph(graph)
    assert isinstance(graph, RelGraph | InteractionGraph)
    if edge_mask is None:
        raise TypeError("edge_mask is None, expected a mask of the graph's edges")
    mask = _common.prepare_mask(graph, edge_mask)  # type: ignore[arg-type]
    assert mask is not None
    return mask


def _made(graph: G, *tensors: Tensor) -> tuple[G, Tensor]:
    """The subgraph from the results of the op, in their order."""
    made: dict[str, Any] = dict(zip((*_ROW_ORDER, *_COLUMN_ORDER), tensors, strict=True))
    position = made.pop("position")
    if graph.colptr is None:
        made.update(dict.fromkeys(_COLUMN_ORDER))
    made.update((f.name, None) for f in fields(graph) if f.kw_only)  # plans and other caches
    if isinstance(graph, RelGraph):
        made["relation_counts"] = None  # when asked for
    elif graph.weight is not None:
        made["weight"] = graph.weight.index_select(0, graph.perm.index_select(0, position))
    return replace(graph, **made)._plan_on_cuda(), position
