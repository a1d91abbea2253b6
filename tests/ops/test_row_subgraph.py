"""The subgraph of some rows: its edges, one by one, and passes over it."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from graph_helpers import CASES, assert_consistent, operands, random_mask
from torch import Tensor

from kgrec_fast import InteractionGraph, RelGraph, ops
from kgrec_fast.graph_build import partition, relation_slots

WITH_ROWS = [name for name, case in CASES.items() if case.num_rows > 0]


def rows_of(graph: RelGraph | InteractionGraph, count: int = 9) -> Tensor:
    """Some of the rows, the first of them twice."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(graph.num_rows, (count,), generator=generator)
    return torch.cat([ids, ids[:1]])


def edges_of(graph: RelGraph, ids: Tensor, mask: Tensor | None) -> list[tuple[int, int, int, int]]:
    """(place of the row, tail, relation, position), edge by edge."""
    return [
        (i, int(graph.col[e]), int(graph.rel[e]), e)
        for i, row in enumerate(ids.tolist())
        for e in range(int(graph.rowptr[row]), int(graph.rowptr[row + 1]))
        if mask is None or mask[e]
    ]


@pytest.mark.parametrize("own_nodes", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", WITH_ROWS)
@pytest.mark.parametrize("function", [ops.row_subgraph, ops.row_subgraph_reference])
def test_edges(function, name: str, masked: bool, own_nodes: bool) -> None:
    case = CASES[name]
    graph, mask = case.build(), random_mask(case) if masked else None
    ids = rows_of(graph)
    subgraph, position, nodes = function(graph, ids, mask, own_nodes)
    assert_consistent(subgraph)
    cols = nodes if own_nodes else torch.arange(graph.num_cols)
    found = zip(
        subgraph.head.tolist(),
        cols[subgraph.col.long()].tolist(),
        subgraph.rel.tolist(),
        position.tolist(),
        strict=True,
    )
    expected = edges_of(graph, ids, None if mask is None else graph.to_row_order(mask))
    assert list(found) == expected
    assert (subgraph.num_rows, subgraph.num_relations) == (ids.numel(), graph.num_relations)
    assert subgraph.num_cols == cols.numel()
    counts = torch.bincount(subgraph.rel, minlength=graph.num_relations)
    assert torch.equal(subgraph.relation_counts, counts)
    # Columns are sorted by relation within a tail, ties in row order.
    _, _, rel, pos, _ = subgraph.columns()
    tail = subgraph.col[pos.long()]
    keys = list(zip(tail.tolist(), rel.tolist(), pos.tolist(), strict=True))
    assert keys == sorted(keys)
    if own_nodes:
        tails = nodes[ids.numel() :].tolist()
        assert torch.equal(nodes[: ids.numel()], ids)
        assert sorted(tails) == sorted({tail for _, tail, _, _ in expected})


@pytest.mark.parametrize("name", WITH_ROWS)
def test_attention_is_that_of_the_rows(name: str) -> None:
    case = CASES[name]
    graph = case.build()
    ids = rows_of(graph)
    subgraph, _, nodes = ops.row_subgraph(graph, ids, own_nodes=True)
    query, value, relation = operands(case, 64)
    leaves = [query.requires_grad_(), value.requires_grad_(), relation.requires_grad_()]
    whole = ops.relation_attention(query, value, relation, graph, 2)[ids]
    # A tail's query and a row's may be another number of rows than value has.
    size = max(query.shape[0], value.shape[0])
    wide_value = torch.cat([value, value.new_zeros(size - value.shape[0], 64)])
    some = ops.relation_attention(query[nodes], wide_value[nodes], relation, subgraph, 2)
    torch.testing.assert_close(some, whole, rtol=1e-12, atol=1e-12)
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(whole.shape, generator=generator, dtype=whole.dtype)
    for ours, theirs in zip(
        torch.autograd.grad(some, leaves, grad),
        torch.autograd.grad(whole, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True])
def test_interactions_keep_their_items(transpose: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    ends = torch.randint(50, (2, 900), generator=generator)
    graph = InteractionGraph.from_edges(ends, num_users=50, num_items=60)
    mask = graph.edge_mask(torch.rand(900, generator=generator) < 0.5)
    ids = torch.arange(0, 50, 7)
    subgraph, position, nodes = ops.row_subgraph(graph, ids, mask)
    assert_consistent(subgraph)
    assert nodes.numel() == 0
    assert mask.row[position.long()].all()
    x = torch.randn(8 if transpose else 60, 16, generator=generator, dtype=torch.float64)
    dense = torch.zeros(50, 60, dtype=torch.float64)
    kept = graph.edge_index[:, graph.to_caller_order(mask.row)]
    dense.index_put_(tuple(kept), torch.ones((), dtype=torch.float64), accumulate=True)
    matrix = dense[ids].t() if transpose else dense[ids]
    found = ops.weighted_aggregate(x, None, subgraph, transpose)
    torch.testing.assert_close(found, matrix @ x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("own_nodes", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_rows_around_tiles_on_any_number_of_threads(
    share: float, own_nodes: bool, restore_threads: None
) -> None:
    """Rows with edges around 256, which are listed at once, and of more ids than a thread takes."""
    generator = torch.Generator().manual_seed(6)
    lengths = torch.tensor([0, 1, 255, 256, 257, 511, 512, 513, 1000] * 16)
    head = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    ends = torch.stack([head, torch.randint(len(lengths), head.shape, generator=generator)])
    relation = torch.randint(5, head.shape, generator=generator)
    graph = RelGraph.from_edges(ends, relation, num_nodes=len(lengths), num_relations=5)
    mask = graph.edge_mask(torch.rand(graph.num_edges, generator=generator) < share, "row")
    ids = torch.randint(len(lengths), (300,), generator=generator)
    expected, position, _ = ops.row_subgraph_reference(graph, ids, mask, own_nodes)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        subgraph, found_position, nodes = ops.row_subgraph(graph, ids, mask, own_nodes)
        assert torch.equal(found_position, position)
        found.append((subgraph, nodes))
    first, first_nodes = found[0]
    for subgraph, nodes in found:
        assert torch.equal(nodes, first_nodes)
        for f in fields(subgraph):
            ours, theirs = getattr(subgraph, f.name), getattr(first, f.name)
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
    if own_nodes:  # the reference has them in another order
        tails = graph.col[position.long()].long()
        assert torch.equal(first_nodes[first.col.long()], tails)
        return
    for f in fields(first):
        ours, theirs = getattr(first, f.name), getattr(expected, f.name)
        assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs


@pytest.mark.parametrize("own_nodes", [False, True])
@pytest.mark.parametrize("scale", [0, 1, 9])
def test_the_work_is_cut_as_that_of_any_graph(scale: int, own_nodes: bool) -> None:
    """Into one part, several, or as many as there may be; at 2,049 edges a row may be cut."""
    generator = torch.Generator().manual_seed(8)
    lengths = torch.tensor([2048, 0, 2049, 7, 40_000, 1, 9_000]).repeat(20)
    lengths = lengths * scale if scale else lengths.clamp(max=9)
    ids = torch.randint(len(lengths), (50,), generator=generator)
    head = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    tail = torch.randint(len(lengths), head.shape, generator=generator).clamp(min=30)
    ends, relation = torch.stack([head, tail]), torch.randint(40, head.shape, generator=generator)
    graph = RelGraph.from_edges(ends, relation, num_nodes=len(lengths), num_relations=40)
    made = ops.row_subgraph(graph, ids, None, own_nodes)[0]
    assert made.part.shape[1] - 1 == {0: 1, 1: 40, 9: 256}[scale]
    assert torch.equal(made.part, partition(made.rowptr))
    assert torch.equal(made.columns()[4], partition(made.columns()[0]))
    for found, expected in zip(
        (made.slot, made.slot_ptr, made.slot_perm),
        relation_slots(made.part, made.rel, 40),
        strict=True,
    ):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("own_nodes", [False, True])
def test_no_rows(own_nodes: bool) -> None:
    graph = CASES["bipartite"].build()
    subgraph, position, nodes = ops.row_subgraph(graph, torch.arange(0), None, own_nodes)
    assert (subgraph.num_rows, subgraph.num_edges) == (0, 0)
    assert position.numel() == nodes.numel() == 0
    assert_consistent(subgraph)


def test_errors_name_the_argument() -> None:
    graph = CASES["bipartite"].build()
    with pytest.raises(TypeError, match="graph is a str"):
        ops.row_subgraph("graph", torch.arange(2))
    with pytest.raises(TypeError, match="ids is a list"):
        ops.row_subgraph(graph, [1, 2])
    with pytest.raises(TypeError, match=r"ids has dtype torch\.int32"):
        ops.row_subgraph(graph, torch.arange(2).int())
    with pytest.raises(ValueError, match=r"ids has shape \[1, 2\]"):
        ops.row_subgraph(graph, torch.arange(2)[None])
    with pytest.raises(ValueError, match=r"ids\[1\] is 12, expected 0 <= id < 12 \(rows\)"):
        ops.row_subgraph(graph, torch.tensor([0, 12]))
    with pytest.raises(ValueError, match=r"ids\[0\] is -1"):
        ops.row_subgraph(graph, torch.tensor([-1]))
    with pytest.raises(ValueError, match="mask has shape"):
        ops.row_subgraph(graph, torch.arange(2), torch.ones(3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"ids\[0\] is 12, expected 0 <= id < 12"):
        torch.ops.kgrec_fast.row_subgraph(
            graph.tensors(False), None, torch.tensor([12]), False, graph.num_cols, 6
        )
