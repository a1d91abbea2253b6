"""A small recommender and its reference, with everything that is awkward about graphs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from step_choices import to_choice
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec
from kgrec_fast.models.reference import ReferenceKGRec


@dataclass
class World:
    """Edge lists; what is built from them."""

    edge_index: Tensor
    edge_type: Tensor
    inter_edge: Tensor
    n_users: int = 9
    n_items: int = 12
    n_entities: int = 60
    n_relations: int = 6
    hyper: dict[str, Any] = field(
        default_factory=lambda: {"embedding_size": 8, "mae_msize": 5, "mess_dropout_rate": 0.2}
    )

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.n_users, self.n_items, self.n_entities, self.n_relations

    @property
    def kg(self) -> RelGraph:
        return RelGraph.from_edges(
            self.edge_index,
            self.edge_type,
            num_nodes=self.n_entities,
            num_relations=self.n_relations - 1,
        )

    @property
    def interactions(self) -> InteractionGraph:
        return InteractionGraph.from_edges(
            self.inter_edge, num_users=self.n_users, num_items=self.n_items
        )

    def model(self, **hyper: Any) -> KGRec:
        model = KGRec(*self.sizes, self.kg, self.interactions, **(self.hyper | hyper))
        # So narrow a layer may have no output at all for an item. The published gradient of such a
        # row of zeros is that of 1e12 times the row.
        for layer in (model.contrast_fn.mlp1[-1], model.contrast_fn.mlp2[-1]):
            torch.nn.init.constant_(layer.bias, 0.1)
        return model

    def reference(self, model: KGRec | None = None, **hyper: Any) -> ReferenceKGRec:
        """The reference, with the weights of a model."""
        edges = (self.edge_index, self.edge_type, self.inter_edge)
        reference = ReferenceKGRec(*self.sizes, *edges, **(self.hyper | hyper))
        if model is not None:
            reference.load_state_dict(model.state_dict())
            dtype = model.inter_weight.dtype
            reference.to(dtype).inter_edge_w = model.inter_weight.clone()
        return reference

    def batch(self, size: int = 32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(size)
        highs = {"user_id": self.n_users, "item_id": self.n_items, "neg_item_id": self.n_items}
        return {n: torch.randint(h, (size,), generator=generator) for n, h in highs.items()}


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """Tensors as small as these gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def world() -> World:
    """Heads are nodes 0..17 alone, tails may be items; relation 1 has no edge and relation 3 has
    one; duplicates, a self-loop, a user without interactions (8), an item nobody has (11), nodes
    without edges.
    """
    generator = torch.Generator().manual_seed(11)

    def integers(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    edges = 200
    head, tail = integers(18, edges), integers(55, edges)
    relation = torch.tensor([0, 2, 4])[integers(3, edges)]
    head[:2], tail[:2], relation[:2] = 3, 20, 2
    head[2], tail[2], relation[2] = 4, 4, 3
    pairs = torch.randperm(8 * 11, generator=generator)[:45]
    return World(torch.stack([head, tail]), relation, torch.stack([pairs // 11, pairs % 11]))


@pytest.fixture
def choice_of():
    return to_choice
