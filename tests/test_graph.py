"""Graphs: both orders against plain sorting, validation, masks, moving, saving."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kgrec_fast import InteractionGraph, RelGraph, cuda_plan
from kgrec_fast.graph import _Graph
from kgrec_fast.graph_build import MAX_ID, MAX_WHOLE_ROW


def random_graph(num_edges: int = 500, nodes: int = 40, relations: int = 7, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes, (2, num_edges), generator=generator)
    edge_type = torch.randint(relations, (num_edges,), generator=generator)
    return edge_index, edge_type


def hub_graph() -> RelGraph:
    edge_index, edge_type = random_graph(60_000, 300, 5)
    edge_index[0, :25_000] = 9
    return RelGraph.from_edges(edge_index, edge_type)


def test_orders_are_lexicographic_and_stable() -> None:
    edge_index, edge_type = random_graph()
    graph = RelGraph.from_edges(edge_index, edge_type, num_nodes=50, num_relations=9)
    head, tail, rel = (x.numpy() for x in (*edge_index, edge_type))
    by_row = np.lexsort((np.arange(500), rel, head))
    assert graph.perm.tolist() == by_row.tolist()
    assert graph.head.tolist() == head[by_row].tolist()
    assert graph.col.tolist() == tail[by_row].tolist()
    assert graph.rel.tolist() == rel[by_row].tolist()
    assert graph.rowptr.tolist() == [int((head < i).sum()) for i in range(51)]

    colptr, row, col_rel, pos, _ = graph.columns()
    by_col = np.lexsort((np.arange(500), rel[by_row], tail[by_row]))
    assert pos.tolist() == by_col.tolist()
    assert row.tolist() == head[by_row][by_col].tolist()
    assert col_rel.tolist() == rel[by_row][by_col].tolist()
    assert colptr.tolist() == [int((tail < i).sum()) for i in range(51)]
    assert graph.relation_counts.tolist() == np.bincount(rel, minlength=9).tolist()


@pytest.mark.parametrize("num_relations", [None, 9])
def test_relations_may_count_from_another_number(num_relations: int | None) -> None:
    edge_index, edge_type = random_graph()
    sizes = {"num_nodes": 50, "num_relations": num_relations}
    wanted = RelGraph.from_edges(edge_index, edge_type, **sizes)
    found = RelGraph.from_edges(edge_index, edge_type + 1, **sizes, first_relation=1)
    assert found.num_relations == wanted.num_relations
    assert torch.equal(found.edge_type, edge_type)
    for mine, theirs in zip(found.tensors(True), wanted.tensors(True), strict=True):
        assert torch.equal(mine, theirs)
    edge_type[17] = 0
    edge_type[:17] = 1
    with pytest.raises(ValueError, match=r"edge_type\[17\] is 0, expected 1 <= id < "):
        RelGraph.from_edges(edge_index, edge_type, **sizes, first_relation=1)
    edge_type[17], edge_type[3] = 1, 8
    with pytest.raises(ValueError, match=r"edge_type\[3\] is 8, expected 1 <= id < 8"):
        RelGraph.from_edges(edge_index, edge_type, num_relations=7, first_relation=1)


def test_dtypes_are_the_documented_ones() -> None:
    graph = RelGraph.from_edges(*(x.int() for x in random_graph()))
    long = {"rowptr", "part", "slot_ptr", "colptr", "col_part", "relation_counts"}
    graph.columns()
    for name, value in vars(graph).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == (torch.int64 if name in long else torch.int32), name


def test_gives_back_the_callers_edges() -> None:
    edge_index, edge_type = random_graph()
    graph = RelGraph.from_edges(edge_index, edge_type)
    assert torch.equal(graph.edge_index, edge_index)
    assert torch.equal(graph.edge_type, edge_type)
    values = torch.randn(500, 3)
    assert torch.equal(graph.to_caller_order(graph.to_row_order(values)), values)


@pytest.mark.parametrize("graph", [hub_graph(), RelGraph.from_edges(*random_graph())])
def test_parts_cover_everything_once_and_cut_only_long_rows(graph: RelGraph) -> None:
    colptr, *_, col_part = graph.columns()
    for pointers, (row, edge) in ((graph.rowptr, graph.part), (colptr, col_part)):
        assert row[0] == 0
        assert edge[0] == 0
        assert row[-1] == pointers.numel() - 1
        assert edge[-1] == graph.num_edges
        assert bool((row.diff() >= 0).all())
        assert bool((edge.diff() >= 0).all())
        for r, e in zip(row[:-1].tolist(), edge[:-1].tolist(), strict=True):
            assert pointers[r] <= e <= pointers[r + 1]
            if e != pointers[r]:
                assert pointers[r + 1] - pointers[r] > MAX_WHOLE_ROW


def test_every_edge_has_the_slot_of_its_part_and_relation() -> None:
    graph = hub_graph()
    assert graph.part.size(1) > 3
    owner = torch.searchsorted(graph.part[1], torch.arange(graph.num_edges), right=True) - 1
    pairs = sorted(set(zip(owner.tolist(), graph.rel.tolist(), strict=True)))
    number = {pair: i for i, pair in enumerate(pairs)}
    wanted = [number[pair] for pair in zip(owner.tolist(), graph.rel.tolist(), strict=True)]
    assert graph.slot.tolist() == wanted
    for r in range(graph.num_relations):
        slots = graph.slot_perm[graph.slot_ptr[r] : graph.slot_ptr[r + 1]].tolist()
        assert slots == [i for i, (_, rel) in enumerate(pairs) if rel == r]


def test_many_relations_and_empty_graphs() -> None:
    graph = RelGraph.from_edges(torch.tensor([[0, 1], [1, 0]]), torch.tensor([70_000, 65_536]))
    assert graph.num_relations == 70_001
    assert graph.rel.tolist() == [70_000, 65_536]
    empty = RelGraph.from_edges(
        torch.empty(2, 0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), num_nodes=4
    )
    assert (empty.num_rows, empty.num_cols, empty.num_edges) == (4, 4, 0)
    assert empty.columns()[0].tolist() == [0] * 5


def test_interactions_are_the_same_structure_with_weights() -> None:
    edge_index = torch.tensor([[2, 0, 2], [1, 4, 0]])
    graph = InteractionGraph.from_edges(edge_index, torch.ones(3), num_users=3, num_items=6)
    assert (graph.num_rows, graph.num_cols, graph.num_relations) == (3, 6, 0)
    assert graph.rowptr.tolist() == [0, 1, 1, 3]
    assert graph.col.tolist() == [4, 1, 0]  # ties keep the caller's order
    assert torch.equal(graph.edge_index, edge_index)


EDGES, TYPES = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("edge_index", "edge_type", "sizes", "kind", "message"),
    [
        ([[0], [1]], TYPES, {}, TypeError, "edge_index is a list"),
        (EDGES.float(), TYPES, {}, TypeError, "edge_index has dtype torch.float32"),
        (EDGES.t(), TYPES, {}, ValueError, r"edge_index has shape \[3, 2\], expected \[2, E\]"),
        (EDGES, TYPES[:2], {}, ValueError, r"edge_type has shape \[2\], expected \[3\]"),
        (EDGES, TYPES.bool(), {}, TypeError, "edge_type has dtype torch.bool"),
        (EDGES, TYPES.to("meta"), {}, ValueError, "edge_type is on meta, expected cpu"),
        (EDGES, TYPES, {"num_nodes": 2}, ValueError, r"edge_index\[0\]\[2\] is 2, .* < 2 \(rows\)"),
        (EDGES, TYPES, {"num_rows": 3, "num_cols": 2}, ValueError, r"edge_index\[1\]\[1\] is 2"),
        (EDGES - 1, TYPES, {"num_nodes": 3}, ValueError, r"edge_index\[0\]\[0\] is -1"),
        (EDGES, TYPES, {"num_relations": 1}, ValueError, r"edge_type\[1\] is 1, .* \(relations\)"),
        (EDGES, TYPES - 2, {}, ValueError, r"edge_type\[0\] is -2"),
        (EDGES, TYPES, {"num_nodes": 3, "num_rows": 3}, ValueError, "num_nodes is given together"),
        (EDGES, TYPES, {"num_nodes": 3.0}, TypeError, "num_rows is a float"),
        (EDGES, TYPES, {"num_nodes": MAX_ID + 1}, ValueError, "num_rows is 2147483648"),
        (EDGES, TYPES, {"num_relations": -1}, ValueError, "num_relations is -1"),
    ],
)
def test_bad_edges_are_named(edge_index, edge_type, sizes, kind, message) -> None:
    with pytest.raises(kind, match=message):
        RelGraph.from_edges(edge_index, edge_type, **sizes)


def test_bad_interactions_are_named() -> None:
    with pytest.raises(ValueError, match=r"weight has shape \[2\], expected \[3\]"):
        InteractionGraph.from_edges(EDGES, torch.ones(2))
    with pytest.raises(TypeError, match="weight is no floating point tensor"):
        InteractionGraph.from_edges(EDGES, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"edge_index\[1\]\[1\] is 2, .* \(items\)"):
        InteractionGraph.from_edges(EDGES, num_items=2)


def test_masks_follow_both_orders() -> None:
    edge_index, edge_type = random_graph()
    graph = RelGraph.from_edges(edge_index, edge_type)
    mask = torch.rand(500) < 0.5
    made = graph.edge_mask(mask)
    assert torch.equal(made.row, mask[graph.perm.long()])
    assert torch.equal(made.col, made.row[graph.columns()[3].long()])
    assert made.col is made.col
    assert torch.equal(graph.edge_mask(made.row, order="row").row, made.row)


@pytest.mark.parametrize(
    ("mask", "order", "kind", "message"),
    [
        ([True] * 3, "caller", TypeError, "mask is list"),
        (torch.ones(3), "caller", TypeError, "mask is torch.float32"),
        (torch.ones(2, dtype=torch.bool), "caller", ValueError, r"mask has shape \[2\]"),
        (torch.ones(3, dtype=torch.bool, device="meta"), "caller", ValueError, "mask is on meta"),
        (torch.ones(3, dtype=torch.bool), "column", ValueError, "order is 'column'"),
    ],
)
def test_bad_masks_are_named(mask, order, kind, message) -> None:
    with pytest.raises(kind, match=message):
        RelGraph.from_edges(EDGES, TYPES).edge_mask(mask, order)


def test_is_a_pytree_and_frozen() -> None:
    graph = RelGraph.from_edges(*random_graph())
    leaves, spec = torch.utils._pytree.tree_flatten(graph)
    again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, RelGraph)
    assert again.num_rows == graph.num_rows
    assert again.rowptr is graph.rowptr
    with pytest.raises(AttributeError):
        graph.num_rows = 3  # type: ignore[misc]


def test_moves_and_stays() -> None:
    graph = RelGraph.from_edges(*random_graph())
    graph.columns()
    assert graph.to("cpu") is graph
    moved = graph.to("meta")
    assert moved.device.type == "meta"
    assert moved.columns()[3].device.type == "meta"
    assert moved.num_edges == graph.num_edges


def test_saves_and_loads(tmp_path: Path) -> None:
    graph = RelGraph.from_edges(*random_graph())
    graph.save(tmp_path / "graph.pt")
    again = RelGraph.load(tmp_path / "graph.pt")
    assert again.num_relations == graph.num_relations
    assert torch.equal(again.edge_index, graph.edge_index)
    with pytest.raises(ValueError, match="holds RelGraph, expected a InteractionGraph"):
        InteractionGraph.load(tmp_path / "graph.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no graph"):
        RelGraph.load(tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("head,relation,tail")
    with pytest.raises(ValueError, match=r"text\.pt holds no graph, expected a RelGraph"):
        RelGraph.load(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        RelGraph.load(tmp_path / "none.pt")
    torch.save({"kind": "RelGraph", "rowptr": graph.rowptr}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"part\.pt lacks what a RelGraph has, or has more"):
        RelGraph.load(tmp_path / "part.pt")
    assert torch.equal(pickle.loads(pickle.dumps(graph)).perm, graph.perm)


def test_ranks_count_the_edges_of_a_relation_by_the_callers_ids(tmp_path: Path) -> None:
    edge_index, edge_type = random_graph()
    graph = RelGraph.from_edges(edge_index, edge_type, num_relations=9)
    seen: dict[int, int] = {}
    wanted = []
    for relation in edge_type.tolist():
        wanted.append(seen.get(relation, 0))
        seen[relation] = wanted[-1] + 1
    relations, ranks = graph.ranks("caller")
    assert relations.tolist() == edge_type.tolist()
    assert ranks.tolist() == wanted
    assert torch.equal(graph.relation_rank, graph.to_row_order(ranks))
    assert graph.ranks() == (graph.rel, graph.relation_rank)
    assert ranks.dtype == relations.dtype == graph.relation_rank.dtype == torch.int32
    # Kept, moved, no part of a file.
    assert graph.relation_rank is graph.relation_rank
    assert graph.ranks("caller")[1] is ranks
    assert graph.to("meta").ranks("caller")[1].device.type == "meta"
    graph.save(tmp_path / "graph.pt")
    assert RelGraph.load(tmp_path / "graph.pt").rank is None


def test_untouched_has_the_gaps_of_distinct_sorted_items(tmp_path: Path) -> None:
    pairs = torch.tensor([[3, 0, 0, 0, 3, 3], [4, 5, 1, 5, 0, 1]])
    graph = InteractionGraph.from_edges(pairs, num_users=5, num_items=6)
    pointers, gaps = graph.untouched()
    assert pointers.tolist() == [0, 2, 2, 2, 5, 5]
    assert gaps.tolist() == [1, 4, 0, 0, 2]
    assert (pointers.dtype, gaps.dtype) == (torch.int64, torch.int32)
    assert graph.untouched()[1] is gaps
    assert graph.to("meta").untouched()[1].device.type == "meta"
    graph.save(tmp_path / "graph.pt")
    assert InteractionGraph.load(tmp_path / "graph.pt").touched_gap is None
    with pytest.raises(ValueError, match="user 2 has touched all 2 items"):
        InteractionGraph.from_edges(torch.tensor([[2, 2, 2], [0, 1, 1]])).untouched()
    with pytest.raises(ValueError, match="user 0 has touched all 1 items"):
        InteractionGraph.from_edges(torch.tensor([[0, 1], [0, 0]])).untouched()


ROW_PLAN = len(cuda_plan.RowPlan._fields) + len(cuda_plan.RunPlan._fields)


def test_the_plan_of_the_work_follows_where_it_is_wanted() -> None:
    graph = RelGraph.from_edges(*random_graph())
    assert len(graph.tensors(columns=False)) == 9
    assert len(graph.tensors(columns=True)) == 14
    assert graph.row_plan is graph.col_plan is None
    rows, both = graph.tensors(columns=False, plan=True), graph.tensors(columns=True, plan=True)
    row_plan = cuda_plan.plan_row_order(graph.rowptr, graph.rel, graph.num_relations)
    col_plan = cuda_plan.plan_rows(graph.columns()[0])
    for listed, expected in (
        (rows, [*graph.tensors(columns=False), *row_plan]),
        (both, [*graph.tensors(columns=True), *row_plan, *col_plan]),
    ):
        assert len(listed) == len(expected)
        assert all(torch.equal(x, y) for x, y in zip(listed, expected, strict=True))
    again = graph.tensors(columns=True, plan=True)
    assert all(x is y for x, y in zip(both, again, strict=True))


@pytest.mark.parametrize("kind", [RelGraph, InteractionGraph])
def test_a_graph_on_cuda_has_its_plan_from_the_start(kind, monkeypatch) -> None:
    monkeypatch.setattr(_Graph, "device", property(lambda self: torch.device("cuda")))
    edges = random_graph()
    graph = kind.from_edges(*edges) if kind is RelGraph else kind.from_edges(edges[0])
    assert graph.row_plan is not None
    assert graph.col_plan is None
    assert len(graph.tensors(columns=False)) == 9 + ROW_PLAN
    graph.columns()
    assert graph.col_plan is not None
    assert len(graph.tensors(columns=True)) == 14 + ROW_PLAN + len(cuda_plan.RowPlan._fields)
    assert len(graph.tensors(columns=True, plan=False)) == 14


def test_the_plan_moves_with_a_pytree_and_is_not_saved(tmp_path: Path) -> None:
    graph = RelGraph.from_edges(*random_graph())
    without = len(torch.utils._pytree.tree_leaves(graph))
    plan = graph.plan(columns=True)
    leaves, spec = torch.utils._pytree.tree_flatten(graph)
    # The column order and both plans were None.
    assert len(leaves) > without
    again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert all(x is y for x, y in zip(again.plan(columns=True), plan, strict=True))
    graph.save(tmp_path / "graph.pt")
    assert RelGraph.load(tmp_path / "graph.pt").row_plan is None
    assert graph.to("meta").row_plan is None
