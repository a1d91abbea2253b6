"""Whether samples are uniform: chi-squares with fixed seeds.

The bounds are those that chance passes once in 100,000 on either side (`assert_uniform`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable

import pytest
import torch
from torch import Tensor

from kgrec_fast import InteractionGraph, RelGraph, ops

RNG = torch.tensor([2024, 7])


def assert_uniform(found: Iterable[Hashable], expected: Iterable[Hashable]) -> None:
    """Chi-square of counts against equal shares; fails by chance 1e-5 of the time on either side.

    The bounds are those of Wilson and Hilferty's normal approximation.
    """
    counts, cells = Counter(found), list(expected)
    assert set(counts) <= set(cells)
    share = counts.total() / len(cells)
    assert share >= 20
    chi2 = sum((counts[c] - share) ** 2 / share for c in cells)
    freedom = len(cells) - 1
    spread = 4.27 * math.sqrt(2 / (9 * freedom))
    middle = 1 - 2 / (9 * freedom)
    low = freedom * max(middle - spread, 0) ** 3
    assert low < chi2 < freedom * (middle + spread) ** 3, (chi2, freedom)


def rngs(count: int, seed: int = 99) -> list[Tensor]:
    return [torch.tensor([seed, step]) for step in range(count)]


@pytest.mark.parametrize(("n", "k"), [(8, 4), (5, 2), (16, 2), (3, 1)])
def test_every_subset_is_as_likely(n: int, k: int) -> None:
    wanted = list(itertools.combinations(range(n), k))
    found = (
        tuple(ops.sample_edges(n, k, rng).nonzero().flatten().tolist())
        for rng in rngs(400 * len(wanted))
    )
    assert_uniform(found, wanted)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_order_is_as_likely(n: int) -> None:
    wanted = list(itertools.permutations(range(n)))
    orders = (tuple(ops.random_permutation(n, rng, 0x0800).tolist()) for rng in rngs(24_000))
    assert_uniform(orders, wanted)


@pytest.mark.parametrize("n", [17, 32, 1000])
def test_every_ordered_pair_is_as_likely(n: int) -> None:
    """First two of a permutation, by tenths of [0, n)."""
    draws = torch.stack([ops.random_permutation(n, rng, 0x0800, 2) for rng in rngs(60_000)])
    if n == 1000:
        cells = [tuple(c) for c in (draws // 100).tolist()]
        # The second is in the tenth of the first a little less often than in the others.
        apart = [c for c in cells if c[0] != c[1]]
        assert_uniform(apart, itertools.permutations(range(10), 2))
        same = len(cells) - len(apart)
        expected = len(cells) * 99 / 999
        assert abs(same - expected) < 4.4 * math.sqrt(expected * 0.9)  # 1e-5
        return
    assert_uniform((tuple(c) for c in draws.tolist()), itertools.permutations(range(n), 2))


@pytest.mark.parametrize("n", [1009, 65_536])
def test_neighbours_of_one_permutation_are_apart(n: int) -> None:
    """Within a draw: how images of neighbours differ, which a weak hash would show."""
    order = torch.stack([ops.random_permutation(n, rng, 0x0800) for rng in rngs(400_000 // n)])
    steps = order.diff() % n - 1  # none is 0
    assert_uniform((steps * 16 // (n - 1)).flatten().tolist(), range(16))
    if n == 65_536:
        for bit in (1, 2, 256, 32_768):
            x = torch.arange(n)
            apart = (order ^ order[:, x ^ bit])[:, (x & bit) == 0]
            for low in (0, 6, 12):
                assert_uniform((apart >> low & 15).flatten().tolist(), range(16))


def test_relations_are_sampled_independently() -> None:
    """Two relations of the same size: all pairs of subsets are as likely."""
    types = torch.tensor([0, 1] * 4)
    graph = RelGraph.from_edges(torch.arange(8).repeat(2, 1), types)
    subsets = list(itertools.combinations(range(4), 2))

    def chosen(rng: Tensor) -> tuple:
        kept = ops.sample_edges_per_relation(graph, 0.5, rng)
        return tuple(tuple(kept[types == r].nonzero().flatten().tolist()) for r in (0, 1))

    assert_uniform((chosen(rng) for rng in rngs(20_000)), itertools.product(subsets, repeat=2))


def test_relations_with_numbers_alike_are_sampled_independently() -> None:
    """One of three edges of each relation: its rank in pairs of relations some numbers apart."""
    relations = 1 << 15
    types = torch.arange(relations).repeat(3)
    graph = RelGraph.from_edges(torch.zeros(2, 3 * relations, dtype=torch.int64), types)
    kept = ops.sample_edges_per_relation(graph, 1 / 3, RNG).view(3, relations)
    assert torch.equal(kept.sum(0), torch.ones(relations, dtype=torch.int64))
    rank = kept.int().argmax(0)
    for distance in (1, 2, 256, 4096):
        pairs = rank.view(-1, 2, distance)
        assert_uniform((3 * pairs[:, 0] + pairs[:, 1]).flatten().tolist(), range(9))


def test_every_untouched_item_is_as_likely() -> None:
    items = {0: [], 1: [0], 2: [6], 3: [4, 2, 4, 4, 2], 4: [6, 0, 5, 1]}
    pairs = torch.tensor([[u, i] for u, touched in items.items() for i in touched]).t()
    graph = InteractionGraph.from_edges(pairs, num_users=5, num_items=7)
    users = torch.arange(5).repeat(6000)
    drawn = ops.sample_negatives(users, graph, RNG)
    for user, touched in items.items():
        assert_uniform(drawn[users == user].tolist(), set(range(7)) - set(touched))


def test_neighbouring_negatives_are_independent() -> None:
    graph = InteractionGraph.from_edges(torch.tensor([[0], [2]]), num_items=5)
    drawn = ops.sample_negatives(torch.zeros(40_000, dtype=torch.int64), graph, RNG).view(-1, 2)
    pairs = itertools.product([0, 1, 3, 4], repeat=2)
    assert_uniform((tuple(pair) for pair in drawn.tolist()), pairs)
