"""The subgraph of a mask: its edges, and passes over it against passes with the mask."""

from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from graph_helpers import CASES, assert_consistent, operands, random_mask
from torch import Tensor

from kgrec_fast import InteractionGraph, RelGraph, ops

SHARES = (0.0, 0.3, 1.0)


def interactions(users: int = 400, items: int = 90, seed: int = 0) -> InteractionGraph:
    """Some 20,000 interactions; a user of 6,000, whose row several parts share."""
    generator = torch.Generator().manual_seed(seed)
    user = torch.cat(
        [
            torch.randint(users, (14000,), generator=generator),
            torch.full((6000,), 7),
        ]
    )
    item = torch.randint(items, user.shape, generator=generator)
    weight = torch.rand(user.shape, generator=generator, dtype=torch.float64)
    ends = torch.stack([user, item])
    return InteractionGraph.from_edges(ends, weight, num_users=users, num_items=items)


def same(ours: RelGraph | InteractionGraph, theirs: RelGraph | InteractionGraph) -> None:
    for f in fields(ours):
        a, b = getattr(ours, f.name), getattr(theirs, f.name)
        assert (torch.equal(a, b) and a.dtype == b.dtype) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", CASES)
def test_edges_of_triples(name: str, share: float, columns: bool) -> None:
    graph = CASES[name].build()
    mask = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(1)) < share
    if columns:
        graph.columns()
    subgraph, position = ops.edge_subgraph(graph, graph.edge_mask(mask, "row"))
    assert (subgraph.colptr is not None) == columns
    assert torch.equal(position, mask.nonzero().flatten().int())
    for part in ("head", "col", "rel"):
        assert torch.equal(getattr(subgraph, part), getattr(graph, part)[mask])
    assert torch.equal(
        subgraph.relation_counts,
        torch.bincount(graph.rel[mask], minlength=graph.num_relations),
    )
    reference, same_position = ops.edge_subgraph_reference(graph, graph.edge_mask(mask, "row"))
    assert torch.equal(position, same_position)
    same(subgraph, reference)
    assert_consistent(subgraph)


@pytest.mark.parametrize("share", SHARES)
def test_edges_and_weights_of_interactions(share: float) -> None:
    graph = interactions()
    graph.columns()
    caller = torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(2)) < share
    subgraph, position = ops.edge_subgraph(graph, caller)
    assert_consistent(subgraph)
    same(subgraph, ops.edge_subgraph_reference(graph, caller)[0])
    assert subgraph.weight is not None
    assert torch.equal(subgraph.weight, graph.to_row_order(graph.weight)[position.long()])
    kept = sorted(map(tuple, graph.edge_index[:, caller].t().tolist()))
    assert sorted(map(tuple, subgraph.edge_index.t().tolist())) == kept


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("transpose", [False, True])
def test_sums_are_those_under_the_mask(transpose: bool, share: float) -> None:
    graph = interactions()
    graph.columns()
    mask = graph.edge_mask(torch.rand(graph.num_edges) < share, "row")
    x = torch.randn(graph.num_rows if transpose else graph.num_cols, 64, requires_grad=True)
    grad = torch.randn(graph.num_cols if transpose else graph.num_rows, 64)
    subgraph, _ = ops.edge_subgraph(graph, mask)
    weight, some = graph.weight.float(), subgraph.weight.float()  # type: ignore[union-attr]
    expected = ops.weighted_aggregate(x, weight, graph, transpose, mask)
    found = ops.weighted_aggregate(x, some, subgraph, transpose)
    assert torch.equal(found, expected)
    (theirs,) = torch.autograd.grad(expected, x, grad)
    (ours,) = torch.autograd.grad(found, x, grad)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_attention_is_that_under_the_mask(name: str) -> None:
    case = CASES[name]
    whole = case.build()
    whole.columns()
    mask = whole.edge_mask(random_mask(case))
    subgraph, _ = ops.edge_subgraph(whole, mask)
    results = []
    for graph, edge_mask in ((whole, mask), (subgraph, None)):
        leaves = [x.requires_grad_() for x in operands(case, 64)]
        out = ops.relation_attention(*leaves, graph, 2, edge_mask)
        generator = torch.Generator().manual_seed(3)
        grad = torch.randn(out.shape, generator=generator, dtype=out.dtype)
        grads = torch.autograd.grad(out, leaves, grad)
        results.append((out, *grads))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# Around words of 64, the tiles of 512 that columns are looked up in, and blocks of 16,384.
EDGES = (0, 1, 15, 16, 17, 63, 64, 65, 511, 512, 513, 16383, 16384, 16385, 33000)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("num_edges", EDGES)
def test_sizes_around_words_and_blocks(
    num_edges: int, share: float, isa: str, restore_threads: None
) -> None:
    generator = torch.Generator().manual_seed(num_edges)
    ends = torch.randint(200, (2, num_edges), generator=generator)
    relation = torch.randint(7, (num_edges,), generator=generator)
    graph = RelGraph.from_edges(ends, relation, num_nodes=200, num_relations=7)
    graph.columns()
    mask = torch.rand(num_edges, generator=generator) < share
    mask = graph.edge_mask(mask, "row")
    expected, position = ops.edge_subgraph_reference(graph, mask)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found, found_position = ops.edge_subgraph(graph, mask)
        assert torch.equal(found_position, position)
        same(found, expected)


def test_any_byte_but_zero_keeps_an_edge(isa: str) -> None:
    graph = interactions()
    graph.columns()
    values = torch.tensor([0, 0, 1, 2, 127, 128, 255], dtype=torch.uint8)
    generator = torch.Generator().manual_seed(6)
    byte = values[torch.randint(len(values), (graph.num_edges,), generator=generator)]
    found, position = ops.edge_subgraph(graph, graph.edge_mask(byte.view(torch.bool), "row"))
    expected, expected_position = ops.edge_subgraph(graph, graph.edge_mask(byte != 0, "row"))
    assert torch.equal(position, expected_position)
    assert torch.equal(position, byte.nonzero().flatten().int())
    same(found, expected)


def test_relations_are_counted_when_asked_for(tmp_path: Path) -> None:
    graph = CASES["bipartite"].build()
    mask = torch.arange(graph.num_edges) % 3 == 0
    subgraph, _ = ops.edge_subgraph(graph, graph.edge_mask(mask, "row"))
    assert "relation_counts" not in vars(subgraph)
    subgraph.save(tmp_path / "graph.pt")  # which asks
    counts = torch.bincount(graph.rel[mask], minlength=graph.num_relations)
    assert torch.equal(vars(subgraph)["relation_counts"], counts)
    assert torch.equal(RelGraph.load(tmp_path / "graph.pt").relation_counts, counts)
    again, _ = ops.edge_subgraph(graph, graph.edge_mask(mask, "row"))
    assert torch.equal(pickle.loads(pickle.dumps(again)).relation_counts, counts)
    with pytest.raises(AttributeError, match="'RelGraph' object has no attribute 'relations'"):
        again.relations  # noqa: B018


def test_a_subgraph_of_a_subgraph() -> None:
    graph = interactions()
    first, position = ops.edge_subgraph(graph, torch.arange(graph.num_edges) % 2 == 0)
    second, inner = ops.edge_subgraph(first, torch.arange(first.num_edges) % 3 == 0)
    both = torch.zeros(graph.num_edges, dtype=torch.bool)
    both[position.long()[inner.long()]] = True
    same(second, ops.edge_subgraph(graph, graph.edge_mask(both, "row"))[0])


def test_errors_name_the_argument() -> None:
    graph = interactions()
    with pytest.raises(TypeError, match="graph is a str"):
        ops.edge_subgraph("graph", torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="edge_mask is None"):
        ops.edge_subgraph(graph, None)
    with pytest.raises(TypeError, match=r"mask is torch\.float32"):
        ops.edge_subgraph(graph, torch.ones(graph.num_edges))
    with pytest.raises(ValueError, match=r"mask has shape \[3\]"):
        ops.edge_subgraph(graph, torch.ones(3, dtype=torch.bool))
