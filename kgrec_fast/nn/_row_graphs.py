"""Some of the edges as graphs of their own: those of a few rows, or those that a mask keeps.

A mask says the same, but a pass over it still looks at every edge, and writes every row. How many
edges there are depends on data, so this is for the CPU in eager mode; elsewhere a mask serves.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.ops._common import keeps_to_ops, readable
from kgrec_fast.ops.edge_subgraph import edge_subgraph
from kgrec_fast.ops.row_subgraph import graph_of_rows

# Rows of the graph for one that is read, from which on a graph of their own pays.
SPARSE = 4
# Interactions from which on a subgraph of those that a mask keeps pays (measured).
MANY_INTERACTIONS = 1 << 17


def _may_ask(x: Tensor) -> bool:
    """Whether shapes may depend on values of ``x``."""
    return readable(x) and not keeps_to_ops()


def pays(graph: RelGraph | InteractionGraph, ids: Tensor) -> bool:
    """Whether the rows ``ids`` (int64) are few, and how many edges they have may be asked."""
    return SPARSE * ids.numel() <= graph.num_rows and _may_ask(ids)


def unmasked_interactions(
    graph: InteractionGraph, weight: Tensor | None, mask: EdgeMask | None
) -> tuple[InteractionGraph, Tensor | None, EdgeMask | None]:
    """The interactions that a mask keeps, for several passes over them, their weights, and no mask.

    Where their number may not be asked, or all are few, all of them and the mask.

    Args:
        graph: All interactions.
        weight: [M], their weights in the caller's order, or None.
        mask: Which interactions count; None for all.
    """
    if mask is None or graph.num_edges < MANY_INTERACTIONS or not _may_ask(mask.row):
        return graph, weight, mask
    kept, _ = edge_subgraph(replace(graph, weight=weight), mask)
    return kept, kept.weight, None


def unmasked_triples(graph: RelGraph, mask: EdgeMask | None) -> tuple[RelGraph, EdgeMask | None]:
    """The triples that a mask keeps, for attention over them and its gradients, and no mask.

    Where their number may not be asked, all of them and the mask.
    """
    if mask is None or not _may_ask(mask.row):
        return graph, mask
    return edge_subgraph(graph, mask)[0], None


def interactions_of(
    graph: InteractionGraph, weight: Tensor | None, ids: Tensor, mask: EdgeMask | None
) -> tuple[InteractionGraph, Tensor | None]:
    """The interactions of the users ``ids``, who are its users in this order, and their weights.

    Args:
        graph: All interactions.
        weight: [M], their weights in the caller's order, or None.
        ids: int64 [n].
        mask: Which interactions count.
    """
    chosen, position, _ = graph_of_rows(graph, ids, mask, own_nodes=False)
    if weight is not None:
        weight = weight.index_select(0, graph.perm.index_select(0, position))
    return chosen, weight


def triples_of(graph: RelGraph, ids: Tensor, mask: EdgeMask | None) -> tuple[RelGraph, Tensor]:
    """The triples of the heads ``ids``, over what they reach of the nodes alone.

    Args:
        graph: The knowledge graph.
        ids: int64 [n].
        mask: Which edges count.

    Returns:
        A graph of n rows, and its nodes (int64): ``ids``, then the tails, each once.
    """
    chosen, _, nodes = graph_of_rows(graph, ids, mask, own_nodes=True)
    return chosen, nodes
