"""torch.inference_mode first, training afterwards: what is kept in between serves both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pytorch_helpers import CASE, Small, close, relational_layers, same
from torch import Tensor
from torch.utils._pytree import tree_leaves

from kgrec_fast import InteractionGraph, RelGraph, ops
from kgrec_fast.nn import AttnHGCN, HopGraphs


def gradients(graph: RelGraph) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x, relation = (
        torch.randn(n, 8, generator=generator, requires_grad=True)
        for n in (graph.num_cols, graph.num_relations)
    )
    return torch.autograd.grad(ops.relation_mean(x, relation, graph).square().sum(), (x, relation))


@pytest.mark.parametrize("way", ["built", "loaded", "moved"])
def test_graphs_made_there(way: str, tmp_path: Path) -> None:
    wanted = CASE.build()
    wanted.save(tmp_path / "graph.pt")
    with torch.inference_mode():
        if way == "built":
            graph = RelGraph.from_edges(
                CASE.edge_index.clone(), CASE.edge_type.clone(), num_rows=12, num_cols=31
            )
        elif way == "loaded":
            graph = RelGraph.load(tmp_path / "graph.pt")
        else:
            graph = wanted.to("meta")
    assert not any(x.is_inference() for x in graph.tensors(columns=False))
    if way != "moved":
        same(gradients(graph), gradients(wanted))


def test_what_a_graph_makes_when_it_is_first_asked_for() -> None:
    graph = CASE.build()
    with torch.inference_mode():
        ops.edge_score_means(torch.rand(graph.num_edges), graph)
        kept = [*graph.tensors(columns=True, plan=True), *graph.ranks("row")]
        kept += [*graph.ranks("caller"), graph.relation_counts]
        inter = InteractionGraph.from_edges(torch.tensor([[0, 1], [1, 0]]))
        kept += inter.untouched()
    assert not any(x.is_inference() for x in kept)
    same(gradients(graph), gradients(CASE.build()))


def test_a_layer_that_saw_its_raw_edges_there_first() -> None:
    small = Small.make()
    gcn = AttnHGCN(8, 2, 9, 6, mess_dropout_rate=0.0)
    users, entities = (small.model.user_embedding.weight, small.model.entity_embedding.weight)
    inter_edge = small.model.interactions.edge_index
    args = (small.model.edge_index, small.model.edge_type, inter_edge, torch.full((45,), 0.2))
    with torch.inference_mode():
        wanted = gcn(users, entities, *args)
    out = gcn(users, entities, *args)
    close(out, wanted)
    grads = torch.autograd.grad(out[0].sum() + out[1].sum(), (users, entities))
    assert all(bool(g.any()) for g in grads)


@pytest.mark.parametrize("name", ["KGIN", "KGCL", "KGAT", "R-GAT"])
def test_relational_layers(name: str) -> None:
    small = Small.make()
    layer, args = relational_layers(small)[name]
    bare = RelGraph.from_edges(
        small.model.edge_index, small.model.edge_type, num_nodes=60, num_relations=5
    )
    args = tuple(bare if isinstance(x, RelGraph) else x for x in args)
    with torch.inference_mode():
        layer(*args)
    out = layer(*args)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert any(p.grad is not None for p in (*layer.parameters(), *args) if isinstance(p, Tensor))


@pytest.mark.parametrize("step", ["later", "active"])
def test_graphs_of_hops_made_there(step: str) -> None:
    """Heads that are few, and tails among them or not: both forms that later hops have."""
    generator = torch.Generator().manual_seed(3)
    head = torch.randint(12, (90,), generator=generator)
    tail = torch.randint(12 if step == "active" else 40, (90,), generator=generator)
    kinds = torch.arange(90) % 5
    graph = RelGraph.from_edges(
        torch.stack([head, tail]), kinds, num_rows=40, num_cols=40, num_relations=5
    )
    with torch.inference_mode():
        hops = HopGraphs.of(graph, 7)
    assert getattr(hops, step) is not None
    assert not any(x.is_inference() for x in tree_leaves(hops) if isinstance(x, Tensor))
    users, entities = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (9, 40))
    pairs = torch.stack([torch.arange(30) % 9, torch.arange(30) % 7])
    found = []
    for kg in (hops, HopGraphs.of(graph, 7)):
        torch.manual_seed(4)
        out = AttnHGCN(8, 2, 9, 6)(users, entities, kg, None, pairs, None)
        found.append(torch.autograd.grad(out[1].square()[:, 0].sum(), (users, entities)[1:]))
    same(*found)


def test_embeddings_that_a_model_keeps() -> None:
    """Frozen ones, with something on top that is trained."""
    model = Small.make().model.eval()
    with torch.inference_mode():
        users, _ = model.embeddings()
    assert model.embeddings()[0] is users
    top = torch.ones(8, requires_grad=True)
    (users @ top).sum().backward()
    assert top.grad is not None
    torch.testing.assert_close(top.grad, users.sum(0))
