"""A small data set with everything that is awkward about graphs."""

from __future__ import annotations

import pytest
import torch
from paper_oracle import PaperWorld


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """Tensors as small as these gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def world() -> PaperWorld:
    """Inverse edges, as the paper's loader adds them (relations 1..3, then 4..6); nodes without
    edges, a user without interactions (8), an item nobody has (11).
    """
    generator = torch.Generator().manual_seed(17)

    def integers(high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=generator)

    triples = torch.stack([integers(14, 90), integers(3, 90) + 1, integers(36, 90)]).unique(dim=1)
    head, kind, tail = triples
    edges = torch.stack([torch.cat([head, tail]), torch.cat([tail, head])])
    pairs = torch.randperm(8 * 11, generator=generator)[:45].sort().values
    return PaperWorld(edges, torch.cat([kind, kind + 3]), torch.stack([pairs // 11, pairs % 11]))
