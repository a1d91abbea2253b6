"""Random splits by user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def held_out_counts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of a user's n interactions go into one held-out split.

    floor(n / 10), at least one where n >= 3: two held-out splits then leave something to train on.
    """
    return np.where(counts >= 3, np.maximum(counts // 10, 1), 0)


def _rank_in_user(users: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random rank for each interaction among those of its user: 0 .. n_u - 1. One sort."""
    noise = np.random.default_rng(seed).random(len(users))
    order = np.lexsort((noise, users))
    grouped = users[order]
    starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]]) if len(users) else grouped
    sizes = np.diff(np.r_[starts, len(users)])
    rank = np.empty(len(users), dtype=np.int64)
    rank[order] = np.arange(len(users)) - np.repeat(starts, sizes)
    return rank


def split_by_user(users: NDArray[np.int64], seed: int, *, held_out: int = 2) -> NDArray[np.int64]:
    """Assigns each interaction to a split, at random within its user.

    Args:
        users: int64 [M], the user of each interaction.
        seed: the same seed gives the same split.
        held_out: 2 to draw valid and test; 1 to draw valid alone.

    Returns:
        int64 [M], 0 for train, 1 for valid, 2 for test.

    Raises:
        ValueError: if `users` is not one-dimensional or has negative ids, or `held_out` is another
            number.
    """
    if held_out not in (1, 2):
        raise ValueError(f"held_out: expected 1 or 2, got {held_out}")
    users = np.asarray(users)
    if users.ndim != 1:
        raise ValueError(f"users: expected one dimension, got shape {list(users.shape)}")
    if users.size == 0:
        return np.zeros(0, dtype=np.int64)
    if users.min() < 0:
        raise ValueError(f"users: ids must not be negative, found {users.min()}")
    rank = _rank_in_user(users, seed)
    share = held_out_counts(np.bincount(users))[users]
    part = np.zeros(len(users), dtype=np.int64)
    part[rank < held_out * share] = 2 if held_out == 2 else 1
    if held_out == 2:
        part[rank < share] = 1
    return part
