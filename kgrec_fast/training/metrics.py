"""Ranking metrics over a block of users, from which of the ranked items were positives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

METRICS = ("recall", "ndcg", "precision", "hit", "mrr")


def check_cutoffs(ks: Iterable[int]) -> tuple[int, ...]:
    """The cutoffs, sorted and without repetition.

    Raises:
        ValueError: if there is none, or one is not a positive integer.
    """
    cutoffs = tuple(ks)
    for k in cutoffs:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"ks: got {k!r}, expected positive integers")
    if not cutoffs:
        raise ValueError("ks: got no cutoff, expected at least one positive integer")
    return tuple(sorted(set(cutoffs)))


def metric_names(ks: Iterable[int]) -> list[str]:
    """The names under which metrics are reported, ``recall@10`` and the like, in a fixed order."""
    return [f"{metric}@{k}" for metric in METRICS for k in check_cutoffs(ks)]


def ranking_metrics(hits: Tensor, positives: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Metrics of each user of a block.

    With h_j = 1 where the item at rank j (from 1) is a positive, and P positives of the user:

        recall@k    = sum_{j<=k} h_j / P
        precision@k = sum_{j<=k} h_j / k
        hit@k       = 1 if some h_j = 1, j <= k
        mrr@k       = 1 / (first j <= k with h_j = 1), else 0
        ndcg@k      = sum_{j<=k} h_j / log2(j + 1)  /  sum_{j<=min(k, P)} 1 / log2(j + 1)

    Args:
        hits: bool ``[U, K]``, best rank first. Where ``K < k`` the missing ranks are no hits.
        positives: integers ``[U]``, how many positives each user has, at least one.
        ks: the cutoffs.

    Returns:
        float64 ``[U]`` for each of `metric_names`.

    Raises:
        ValueError: if shapes or dtypes disagree with the above, or a user has no positive.
    """
    cutoffs = check_cutoffs(ks)
    if hits.dtype != torch.bool or hits.dim() != 2:
        raise ValueError(f"hits: got {hits.dtype} of {hits.dim()} dimensions, expected bool [U, K]")
    if positives.shape != hits.shape[:1]:
        raise ValueError(
            f"positives: got shape {tuple(positives.shape)}, expected ({hits.shape[0]},)"
        )
    if positives.numel() and int(positives.min()) < 1:
        raise ValueError("positives: got a user without positives, expected at least one each")
    # Beyond the ranks and the positives that there are nothing changes: no memory for it.
    most = int(positives.max()) if positives.numel() else 0
    deepest = min(cutoffs[-1], max(hits.shape[1], most, 1))
    gain = torch.zeros(hits.shape[0], deepest, dtype=torch.float64, device=hits.device)
    shown = min(deepest, hits.shape[1])
    gain[:, :shown] = hits[:, :shown].double()
    ranks = torch.arange(1, deepest + 1, dtype=torch.float64, device=hits.device)
    discount = 1.0 / torch.log2(ranks + 1.0)
    ideal = discount.cumsum(0)
    found = gain.cumsum(1)
    discounted = (gain * discount).cumsum(1)
    # Hits come first or not at all, so the best reciprocal rank up to k is that of the first hit.
    reciprocal = (gain / ranks).cummax(1).values
    wanted = positives.to(torch.float64)
    result: dict[str, dict[int, Tensor]] = {metric: {} for metric in METRICS}
    for k in cutoffs:
        depth = min(k, deepest)
        result["recall"][k] = found[:, depth - 1] / wanted
        result["precision"][k] = found[:, depth - 1] / float(k)
        result["hit"][k] = (found[:, depth - 1] > 0).double()
        result["mrr"][k] = reciprocal[:, depth - 1]
        result["ndcg"][k] = discounted[:, depth - 1] / ideal[positives.clamp(max=depth).long() - 1]
    return {f"{metric}@{k}": result[metric][k] for metric in METRICS for k in cutoffs}
