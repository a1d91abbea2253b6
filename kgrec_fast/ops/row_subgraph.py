"""The edges of a few rows, as a graph of their own."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.graph_build import (
    check_edges,
    check_ids,
    partition,
    pointers,
    relation_slots,
    sort_by,
)
from kgrec_fast.ops import _common

G = TypeVar("G", RelGraph, InteractionGraph)


def row_subgraph(
    graph: G,
    ids: Tensor,
    edge_mask: EdgeMask | Tensor | None = None,
    own_nodes: bool = False,
) -> tuple[G, Tensor, Tensor]:
    """The graph of the edges of some rows: what the last hop of a batch reads.

    How many edges it has depends on data: on CUDA this waits for the device, and it cannot be
    compiled. On the CPU O(ids + their edges + columns + relations).

    Args:
        graph: E edges.
        ids: int64 [n], the rows, which are those of the subgraph in this order. One that is named
            twice has its edges twice.
        edge_mask: which edges of `graph` count, an `EdgeMask` or bool [E] in the caller's order.
        own_nodes: whether the columns of the subgraph are nodes of its own, `ids` and then each of
            the tails once, in place of the columns of `graph`.

    Returns:
        The subgraph of m edges, without weights, with its column order, its own order of the caller
        being row order; the positions of its edges in the row order of `graph`, int32 [m]; and its
        nodes, int64, none without `own_nodes`.

    Raises:
        TypeError, ValueError: an argument's type, shape, device or range does not fit.
    """
    mask = _checked(graph, ids, edge_mask)
    if ids.is_cuda or not _common.runs_native(ids.device):
        return row_subgraph_reference(graph, ids, mask, own_nodes)
    row_mask = None if mask is None else mask.row
    made = torch.ops.kgrec_fast.row_subgraph(
        graph.tensors(columns=False), row_mask, ids.contiguous(), own_nodes, graph.num_cols,
        graph.num_relations,
    )  # fmt: skip
    return _made(graph, own_nodes, *made)


def row_subgraph_reference(
    graph: G,
    ids: Tensor,
    edge_mask: EdgeMask | Tensor | None = None,
    own_nodes: bool = False,
) -> tuple[G, Tensor, Tensor]:
    """`row_subgraph` in plain PyTorch; its own nodes stand in another order."""
    mask = _checked(graph, ids, edge_mask)
    start = graph.rowptr[ids]
    count = graph.rowptr[ids + 1] - start
    head = torch.repeat_interleave(count)
    first = (start - count.cumsum(0) + count)[head]
    position = first + torch.arange(head.numel(), device=ids.device)
    if mask is not None:
        kept = mask.row[position]
        head, position = head[kept], position[kept]
    tail, nodes, cols = graph.col[position].long(), ids[:0], graph.num_cols
    if own_nodes:
        tails, tail = torch.unique(tail, return_inverse=True)
        nodes = torch.cat([ids, tails])
        tail, cols = tail + ids.numel(), nodes.numel()
    rel = graph.rel[position] if graph.rel.numel() else graph.rel
    order = sort_by(tail, rel if rel.numel() else None, graph.num_relations)
    return _made(
        graph,
        own_nodes,
        pointers(head, ids.numel()),
        head.int(),
        tail.int(),
        rel,
        position.int(),
        pointers(tail, cols),
        head[order].int(),
        rel[order] if rel.numel() else rel,
        order.int(),
        nodes,
    )


def _checked(graph: object, ids: Tensor, edge_mask: EdgeMask | Tensor | None) -> EdgeMask | None:
    _common.check_graph(graph)
    assert isinstance(graph, RelGraph | InteractionGraph)
    check_edges("ids", ids, None)
    if ids.dtype != torch.int64:
        raise TypeError(f"ids has dtype {ids.dtype}, expected torch.int64")
    _common.check_device("ids", ids, graph.device)
    check_ids("ids", ids, graph.num_rows, "rows")
    return _common.prepare_mask(graph, edge_mask)


def _made(graph: G, own_nodes: bool, *tensors: Tensor) -> tuple[G, Tensor, Tensor]:
    """The subgraph from the results of the op, in their order."""
    rowptr, head, col, rel, position, colptr, col_row, col_rel, col_pos, nodes = tensors
    part, empty = partition(rowptr), head.new_empty(0)
    slots = (empty, rowptr.new_zeros(1), empty)
    if graph.num_relations:
        slots = relation_slots(part, rel, graph.num_relations)
    made: dict[str, Any] = {
        "rowptr": rowptr,
        "head": head,
        "col": col,
        "rel": rel,
        "perm": torch.arange(head.numel(), dtype=torch.int32, device=head.device),
        "part": part,
        "slot": slots[0],
        "slot_ptr": slots[1],
        "slot_perm": slots[2],
        "colptr": colptr,
        "col_row": col_row,
        "col_rel": col_rel,
        "col_pos": col_pos,
        "col_part": partition(colptr),
        "num_rows": rowptr.numel() - 1,
        "num_cols": colptr.numel() - 1,
        "num_relations": graph.num_relations,
    }
    if isinstance(graph, RelGraph):
        made["relation_counts"] = None  # when asked for
    else:
        made["weight"] = None
    return type(graph)(**made)._plan_on_cuda(), position, nodes
