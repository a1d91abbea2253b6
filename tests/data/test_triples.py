"""Dropping duplicate triples and adding inverse ones."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kgrec_fast.data.triples import first_of_each, with_inverse


@pytest.mark.parametrize("seed", range(5))
def test_against_a_loop(seed: int) -> None:
    draw = random.Random(seed)
    triples = [(draw.randrange(4), draw.randrange(3), draw.randrange(4)) for _ in range(60)]
    seen: dict[tuple[int, int, int], int] = {}
    for place, triple in enumerate(triples):
        seen.setdefault(triple, place)
    head, kind, tail = np.array(triples).T
    assert first_of_each(np.stack([head, tail]), kind).tolist() == list(seen.values())
    edge_index, edge_type, dropped = with_inverse(np.stack([head, tail]), kind, 3)
    found = list(zip(*edge_index.tolist(), edge_type.tolist(), strict=True))
    expected = [(h, t, r) for h, r, t in seen] + [(t, h, r + 3) for h, r, t in seen]
    assert found == expected
    assert dropped == 60 - len(seen)


def test_nothing() -> None:
    empty = np.zeros(0, dtype=np.int64)
    edge_index, edge_type, dropped = with_inverse(np.zeros((2, 0), dtype=np.int64), empty, 3)
    assert edge_index.shape == (2, 0)
    assert edge_type.shape == (0,)
    assert dropped == 0
