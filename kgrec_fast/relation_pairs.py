"""What edges have in common: the distinct pairs of a node and a relation.

Where a score of an edge (h, r, t) has parts that depend on (h, r) or (t, r) alone, these are made
once a pair, of which there are often far fewer than edges. A graph keeps what is made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph, register_pytree


@dataclass(frozen=True)
class NodePairs:
    """The pairs of a node and a relation on one side of the edges.

    Attributes:
        graph: Nodes x relations, an edge for each of the P pairs; their order is the caller's.
        of_edge: int64 [E], the pair of each edge of the knowledge graph, in its row order.
    """

    graph: InteractionGraph
    of_edge: Tensor

    @classmethod
    def of(cls, node: Tensor, num_nodes: int, graph: RelGraph) -> NodePairs:
        """From a node of each edge; O(E log E)."""
        relations = max(graph.num_relations, 1)
        distinct, of_edge = torch.unique(node.long() * relations + graph.rel, return_inverse=True)
        pairs = torch.stack([distinct // relations, distinct % relations])
        made = InteractionGraph.from_edges(
            pairs, num_users=num_nodes, num_items=graph.num_relations
        )
        made.columns()
        return cls(made, of_edge)


@dataclass(frozen=True)
class HeadRuns:
    """The edges as edges of their (head, relation), which are numbered relation by relation.

    Attributes:
        head: int64 [P], the head of each pair.
        counts: How many pairs each relation has.
        graph: P x nodes: from a pair to the tails of its edges. The order of its caller is the row
            order of the knowledge graph.
    """

    head: Tensor
    counts: tuple[int, ...]
    graph: InteractionGraph


for _cls in (NodePairs, HeadRuns):
    register_pytree(_cls)


def node_pairs(graph: RelGraph) -> tuple[NodePairs, NodePairs]:
    """Pairs of the heads and of the tails. Made when first asked for, then kept."""
    if graph.node_pairs is None:
        heads = NodePairs.of(graph.head, graph.num_rows, graph)
        graph._keep(node_pairs=(heads, NodePairs.of(graph.col, graph.num_cols, graph)))
    return graph.node_pairs  # type: ignore[return-value]


def head_runs(graph: RelGraph) -> HeadRuns:
    """Made when first asked for, which waits for the device; then kept."""
    if graph.head_runs is None:
        pairs, _ = node_pairs(graph)
        ptr, head, _, position, _ = pairs.graph.columns()
        # From the order of the pairs to that by relation.
        place = torch.empty_like(position)
        place[position.long()] = torch.arange(
            position.numel(), dtype=position.dtype, device=graph.device
        )
        ends = torch.stack([place.index_select(0, pairs.of_edge), graph.col])
        runs = InteractionGraph.from_edges(ends, num_users=head.numel(), num_items=graph.num_cols)
        runs.columns()
        graph._keep(head_runs=HeadRuns(head.long(), tuple(ptr.diff().tolist()), runs))
    return graph.head_runs  # type: ignore[return-value]
