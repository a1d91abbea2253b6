"""Full-ranking evaluation: every item is ranked for every user, known items left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kgrec_fast.ops.topk_items import MAX_SCORES, topk_items
from kgrec_fast.training.metrics import check_cutoffs, metric_names, ranking_metrics

# Which interactions are known, hence not ranked, when a split is evaluated.
KNOWN_SPLITS = {"valid": ("train",), "test": ("train", "valid")}
DEFAULT_KS = (5, 10, 20)


class Recommender(Protocol):
    """What evaluation needs of a model: the scores are inner products of two embeddings."""

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Embeddings of users ``[n_users, D]`` and of nodes, items first, ``[>= n_items, D]``."""


@dataclass(frozen=True)
class UserItems:
    """The distinct items of each user, as sorted rows: ``items[rowptr[u]:rowptr[u + 1]]``."""

    rowptr: Tensor
    items: Tensor

    @classmethod
    def of(cls, dataset: Any, *splits: str) -> UserItems:
        """The interactions of one or more splits of a data set."""
        rowptr, items = dataset.by_user(*splits)
        return cls(rowptr=rowptr, items=items)

    def counts(self) -> Tensor:
        """Number of items of each user, int64 ``[n_users]``."""
        return self.rowptr[1:] - self.rowptr[:-1]

    def to(self, device: torch.device) -> UserItems:
        """The same on a device; no copy where it is there."""
        return UserItems(self.rowptr.to(device), self.items.to(device))


def rank_block(
    user_embedding: Tensor,
    item_embedding: Tensor,
    users: Tensor,
    known: UserItems,
    k: int,
    max_scores: int = MAX_SCORES,
) -> tuple[Tensor, Tensor]:
    """Scores and items of the k best unknown items of each user; known ones score ``-inf``.

    Returns:
        scores ``[U, min(k, n_items)]``, items int64 of the same shape, both on the CPU.
    """
    device = user_embedding.device
    known, users = known.to(device), users.to(device)
    values, items = topk_items(
        user_embedding[users], item_embedding, k, known.rowptr, known.items, users, max_scores
    )
    return values.cpu(), items.cpu()


def finite_embeddings(model: Recommender, n_items: int) -> tuple[Tensor, Tensor]:
    """User and item embeddings of a model in evaluation mode, without gradient.

    Raises:
        ValueError: if an embedding holds NaN or infinity, for which no ranking exists.
    """
    with torch.no_grad():
        user, entity = model.embeddings()
    item = entity[:n_items]
    for name, tensor in (("user", user), ("item", item)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"model: its {name} embeddings hold NaN or infinity, nothing to rank")
    return user.detach(), item.detach()


def evaluate(
    model: Any,
    dataset: Any,
    split: str = "valid",
    *,
    ks: Sequence[int] = DEFAULT_KS,
    max_scores: int = MAX_SCORES,
    stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Metrics of a split, averaged over the users who have items in it.

    Items known from training (for ``test`` from validation too) are not ranked. Time
    O(U I D), memory O(`max_scores`): never more than a block of users x items.

    Args:
        model: anything with ``embeddings()`` and, if it is a module, ``eval()`` and ``train()``.
        dataset: the interactions, a `KGDataset`.
        split: ``valid`` or ``test``.
        ks: the cutoffs.
        max_scores: upper bound for the scores held at once (one user's row at least).
        stop: asked between blocks; where it says true, the evaluation is given up.

    Returns:
        ``{"recall@5": ..., ...}``, unrounded.

    Raises:
        ValueError: if the split is unknown or empty, or the embeddings are not finite.
        InterruptedError: if `stop` said so.
    """
    if split not in KNOWN_SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(KNOWN_SPLITS)}")
    cutoffs = check_cutoffs(ks)
    if max_scores < 1:
        raise ValueError(f"max_scores: got {max_scores}, expected a positive integer")
    n_users, n_items = dataset.n_users, dataset.n_items
    wanted = UserItems.of(dataset, split)
    known = UserItems.of(dataset, *KNOWN_SPLITS[split])
    counts = wanted.counts()
    users = torch.nonzero(counts).flatten()
    if users.numel() == 0:
        raise ValueError(f"split: got {split!r}, which has no interactions, expected some")
    # (user, item) as one sorted key: membership of a ranked item is a binary search.
    keys = torch.repeat_interleave(torch.arange(n_users), counts) * n_items
    keys += wanted.items

    was_training = getattr(model, "training", False)
    if was_training:
        model.eval()
    try:
        user_embedding, item_embedding = finite_embeddings(model, n_items)
        known = known.to(user_embedding.device)
        totals = dict.fromkeys(metric_names(cutoffs), 0.0)
        for block in users.split(max(1, max_scores // n_items)):
            if stop is not None and stop():
                raise InterruptedError("the evaluation was interrupted")
            values, items = rank_block(
                user_embedding, item_embedding, block, known, cutoffs[-1], max_scores
            )
            query = block[:, None] * n_items + items
            place = torch.searchsorted(keys, query).clamp_(max=keys.numel() - 1)
            hits = (keys[place] == query) & (values > -torch.inf)
            for name, value in ranking_metrics(hits, counts[block], cutoffs).items():
                totals[name] += float(value.sum())
    finally:
        if was_training:
            model.train()
    return {name: total / users.numel() for name, total in totals.items()}
