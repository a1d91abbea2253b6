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

# Results of the op, by the fields of a graph, the positions of its edges and its nodes.
_RESULTS = (
    *("rowptr", "head", "col", "rel", "position", "perm", "part", "slot", "slot_ptr", "slot_perm"),
    *("colptr", "col_row", "col_rel", "col_pos", "col_part", "nodes"),
)


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
    return graph_of_rows(graph, ids, mask, own_nodes)


def graph_of_rows(
    graph: G, ids: Tensor, mask: EdgeMask | None, own_nodes: bool
) -> tuple[G, Tensor, Tensor]:
    """`row_subgraph` of operands that are known to fit: Python looks at no value of them."""
    if not _common.runs_cpu_op(ids.device):
        return row_subgraph_reference(graph, ids, mask, own_nodes)
    row_mask = None if mask is None else mask.row
    made = torch.ops.kgrec_fast.row_subgraph(
        graph.tensors(columns=False), row_mask, ids.contiguous(), own_nodes, graph.num_cols,
        graph.num_relations,
    )  # fmt: skip
    return _made(graph, *made)


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
    rowptr, colptr = pointers(head, ids.numel()), pointers(tail, cols)
    part = partition(rowptr)
    none = rel.new_empty(0)
    slots: tuple[Tensor, Tensor, Tensor] = none, rowptr.new_zeros(1), none
    if graph.num_relations:
        slots = relation_slots(part, rel, graph.num_relations)
    perm = torch.arange(head.numel(), dtype=torch.int32, device=ids.device)
    rows = rowptr, head.int(), tail.int(), rel, position.int(), perm, part, *slots
    col_rel = rel[order] if rel.numel() else rel
    columns = colptr, head[order].int(), col_rel, order.int(), partition(colptr)
    return _made(graph, *rows, *columns, nodes)


def _checked(graph: object, ids: Tensor, edge_mask: EdgeMask | Tensor | None) -> EdgeMask | None:
    _common.check_graph(graph)
    assert isinstance(graph, RelGraph | InteractionGraph)
    check_edges("ids", ids, None)
    if ids.dtype != torch.int64:
        raise TypeError(f"ids has dtype {ids.dtype}, expected torch.int64")
    _common.check_device("ids", ids, graph.device)
    check_ids("ids", ids, graph.num_rows, "rows")
    return _common.prepare_mask(graph, edge_mask)


def _made(graph: G, *tensors: Tensor) -> tuple[G, Tensor, Tensor]:
    """The subgraph from the results of the op, in their order."""
    made: dict[str, Any] = dict(zip(_RESULTS, tensors, strict=True))
    position, nodes = made.pop("position"), made.pop("nodes")
    made["num_rows"] = made["rowptr"].numel() - 1
    made["num_cols"] = made["colptr"].numel() - 1
    if isinstance(graph, RelGraph):
        made["relation_counts"] = None  # when asked for
    else:
        made["weight"] = None
    subgraph = type(graph)(**made, num_relations=graph.num_relations)
    return subgraph._plan_on_cuda(), position, nodes
