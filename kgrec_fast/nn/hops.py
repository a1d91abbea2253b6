"""What the hops of a propagation read of a knowledge graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kgrec_fast.graph import EdgeMask, RelGraph, register_pytree
from kgrec_fast.ops._common import check_count, check_graph
from kgrec_fast.ops._edge_masks import count_edges

# A graph of its own for the later hops pays where they lose at least this share of the edges.
MIN_SAVING = 0.2


@dataclass(frozen=True)
class HopGraphs:
    """A knowledge graph for a first hop, and what is left of it for the later ones.

    After the first hop a node without edges of its own is zero. Edges to such nodes carry nothing
    any more: they count in the denominator of a softmax, and no kernel need read them. In a graph
    without inverse edges this is most of them. Built once with :meth:`of`; the layers take it where
    they take a graph.

    Attributes:
        first: The graph, A rows and N columns, where the nodes from A on have no edges.
        later: A x A, the edges of ``first`` whose tail has edges too; None where ``first`` serves.
        positions: int64 [E'], where these edges stand in ``first`` (row order), or None.
        outer: bool [E], the other edges, or None.
        leading: The edges that the first rows have in the later hops, [rows, A], for a last hop of
            which only these are wanted; None where that was not asked for.
        active: int64, the nodes with edges of their own, where there is no graph of its own for the
            later hops and these are at most half of all nodes; else None.
    """

    first: RelGraph
    later: RelGraph | None = None
    positions: Tensor | None = None
    outer: Tensor | None = None
    leading: RelGraph | None = None
    active: Tensor | None = None

    @classmethod
    @torch.inference_mode(False)  # it serves training too, wherever it was made
    def of(cls, graph: RelGraph, first_rows: int | None = None) -> HopGraphs:
        """Prepares a graph; O(E).

        Args:
            graph: A rows and N columns.
            first_rows: How many rows ``leading`` is to have, at most A; None for no such graph.
        """
        check_graph(graph, RelGraph)
        if first_rows is not None:
            first_rows = check_count("first_rows", first_rows)
        rows = graph.rowptr.diff() > 0
        has_edges = torch.zeros(graph.num_cols, dtype=torch.bool, device=graph.device)
        count = min(graph.num_rows, graph.num_cols)
        has_edges[:count] = rows[:count]
        inner = has_edges.index_select(0, graph.col)
        positions = inner.nonzero().flatten()
        if positions.numel() > (1 - MIN_SAVING) * graph.num_edges:
            active = has_edges.nonzero().flatten()
            return cls(
                graph,
                leading=_leading(graph, first_rows),
                active=active if 2 * active.numel() <= graph.num_cols else None,
            )
        later = RelGraph.from_edges(
            torch.stack([graph.head[positions], graph.col[positions]]),
            graph.rel[positions],
            num_nodes=graph.num_rows,
            num_relations=graph.num_relations,
        )
        return cls(graph, later, positions, ~inner, _leading(later, first_rows))

    def later_mask(self, mask: EdgeMask | None) -> EdgeMask | None:
        """A mask of ``first`` as one of the graph of the later hops."""
        if mask is None or self.later is None or self.positions is None:
            return mask
        return self.later.edge_mask(mask.row.index_select(0, self.positions), "row")

    def leading_mask(self, mask: EdgeMask | None) -> EdgeMask | None:
        """A mask of ``first`` as one of ``leading``, whose edges are the first of later hops."""
        if mask is None or self.leading is None:
            return None
        edges = self.leading.num_edges
        if self.positions is None:
            return self.leading.edge_mask(mask.row[:edges], "row")
        return self.leading.edge_mask(mask.row.index_select(0, self.positions[:edges]), "row")

    def count_outer(self, mask: EdgeMask | None, dtype: torch.dtype) -> Tensor | None:
        """How many edges of each row the later hops leave out: [A], or None for none at all."""
        if self.outer is None:
            return None
        return count_edges(self.first, self.outer, None if mask is None else mask.row, dtype)

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> HopGraphs:
        """The same on another device."""
        return HopGraphs(
            self.first.to(device),
            None if self.later is None else self.later.to(device),
            None if self.positions is None else self.positions.to(device),
            None if self.outer is None else self.outer.to(device),
            None if self.leading is None else self.leading.to(device),
            None if self.active is None else self.active.to(device),
        )


def _leading(graph: RelGraph, rows: int | None) -> RelGraph | None:
    if rows is None or rows >= graph.num_rows:
        return None
    edges = int(graph.rowptr[rows])
    return RelGraph.from_edges(
        torch.stack([graph.head[:edges], graph.col[:edges]]),
        graph.rel[:edges],
        num_rows=rows,
        num_cols=graph.num_cols,
        num_relations=graph.num_relations,
    )


register_pytree(HopGraphs)
