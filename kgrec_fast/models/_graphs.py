"""The graphs of the model: whether they fit its sizes, and the form in which it keeps them."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph


def check_graphs(
    n_users: int,
    n_items: int,
    n_entities: int,
    n_relations: int,
    kg: RelGraph,
    interactions: InteractionGraph,
) -> None:
    """Raises TypeError or ValueError where a graph does not fit the sizes."""
    if not isinstance(kg, RelGraph):
        raise TypeError(f"kg is a {type(kg).__name__}, expected a RelGraph")
    if not isinstance(interactions, InteractionGraph):
        raise TypeError(
            f"interactions is a {type(interactions).__name__}, expected an InteractionGraph"
        )
    if not 1 <= n_items <= n_entities:
        raise ValueError(f"n_items is {n_items}, expected it in [1, {n_entities}] (n_entities)")
    found = (kg.num_rows, kg.num_cols, kg.num_relations)
    if found != (n_entities, n_entities, n_relations - 1):
        raise ValueError(
            f"kg has {found[0]} rows, {found[1]} columns and {found[2]} relations, expected "
            f"{n_entities}, {n_entities} (n_entities) and {n_relations - 1} (n_relations - 1)"
        )
    if (interactions.num_rows, interactions.num_cols) != (n_users, n_items):
        raise ValueError(
            f"interactions has {interactions.num_rows} users and {interactions.num_cols} items, "
            f"expected {n_users} (n_users) and {n_items} (n_items)"
        )
    if interactions.device != kg.device:
        raise ValueError(f"interactions is on {interactions.device}, expected {kg.device}, as kg")


def compact(kg: RelGraph, n_items: int) -> RelGraph:
    """The graph without its last rows, as far as they have no edges and are no items.

    One of them stays, for all the others: their messages are zero, as this one's are. Masks in row
    order fit both. Number the nodes with edges before those without, and nothing of the latter's
    size is written in later hops.
    """
    last = int(kg.head[-1]) if kg.num_edges else -1  # row order: the largest head
    rows = max(n_items, last + 1) + 1
    if rows >= kg.num_rows:
        return kg
    return RelGraph.from_edges(
        kg.edge_index,
        kg.edge_type,
        num_rows=rows,
        num_cols=kg.num_cols,
        num_relations=kg.num_relations,
    )


def weights_of(interactions: InteractionGraph) -> tuple[Tensor | None, Tensor | None]:
    """Weights of the interactions: [M] in the caller's order, and in their place [U] where all
    interactions of a user weigh the same. Without any, 1 / (degree of the user + 1e-7).
    """
    weight, degree = interactions.weight, interactions.rowptr.diff()
    if weight is None:
        return None, 1 / (degree.to(torch.get_default_dtype()) + 1e-7)
    by_row = interactions.to_row_order(weight)
    first = interactions.rowptr[:-1].clamp(max=max(by_row.numel() - 1, 0))
    per_user = by_row.index_select(0, first) if by_row.numel() else degree.to(weight.dtype)
    if torch.equal(per_user.index_select(0, interactions.head), by_row) and bool(
        (by_row > 0).all()
    ):
        return None, per_user
    return weight, None
