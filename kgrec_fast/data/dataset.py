"""The one form in which data reach training: tensors of ids, and tokens for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SPLITS = ("train", "valid", "test")


def _check_ids(name: str, value: Tensor, limit: int, what: str) -> None:
    if value.numel() == 0:
        return
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= limit:
        raise ValueError(f"{name}: {what} ids must lie in [0, {limit}), found {low} to {high}")


@dataclass(frozen=True)
class KGDataset:
    """Interactions in three splits, and the knowledge graph over items and other entities.

    Nodes are numbered items first (0 .. n_items - 1), then the other entities. There is no padding
    row. The interactions of a split are distinct (user, item) pairs, and a pair stands in one split
    only (the published splits of the paper's layout excepted, see `load_kgat`).

    Attributes:
        n_users, n_items: numbers of users and items.
        n_entities: number of all nodes, items included.
        n_relations: relations of the knowledge graph plus one for the interactions, which is how
            KGRec counts them; ids in `edge_type` run from 0 to n_relations - 2.
        edge_index: int64 [2, E], head and tail node of each triple.
        edge_type: int64 [E], its relation.
        train, valid, test: int64 [2, M], user and item of each interaction.
        user_tokens, item_tokens: names, one a user and one an item.
        entity_tokens: names of all nodes; the node of a linked item bears its entity's name.
        relation_tokens: names of the n_relations - 1 relations.
        truth: bool [E] where it is known which edges are rationales (synthetic data), else None.
        name: what the data set is called in reports.
        notes: sentences on what the reader did that a user may want to know.

    Raises:
        TypeError, ValueError: on construction, for a tensor of another type or shape, an id out
            of range, a pair that stands twice in a split or a list of tokens of another length.
    """

    n_users: int
    n_items: int
    n_entities: int
    n_relations: int
    edge_index: Tensor
    edge_type: Tensor
    train: Tensor
    valid: Tensor
    test: Tensor
    user_tokens: Sequence[str] = field(repr=False)
    item_tokens: Sequence[str] = field(repr=False)
    entity_tokens: Sequence[str] = field(repr=False)
    relation_tokens: Sequence[str] = field(repr=False)
    truth: Tensor | None = None
    name: str = "data"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("edge_index", *SPLITS):
            value = getattr(self, name)
            self._check_tensor(name, value, torch.int64)
            if value.ndim != 2 or value.shape[0] != 2:
                raise ValueError(f"{name}: expected shape [2, n], got {list(value.shape)}")
        self._check_tensor("edge_type", self.edge_type, torch.int64)
        edges = self.edge_index.shape[1]
        if self.edge_type.shape != (edges,):
            raise ValueError(
                f"edge_type: expected shape [{edges}], got {list(self.edge_type.shape)}"
            )
        if self.truth is not None:
            self._check_tensor("truth", self.truth, torch.bool)
            if self.truth.shape != (edges,):
                raise ValueError(f"truth: expected shape [{edges}], got {list(self.truth.shape)}")
        if self.n_entities < self.n_items:
            raise ValueError(
                f"n_entities: expected at least n_items = {self.n_items}, got {self.n_entities}"
            )
        _check_ids("edge_index", self.edge_index, self.n_entities, "node")
        _check_ids("edge_type", self.edge_type, self.n_relations - 1, "relation")
        for name in SPLITS:
            _check_ids(f"{name}[0]", getattr(self, name)[0], self.n_users, "user")
            _check_ids(f"{name}[1]", getattr(self, name)[1], self.n_items, "item")
        for name in SPLITS:
            self._check_distinct(name)
        for name, size in (
            ("user_tokens", self.n_users),
            ("item_tokens", self.n_items),
            ("entity_tokens", self.n_entities),
            ("relation_tokens", self.n_relations - 1),
        ):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name}: expected {size} names, got {len(getattr(self, name))}")

    @staticmethod
    def _check_tensor(name: str, value: Any, dtype: torch.dtype) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
        if value.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")

    def _check_distinct(self, name: str) -> None:
        # Of a pair given twice the negative sampler and the metrics would make wrong numbers.
        user, item = self.split(name)
        key = (user * self.n_items + item).sort().values
        twice = key[1:][key[1:] == key[:-1]]
        if twice.numel():
            pair = divmod(int(twice[0]), self.n_items)
            raise ValueError(f"{name}: expected distinct (user, item) pairs, found {pair} twice")

    @property
    def n_edges(self) -> int:
        """Number of triples, inverse ones included where they were added."""
        return self.edge_index.shape[1]

    @property
    def n_interactions(self) -> int:
        """Number of interactions in all three splits."""
        return sum(self.split(name).shape[1] for name in SPLITS)

    def split(self, name: str) -> Tensor:
        """Returns the interactions of "train", "valid" or "test": int64 [2, M]."""
        if name not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {name!r}")
        pairs: Tensor = getattr(self, name)
        return pairs

    def by_user(self, *splits: str) -> tuple[Tensor, Tensor]:
        """Groups the interactions of one or more splits by user.

        Returns:
            ptr, int64 [n_users + 1], and items, int64 [M]; the items of user u, in ascending
            order, are ``items[ptr[u]:ptr[u + 1]]``.

        Complexity: one sort of the M interactions.
        """
        if not splits:
            raise ValueError("splits: expected at least one of " + ", ".join(SPLITS))
        pairs = torch.cat([self.split(name) for name in splits], dim=1)
        key = (pairs[0] * self.n_items + pairs[1]).sort().values
        ptr = torch.zeros(self.n_users + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(pairs[0], minlength=self.n_users), dim=0, out=ptr[1:])
        return ptr, key % max(self.n_items, 1)

    def summary(self) -> dict[str, int | float | str]:
        """Returns the figures that describe the data set, in the order of a report."""
        cells = self.n_users * self.n_items
        return {
            "name": self.name,
            "users": self.n_users,
            "items": self.n_items,
            "nodes": self.n_entities,
            "relations": self.n_relations - 1,
            "triples": self.n_edges,
            "interactions": self.n_interactions,
            "density": self.n_interactions / cells if cells else 0.0,
            "train": self.train.shape[1],
            "valid": self.valid.shape[1],
            "test": self.test.shape[1],
        }
