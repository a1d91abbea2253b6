"""The cache for raw edges: the same graph for the same tensors, a new one for anything else."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from kgrec_fast import graph_cache
from kgrec_fast.graph_cache import as_interaction_graph, as_rel_graph


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    graph_cache.clear()
    yield
    graph_cache.clear()


def edges(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, (2, 30), generator=generator), torch.randint(3, (30,))


def test_the_same_tensors_are_sorted_once() -> None:
    edge_index, edge_type = edges()
    first = as_rel_graph(edge_index, edge_type, 9, 9, 3)
    assert as_rel_graph(edge_index, edge_type, 9, 9, 3) is first
    assert as_rel_graph(edge_index, edge_type, 9, 9, 4) is not first
    assert as_rel_graph(edge_index.clone(), edge_type, 9, 9, 3) is not first
    users = as_interaction_graph(edge_index, 9, 9)
    assert as_interaction_graph(edge_index, 9, 9) is users


def test_a_change_in_place_is_seen() -> None:
    edge_index, edge_type = edges()
    first = as_rel_graph(edge_index, edge_type, 9, 9, 3)
    edge_index[0, 0] = (edge_index[0, 0] + 1) % 9
    second = as_rel_graph(edge_index, edge_type, 9, 9, 3)
    assert second is not first
    assert torch.equal(second.edge_index, edge_index)
    edge_type.set_(torch.zeros(30, dtype=torch.int64))
    assert int(as_rel_graph(edge_index, edge_type, 9, 9, 3).edge_type.max()) == 0


def test_entries_go_with_their_tensors_and_are_few() -> None:
    edge_index, edge_type = edges()
    as_rel_graph(edge_index, edge_type, 9, 9, 3)
    assert len(graph_cache._entries) == 1
    del edge_index
    gc.collect()
    assert len(graph_cache._entries) == 0
    alive = [edges(seed) for seed in range(2 * graph_cache.MAX_ENTRIES)]
    for pair in alive:
        as_rel_graph(*pair, 9, 9, 3)
    assert len(graph_cache._entries) == graph_cache.MAX_ENTRIES


def test_inference_tensors_are_not_kept() -> None:
    with torch.inference_mode():
        edge_index, edge_type = edges()
    first = as_rel_graph(edge_index, edge_type, 9, 9, 3)
    assert as_rel_graph(edge_index, edge_type, 9, 9, 3) is not first


def test_bad_edges_are_named() -> None:
    with pytest.raises(ValueError, match=r"edge_index\[1\]\[0\]"):
        as_rel_graph(torch.tensor([[0], [9]]), torch.tensor([0]), 9, 9, 3)
    with pytest.raises(TypeError, match="edge_index is a list"):
        as_rel_graph([[0], [1]], torch.tensor([0]), 9, 9, 3)  # type: ignore[arg-type]
