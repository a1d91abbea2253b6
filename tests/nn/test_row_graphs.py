"""A graph of its own for the edges of few rows gives what a mask over all edges gives."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.nn import AttnHGCN, _row_graphs
from kgrec_fast.nn._row_graphs import interactions_of, pays, triples_of

IDS = torch.tensor([6, 1, 6, 0, 11])  # one twice, not in order
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def kept(toy) -> torch.Tensor:
    """bool [80], the caller's order; head 1 loses all of its edges."""
    keep = torch.rand(80, generator=torch.Generator().manual_seed(1)) < 0.6
    return keep & (toy.edge_index[0] != 1)


def test_the_edges_are_those_of_the_rows(toy, kept):
    graph, nodes = triples_of(toy.kg, IDS, toy.kg.edge_mask(kept))
    wanted = []
    for place, head in enumerate(IDS.tolist()):
        for edge in range(80):
            if kept[edge] and toy.edge_index[0, edge] == head:
                triple = (place, int(toy.edge_index[1, edge]), int(toy.edge_type[edge]))
                wanted.append(triple)
    row, col = graph.edge_index
    found = zip(row.tolist(), nodes[col].tolist(), graph.edge_type.tolist(), strict=True)
    assert sorted(found) == sorted(wanted)
    assert len(wanted) > 10
    assert torch.equal(nodes[: IDS.numel()], IDS)
    tails = nodes[IDS.numel() :]
    assert tails.numel() == tails.unique().numel() == len({tail for _, tail, _ in wanted})


@pytest.mark.parametrize("masked", [True, False])
def test_attention_of_few_heads(toy, kept, masked):
    generator = torch.Generator().manual_seed(2)
    x = toy.entities.clone().requires_grad_()
    weight = torch.randn(8, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    relation = torch.randn(4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    outer = torch.randint(3, (toy.kg.num_rows,), generator=generator).double()
    mask = toy.kg.edge_mask(kept) if masked else None

    def gradients(out):
        cotangent = torch.arange(out.numel(), dtype=torch.float64).view(out.shape).sin()
        return torch.autograd.grad((out * cotangent).sum(), [x, weight, relation])

    wanted = ops.projected_attention(x, weight, relation, toy.kg, 2, mask, zero_edges=outer)[IDS]
    graph, nodes = triples_of(toy.kg, IDS, mask)
    found = ops.projected_attention(x[nodes], weight, relation, graph, 2, zero_edges=outer[IDS])
    torch.testing.assert_close(found, wanted, **EXACT)
    torch.testing.assert_close(gradients(found), gradients(wanted), **EXACT)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_sums_of_few_users(toy, masked, weighted):
    users = torch.tensor([5, 6, 0, 5])  # user 6 has no interaction
    inter = toy.interactions
    mask = inter.edge_mask(torch.arange(25) % 3 > 0) if masked else None
    weight = toy.inter_edge_w if weighted else None
    x = toy.entities.clone().requires_grad_()
    wanted = ops.weighted_aggregate(x, weight, inter, edge_mask=mask)[users]
    chosen, chosen_weight = interactions_of(inter, weight, users, mask)
    found = ops.weighted_aggregate(x, chosen_weight, chosen)
    assert bool((found[1] == 0).all())
    torch.testing.assert_close(found, wanted, **EXACT)
    pairs = [torch.autograd.grad((out * out.cos()).sum(), x)[0] for out in (found, wanted)]
    torch.testing.assert_close(*pairs, **EXACT)


def test_rows_without_any_edge():
    edges = torch.tensor([[2, 2], [0, 1]])
    ids = torch.tensor([0, 1])
    graph, nodes = triples_of(RelGraph.from_edges(edges, torch.zeros(2).long()), ids, None)
    assert graph.num_edges == 0
    assert torch.equal(nodes, ids)
    chosen, _ = interactions_of(InteractionGraph.from_edges(edges), None, ids, None)
    assert (chosen.num_rows, chosen.num_cols, chosen.num_edges) == (2, 2, 0)


def test_it_is_for_few_rows_whose_edges_may_be_counted(toy):
    inter = InteractionGraph.from_edges(torch.tensor([[39], [0]]))  # 40 users
    few = torch.arange(40 // _row_graphs.SPARSE)
    assert pays(inter, few)
    assert not pays(inter, torch.arange(few.numel() + 1))
    with FakeTensorMode() as mode:
        assert not pays(inter, mode.from_tensor(few))
    traced = []
    torch.compile(lambda ids: traced.append(pays(inter, ids)) or ids, backend="eager")(few)
    assert traced == [False]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("view", ["forward", "forward_ui"])
def test_layers_are_the_same_on_the_graph_of_unmasked_interactions(
    toy, monkeypatch, view, weighted
):
    """Values, and gradients of users and items; both sides under the same dropout."""
    made = []
    original = _row_graphs.edge_subgraph
    monkeypatch.setattr(
        _row_graphs, "edge_subgraph", lambda *given: made.append(1) or original(*given)
    )
    layer = AttnHGCN(8, 2, toy.users.shape[0], 5, mess_dropout_rate=0.3).double()
    mask = torch.arange(25) % 3 > 0
    weight = toy.inter_edge_w if weighted else None
    results = []
    for many in (0, 10**9):
        monkeypatch.setattr(_row_graphs, "MANY_INTERACTIONS", many)
        users, items = (x.clone().requires_grad_() for x in (toy.users, toy.entities))
        rng = torch.tensor([3, 5])
        if view == "forward":
            given = (users, items, toy.kg, None, toy.interactions, weight)
            out = layer(*given, inter_mask=mask, rng=rng)[0]
        else:
            shown = items[: toy.interactions.num_cols]
            out = layer.forward_ui(users, shown, toy.interactions, weight, inter_mask=mask, rng=rng)
        cotangent = torch.arange(out.numel(), dtype=torch.float64).view(out.shape).sin()
        results.append((out, *torch.autograd.grad((out * cotangent).sum(), [users, items])))
        assert len(made) == 1  # by the first of the two alone
    torch.testing.assert_close(results[0], results[1], **EXACT)
