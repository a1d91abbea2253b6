"""From a finished run: recommendations, and the edges that speak for them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kgrec_fast.training.build import build_model, fingerprint, read_dataset
from kgrec_fast.training.checkpoint import (
    check_config,
    check_dataset,
    load_checkpoint,
    load_model,
)
from kgrec_fast.training.evaluation import UserItems, finite_embeddings, rank_block
from kgrec_fast.training.run_folder import RunFolder

if TYPE_CHECKING:
    from kgrec_fast.data.dataset import KGDataset
    from kgrec_fast.training.config import Config


@dataclass(frozen=True)
class LoadedRun:
    """A run's configuration, its data read anew, and the model of a checkpoint, in eval mode."""

    config: Config
    dataset: KGDataset
    model: nn.Module
    epoch: int


def load_run(folder: RunFolder, which: str = "best") -> LoadedRun:
    """Rebuilds a run from its folder.

    Args:
        folder: the run.
        which: ``best`` or ``last``.

    Raises:
        ConfigError, CheckpointError: if a file is missing or does not fit, or the data changed.
    """
    if which not in ("best", "last"):
        raise ValueError(f"which: got {which!r}, expected best or last")
    checkpoint = load_checkpoint(folder.best if which == "best" else folder.last)
    config = folder.read_config()
    check_config(checkpoint, config, "model")  # not every change of it would show in a shape
    dataset = read_dataset(config)
    check_dataset(checkpoint, fingerprint(dataset))
    model = build_model(dataset, config)
    load_model(model, checkpoint)
    return LoadedRun(config, dataset, model.eval(), checkpoint.metadata["epoch"])


def find_users(tokens: Sequence[str], names: Sequence[str]) -> Tensor:
    """The ids of users given by name.

    Args:
        tokens: the users that are asked for.
        names: the names of all users, as `KGDataset.user_tokens`.

    Returns:
        int64 ``[len(tokens)]``.

    Raises:
        ValueError: naming the first unknown one, and names like it.
    """
    place = {name: index for index, name in enumerate(names)}
    for token in tokens:
        if token not in place:
            close = difflib.get_close_matches(token, names, n=3, cutoff=0.5)
            hint = f", did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"user: got {token!r}, expected one of {len(names)} known users{hint}")
    return torch.tensor([place[token] for token in tokens], dtype=torch.int64)


def recommend(model: Any, dataset: Any, users: Tensor, k: int) -> list[list[tuple[int, float]]]:
    """The k best items of each user, leaving out every item known from any split.

    Args:
        model: anything with ``embeddings()``, users ``[U, D]`` and entities ``[N, D]``.
        dataset: the interactions, a `KGDataset`.
        users: int64 ``[B]``, ids of users.
        k: how many items at most.

    Returns:
        For each user a list of (item, score), best first.

    Raises:
        ValueError: if k is not positive, or the embeddings are not finite.
    """
    if k < 1:
        raise ValueError(f"k: got {k}, expected a positive integer")
    user_embedding, item_embedding = finite_embeddings(model, dataset.n_items)
    known = UserItems.of(dataset, "train", "valid", "test")
    values, items = rank_block(user_embedding, item_embedding, users, known, k)
    return [
        [(item, score) for item, score in zip(row, scores, strict=True) if score > -torch.inf]
        for row, scores in zip(items.tolist(), values.tolist(), strict=True)
    ]


def rationale_edges(
    scores: Tensor, edge_index: Tensor, items: Sequence[int], count: int
) -> dict[int, list[tuple[int, float]]]:
    """The best-scored edges of each item, as (edge id, score), best first.

    A score compares the edges of one head node, so the edges counted are those whose head is the
    item; of an item without any, those whose tail it is.

    Args:
        scores: ``[E]``, in the order of `edge_index` ``[2, E]``.
        items: node ids.
        count: how many edges an item at most.

    Returns:
        A list of (edge id, score) for each of `items`, in their order.
    """
    scores = scores.detach().cpu()
    result = {}
    for item in items:
        edges = torch.nonzero(edge_index[0] == item).flatten()
        if edges.numel() == 0:
            edges = torch.nonzero(edge_index[1] == item).flatten()
        best, order = torch.sort(scores[edges], descending=True, stable=True)
        chosen = edges[order[:count]].tolist()
        result[item] = list(zip(chosen, best[:count].tolist(), strict=True))
    return result
