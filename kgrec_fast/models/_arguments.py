"""What the model accepts: graphs that fit its sizes, batches of ids."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph

Batch = Mapping[str, Tensor]


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


def batch_ids(batch: Batch, name: str, size: int, like: Tensor | None = None) -> Tensor:
    """Ids [B] of a batch.

    Args:
        batch: Tensors by name.
        name: The one that is wanted.
        size: The ids are below it. Checked on CPU, elsewhere the check would stall the device.
        like: Other ids, whose shape is expected.

    Raises:
        TypeError, ValueError: They are not what is expected.
    """
    if isinstance(batch, Tensor) or not hasattr(batch, "__getitem__"):
        raise TypeError(f"batch is a {type(batch).__name__}, expected a mapping of tensors")
    try:
        ids = batch[name]
    except KeyError:
        raise ValueError(f"batch has no {name!r}, expected int64 ids under that name") from None
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        found = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} is {found}, expected an int64 tensor")
    wanted = "[B]" if like is None else f"{list(like.shape)}, as user_id"
    if ids.dim() != 1 or (like is not None and ids.shape != like.shape):
        raise ValueError(f"{name} has shape {list(ids.shape)}, expected {wanted}")
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= size:
            raise ValueError(
                f"{name} holds {low if low < 0 else high}, expected ids in [0, {size})"
            )
    return ids.long()
