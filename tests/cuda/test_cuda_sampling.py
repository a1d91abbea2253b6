"""Sampling by the CUDA kernels, on the CPU: the same bits as the references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from graph_helpers import CASES
from torch import Tensor

from kgrec_fast import InteractionGraph, RelGraph, ops

KEYS = [((0, 0), 0), ((-1, 2**32 - 1), 2**32 - 1), ((2**62 + 12345, -7), 0x0300)]
UNWRITTEN = 77  # in bytes that should become 0 or 1


def bytes_of(n: int) -> Tensor:
    return torch.full((n,), UNWRITTEN, dtype=torch.uint8)


def relations(graph: RelGraph, rate: float, rng: Tensor, stream: int, **how: Any) -> Tensor:
    rel, rank = graph.ranks("row")
    out = bytes_of(graph.num_edges)
    edges = {"rel": rel, "rank": rank, "counts": graph.relation_counts, "rate": float(rate)}
    run("sample_edges_per_relation", rng=rng, stream=stream, out=out, **edges, **how)
    return out


def edges(n: int, k: int, rng: Tensor, stream: int, **how: Any) -> Tensor:
    out = bytes_of(n)
    run("sample_edges", rng=rng, stream=stream, k=k, out=out, **how)
    return out


def permutation(n: int, count: int, rng: Tensor, stream: int, **how: Any) -> Tensor:
    out = torch.full((count,), -1)
    run("random_permutation", rng=rng, stream=stream, n=n, out=out, **how)
    return out


def dropout(n: int, p: float, rng: Tensor, stream: int, **how: Any) -> Tensor:
    out = bytes_of(n)
    run("dropout_mask", rng=rng, stream=stream, p=float(p), out=out, **how)
    return out


def negatives(
    users: Tensor, graph: InteractionGraph, rng: Tensor, stream: int, **how: Any
) -> Tensor:
    pointers, gaps = graph.untouched()
    out = torch.full_like(users, -1)
    places = {"users": users, "ptr": pointers, "gap": gaps, "num_items": graph.num_cols}
    run("sample_negatives", rng=rng, stream=stream, out=out, **places, **how)
    return out


def interactions() -> InteractionGraph:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(30, (2, 300), generator=generator)
    pairs[1] %= 1 + pairs[0]  # of the first users few items, of the others more
    return InteractionGraph.from_edges(pairs, num_users=33, num_items=31)


INTERACTIONS = interactions()
USERS = torch.randint(33, (700,), generator=torch.Generator().manual_seed(1))
GRAPH = CASES["bipartite"].build()
RNG = torch.tensor([5, 6])

# One call of each kernel, of more than one block.
CALLS: dict[str, Callable[..., Tensor]] = {
    "sample_edges_per_relation": lambda **how: relations(GRAPH, 0.4, RNG, 7, **how),
    "sample_edges": lambda **how: edges(700, 123, RNG, 7, **how),
    "random_permutation": lambda **how: permutation(900, 600, RNG, 7, **how),
    "dropout_mask": lambda **how: dropout(2051, 0.3, RNG, 7, **how),
    "sample_negatives": lambda **how: negatives(USERS, INTERACTIONS, RNG, 7, **how),
}


@pytest.mark.parametrize(("rng", "stream"), KEYS)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 64, 65, 300])
def test_samples_and_permutations_equal_the_references(
    n: int, rng: tuple[int, int], stream: int
) -> None:
    key = torch.tensor(rng)
    for k in {0, n // 3, n}:
        kept = edges(n, k, key, stream)
        assert torch.equal(kept, ops.sample_edges_reference(n, k, key, stream).byte())
        order = permutation(n, k, key, stream)
        assert torch.equal(order, ops.random_permutation_reference(n, key, stream, k))


def test_the_largest_domain() -> None:
    order = permutation(2**31 - 1, 40, RNG, 1)
    assert torch.equal(order, ops.random_permutation_reference(2**31 - 1, RNG, 1, 40))


@pytest.mark.parametrize("rate", [0.0, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("case", [c for c in CASES if c != "hub row"])
def test_relations_equal_the_reference(case: str, rate: float) -> None:
    graph = CASES[case].build()
    expected = ops.sample_edges_per_relation_reference(graph, rate, RNG, 3, "row")
    assert torch.equal(relations(graph, rate, RNG, 3), expected.byte())


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 1027])
def test_dropout_equals_the_reference(n: int, p: float) -> None:
    for rng, stream in KEYS:
        key = torch.tensor(rng)
        expected = ops.dropout_mask_reference(n, p, key, stream)
        assert torch.equal(dropout(n, p, key, stream), expected.byte())


@pytest.mark.parametrize(("rng", "stream"), KEYS)
def test_negatives_equal_the_reference(rng: tuple[int, int], stream: int) -> None:
    key = torch.tensor(rng)
    for users in (USERS, USERS[:0], USERS[:1]):
        expected = ops.sample_negatives_reference(users, INTERACTIONS, key, stream)
        assert torch.equal(negatives(users, INTERACTIONS, key, stream), expected)


def test_users_out_of_range_are_those_nearest() -> None:
    far = torch.tensor([-1, 33, -(2**63), 2**63 - 1])
    near = torch.tensor([0, 32, 0, 32])
    found = negatives(far, INTERACTIONS, RNG, 2)
    assert torch.equal(found, ops.sample_negatives_reference(near, INTERACTIONS, RNG, 2))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("max_blocks", [0, 1, 2])
def test_order_and_grid_do_not_matter(name: str, order: str, seed: int, max_blocks: int) -> None:
    how = {"order": order, "seed": seed, "max_blocks": max_blocks}
    assert torch.equal(CALLS[name](**how), CALLS[name]())


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for call in CALLS.values():
            call()
        for n in (0, 1, 2, 7):
            dropout(n, 0.5, RNG, 3)
            edges(n, n // 2, RNG, 3)
            permutation(n, n, RNG, 3)
        negatives(torch.tensor([-1, 33, 2**63 - 1]), INTERACTIONS, RNG, 2)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
