"""A small pair of graphs with everything that is awkward about graphs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph

USERS, ITEMS, NODES, RELATIONS, WIDTH = 7, 9, 40, 5, 8


@dataclass
class Toy:
    """Edge lists and embeddings in float64, and the same edges as graphs."""

    edge_index: Tensor
    edge_type: Tensor
    inter_edge: Tensor
    inter_edge_w: Tensor
    users: Tensor
    entities: Tensor

    @property
    def kg(self) -> RelGraph:
        return RelGraph.from_edges(
            self.edge_index, self.edge_type, num_nodes=NODES, num_relations=RELATIONS - 1
        )

    @property
    def interactions(self) -> InteractionGraph:
        return InteractionGraph.from_edges(self.inter_edge, num_users=USERS, num_items=ITEMS)


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """Tensors as small as these gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def toy() -> Toy:
    """Heads are nodes 0..11 alone; relation 2 has no edge; there are duplicates, a self-loop, a
    user without interactions (6), an item nobody has (8), nodes without edges.
    """
    generator = torch.Generator().manual_seed(5)

    def integers(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    head, tail = integers(12, 80), integers(NODES - 3, 80)
    relation = torch.tensor([0, 1, 3])[integers(3, 80)]
    head[:2], tail[:2], relation[:2] = 3, 20, 1  # the same edge twice
    head[2], tail[2] = 4, 4
    pairs = torch.randperm((USERS - 1) * (ITEMS - 1), generator=generator)[:25]
    inter_edge = torch.stack([pairs // (ITEMS - 1), pairs % (ITEMS - 1)])
    return Toy(
        torch.stack([head, tail]),
        relation,
        inter_edge,
        torch.rand(25, generator=generator, dtype=torch.float64) + 0.1,
        torch.randn(USERS, WIDTH, generator=generator, dtype=torch.float64),
        torch.randn(NODES, WIDTH, generator=generator, dtype=torch.float64),
    )
