"""Negative items and batches of (user, item, negative item)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgrec_fast.data.dataset import KGDataset


class NegativeSampler:
    """Draws items that a user has not touched in training, uniformly.

    Without rejection: with the training items t_0 < t_1 < ... of a user, the item at place k among
    the untouched ones is k + #{j: t_j - j <= k}. The numbers t_j - j ascend, so offset by
    user * n_items they form one sorted array for all users, and a draw is one binary search.

    Args:
        dataset: its training interactions are what a user has touched.

    Raises:
        ValueError: if a user has touched every item.

    Complexity: a sort of the M training interactions once; O(log M) a draw. Memory O(M).
    """

    def __init__(self, dataset: KGDataset) -> None:
        ptr, items = dataset.by_user("train")
        degree = ptr.diff()
        full = torch.nonzero(degree >= dataset.n_items).flatten()
        if full.numel():
            user = int(full[0])
            raise ValueError(
                f"dataset: user {user} ({dataset.user_tokens[user]}) has touched all "
                f"{dataset.n_items} items in training, so that no negative item is left"
            )
        users = torch.repeat_interleave(torch.arange(dataset.n_users), degree)
        place = torch.arange(len(items)) - ptr[users]
        self.n_items = dataset.n_items
        self._ptr = ptr[:-1]
        self._free = dataset.n_items - degree
        self._gaps = users * dataset.n_items + items - place

    def sample(self, users: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws one negative item for each entry of `users` (int64, any shape)."""
        free = self._free[users]
        # The remainder of 62 random bits is uniform to within n_items / 2^62.
        draw = torch.randint(2**62, users.shape, generator=generator) % free
        below = torch.searchsorted(self._gaps, users * self.n_items + draw, right=True)
        return draw + below - self._ptr[users]


class PairLoader:
    """Batches of training pairs in random order, each with a fresh negative item.

    An epoch is a function of (seed, epoch number) alone, so that `state_dict` is three numbers and
    a run continued from it, in the middle of an epoch too, sees the same batches as one that was
    never interrupted. Iterating anew starts the next epoch.

    Args:
        dataset: where the training pairs are.
        batch_size: pairs a batch; the last one of an epoch may be shorter.
        seed: of order and negatives.
        device: where the batches are put; they are drawn on the CPU and the same everywhere.

    Yields:
        `{"user_id": int64 [B], "item_id": int64 [B], "neg_item_id": int64 [B]}`.

    Raises:
        ValueError: if `batch_size` is not positive, there are no training pairs, or a user has
            touched every item.
    """

    def __init__(
        self,
        dataset: KGDataset,
        batch_size: int = 2048,
        *,
        seed: int = 2024,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed: expected a number that is not negative, got {seed}")
        if dataset.train.shape[1] == 0:
            raise ValueError("dataset: there are no training interactions")
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.epoch = 0  # the epoch under way, or the next one
        self._position = 0  # batches of it already handed out
        self._resume = False
        self._pairs = dataset.train
        self._sampler = NegativeSampler(dataset)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self._pairs.shape[1] // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._position and not self._resume:  # an epoch left early counts as over
            self.epoch += 1
            self._position = 0
        self._resume = False
        columns = self._draw_epoch()
        for start in range(self._position * self.batch_size, len(columns[0]), self.batch_size):
            user, item, negative = (x[start : start + self.batch_size] for x in columns)
            self._position += 1
            yield {"user_id": user, "item_id": item, "neg_item_id": negative}
        self.epoch += 1
        self._position = 0

    def _draw_epoch(self) -> tuple[Tensor, Tensor, Tensor]:
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(self._pairs.shape[1], generator=generator)
        user, item = self._pairs[:, order]
        negative = self._sampler.sample(user, generator)
        return user.to(self.device), item.to(self.device), negative.to(self.device)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands; holds plain numbers only."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state: the next iteration yields what is left of its epoch.

        Raises:
            ValueError: if a number is missing or out of range.
        """
        wanted = ("seed", "epoch", "position")
        missing = [key for key in wanted if key not in state]
        if missing:
            raise ValueError(f"state: {missing[0]!r} is missing; found {sorted(state)}")
        seed, epoch, position = (int(state[key]) for key in wanted)
        if min(seed, epoch, position) < 0 or position > len(self):
            raise ValueError(
                f"state: seed and epoch must not be negative and position lie in [0, {len(self)}], "
                f"got {seed}, {epoch}, {position}"
            )
        self.seed, self.epoch, self._position = seed, epoch, position
        self._resume = True
