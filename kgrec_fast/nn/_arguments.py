"""What the layers accept: embeddings, raw edges or graphs, masks."""

from __future__ import annotations

from torch import Tensor

from kgrec_fast._numbers import check_int
from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.graph_cache import as_interaction_graph, as_rel_graph
from kgrec_fast.nn.hops import HopGraphs
from kgrec_fast.ops._common import (
    FLOAT_TYPES,
    accumulate_dtype,
    check_dense,
    is_autocast,
    prepare_mask,
)

Mask = EdgeMask | Tensor | None


def check_size(name: str, value: object, least: int = 1) -> int:
    """``value`` as an int, where it is one and not too small."""
    size = check_int(name, value)
    if size < least:
        raise ValueError(f"{name} is {size}, expected at least {least}")
    return size


def check_floating(name: str, x: object, like: Tensor | None = None) -> None:
    """Raises where ``x`` is no dense floating tensor, or of a type that does not go with ``like``:
    but for autocast that is its own, or that of its sums.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor")
    if x.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} has dtype {x.dtype}, expected a floating type")
    check_dense(name, x)
    if like is None or x.dtype in (like.dtype, accumulate_dtype(like.dtype)) or is_autocast(x):
        return
    raise TypeError(f"{name} has dtype {x.dtype}, expected {like.dtype}")


def check_embedding(name: str, x: Tensor, width: int, like: Tensor | None = None) -> None:
    """Raises where ``x`` is no floating tensor [n, width], or not of the type of ``like``."""
    check_floating(name, x)
    if like is not None and x.dtype != like.dtype and not is_autocast(x):
        raise TypeError(f"{name} has dtype {x.dtype}, expected {like.dtype}, as the layer")
    if x.dim() != 2 or x.shape[1] != width:
        raise ValueError(f"{name} has shape {list(x.shape)}, expected [n, {width}]")


def resolve_hops(
    edge_index: Tensor | RelGraph | HopGraphs,
    edge_type: Tensor | None,
    nodes: int,
    relations: int,
    first_relation: int = 0,
) -> HopGraphs:
    """The knowledge graph that ``edge_index, edge_type`` stand for.

    ``first_relation`` is the lowest id in a tensor ``edge_type``.

    Raises:
        TypeError, ValueError: They are neither two tensors nor a graph of that size and None.
    """
    if not isinstance(edge_index, RelGraph | HopGraphs):
        if not isinstance(edge_index, Tensor):
            raise TypeError(
                f"edge_index is a {type(edge_index).__name__}, expected a tensor of edges, a "
                "RelGraph or a HopGraphs"
            )
        if edge_type is None:
            raise ValueError("edge_type is None, expected the relation of each edge")
        return HopGraphs(
            as_rel_graph(edge_index, edge_type, nodes, nodes, relations, first_relation)
        )
    if edge_type is not None:
        raise ValueError("edge_type is given together with a graph, expected None")
    hops = HopGraphs(edge_index) if isinstance(edge_index, RelGraph) else edge_index
    graph = hops.first
    found = (graph.num_rows, graph.num_cols, graph.num_relations)
    if found[0] > nodes or found[1] > nodes or found[2] > relations:
        raise ValueError(
            f"edge_index is a graph with {found[0]} rows, {found[1]} columns and {found[2]} "
            f"relations, expected at most {nodes}, {nodes} (rows of entity_emb) and {relations}"
        )
    return hops


def resolve_graph(
    entity_emb: Tensor,
    width: int,
    edge_index: Tensor | RelGraph,
    edge_type: Tensor | None,
    relations: int,
    edge_mask: Mask,
    like: Tensor,
) -> tuple[RelGraph, EdgeMask | None]:
    """The graph of a layer that makes one hop over ``entity_emb`` [N, width], and its mask.

    ``like`` is a parameter of the layer, in whose type the embeddings should be.

    Raises:
        TypeError, ValueError: As :func:`check_embedding` and :func:`resolve_hops`.
    """
    check_embedding("entity_emb", entity_emb, width, like)
    graph = resolve_hops(edge_index, edge_type, entity_emb.shape[0], relations).first
    return graph, prepare_mask(graph, edge_mask)


def resolve_interactions(
    inter_edge: Tensor | InteractionGraph, users: int, items: int, exact: bool
) -> InteractionGraph:
    """The interaction graph that ``inter_edge`` stands for.

    Args:
        inter_edge: int64 [2, M] or a graph.
        users: Rows it must have.
        items: Columns it must have (``exact``), or may have at most.
        exact: Which of the two.

    Raises:
        TypeError, ValueError: It is neither a tensor of edges nor a graph of that size.
    """
    if not isinstance(inter_edge, InteractionGraph):
        return as_interaction_graph(inter_edge, users, items, name="inter_edge")
    found = inter_edge.num_cols
    if inter_edge.num_rows != users or (found != items if exact else found > items):
        raise ValueError(
            f"inter_edge is an InteractionGraph of {inter_edge.num_rows} users and {found} items, "
            f"expected {users} users and {'' if exact else 'at most '}{items} items"
        )
    return inter_edge


def resolve_weight(
    inter: InteractionGraph, inter_edge_w: Tensor | None, x: Tensor
) -> Tensor | None:
    """The weights of interactions that are to be summed over, those given or the graph's own.

    Raises:
        TypeError, ValueError: They are no tensor [M] of a type that goes with ``x``.
    """
    if inter_edge_w is None:
        return inter.weight
    check_edge_values("inter_edge_w", inter_edge_w, inter, x)
    return inter_edge_w


def check_edge_values(
    name: str, values: Tensor, graph: RelGraph | InteractionGraph, x: Tensor
) -> None:
    """Raises where ``values`` is no tensor [E] of a type that goes with ``x``."""
    check_floating(name, values, x)
    if values.shape != (graph.num_edges,):
        raise ValueError(f"{name} has shape {list(values.shape)}, expected [{graph.num_edges}]")
