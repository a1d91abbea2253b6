"""Layers compute the same after `accelerate` as before: values, gradients, dropout, training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stand_ins import (
    ITEMS,
    RELATIONS,
    USERS,
    WIDTH,
    ContrastLike,
    Edges,
    Formulas,
    HopwiseLike,
    Model,
    PaperLike,
)
from torch import Tensor, nn

import kgrec_fast
from kgrec_fast.graph import RelGraph

RATE = 0.3


def make(paper: bool, hops: int = 2, rate: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    kind = PaperLike if paper else HopwiseLike
    return kind(WIDTH, hops, USERS, RELATIONS, mess_dropout_rate=rate).double()


def cases(layer: nn.Module, edges: Edges) -> Iterator[tuple[str, tuple, dict[str, Any]]]:
    """Every method that is swapped, in each of the ways in which it is called."""
    paper = isinstance(layer, PaperLike)
    types = edges.edge_type + int(paper)
    kg = (edges.edge_index, types)
    inter = (edges.inter_edge, edges.inter_edge_w)
    items = edges.entities[:ITEMS]
    relation = [layer.relation_emb] if paper else []
    yield "forward", (edges.users, edges.entities, *kg, *inter), {}
    yield "forward", (edges.users, edges.entities, *kg, *inter), {"item_attn": edges.item_attn}
    yield "forward_ui", (edges.users, items, *inter), {}
    yield "forward_kg", (edges.entities, *kg), {}
    yield "shared_layer_agg", (edges.users, edges.entities, *kg, *inter, *relation), {}
    yield "ui_agg", (edges.users, items, *inter), {}
    yield "kg_agg", (edges.entities, *kg), {}
    yield "norm_attn_computer", (edges.entities, edges.edge_index), {}
    yield "norm_attn_computer", (edges.entities, *kg), {"return_logits": True}
    if paper:
        yield "forward", (edges.users, edges.entities, *kg, *inter, False, edges.item_attn), {}
        yield "forward_ui", (edges.users, items, *inter), {"mess_dropout": False}
        yield "forward_kg", (edges.entities, *kg, False), {}


def call(layer: nn.Module, name: str, args: tuple, named: dict[str, Any]) -> list[Tensor]:
    """Results, and gradients to every floating argument and to the parameters."""
    leaves = {id(p): p for p in layer.parameters()}

    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            x = leaves.setdefault(id(x), x.clone().requires_grad_())
        return x

    out = getattr(layer, name)(*map(leaf, args), **{k: leaf(v) for k, v in named.items()})
    values = list(out) if isinstance(out, tuple) else [out]
    wanted = [v for v in values if v.requires_grad]
    if not wanted:
        return values
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(v.shape, generator=generator).to(v.dtype) for v in wanted]
    grads = torch.autograd.grad(wanted, list(leaves.values()), weights, allow_unused=True)
    zeros = map(torch.zeros_like, leaves.values())
    return values + [z if g is None else g for g, z in zip(grads, zeros, strict=True)]


@pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])
@pytest.mark.parametrize("hops", [0, 1, 2, 3])
def test_values_and_gradients_in_double(paper: bool, hops: int) -> None:
    layer, edges = make(paper, hops), Edges.make()
    before = [call(layer, *case) for case in cases(layer, edges)]
    assert kgrec_fast.accelerate(layer).swapped == ("",)
    after = [call(layer, *case) for case in cases(layer, edges)]
    for mine, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])
def test_values_and_gradients_in_float(paper: bool) -> None:
    """At most twice as far from float64 as the layer was itself."""
    exact_layer, exact_edges = make(paper), Edges.make()
    layer, edges = copy.deepcopy(exact_layer).float(), Edges.make(torch.float32)
    exact = [call(exact_layer, *case) for case in cases(exact_layer, exact_edges)]
    before = [call(layer, *case) for case in cases(layer, edges)]
    kgrec_fast.accelerate(layer)
    after = [call(layer, *case) for case in cases(layer, edges)]
    for mine, theirs, oracle in zip(after, before, exact, strict=True):
        for m, t, o in zip(mine, theirs, oracle, strict=True):
            assert m.dtype == torch.float32
            allowed = 2 * (t - o).abs().max() + 1e-6 * o.abs().max()
            assert (m - o).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_contrast(dtype: torch.dtype) -> None:
    exact_layer = ContrastLike(WIDTH, 0.3).double()
    layer = copy.deepcopy(exact_layer).to(dtype)
    z1, z2 = torch.randn(2, 30, WIDTH, dtype=torch.float64)

    def run(module: nn.Module, name: str, kind: torch.dtype) -> list[Tensor]:
        torch.manual_seed(4)  # on the CPU the negatives are those that the layer would draw
        return call(module, name, (z1.to(kind), z2.to(kind)), {})

    names = ("loss", "forward")
    exact = [run(exact_layer, name, torch.float64) for name in names]
    before = [run(layer, name, dtype) for name in names]
    assert kgrec_fast.accelerate(layer).swapped == ("",)
    after = [run(layer, name, dtype) for name in names]
    for mine, theirs, oracle in zip(after, before, exact, strict=True):
        for m, t, o in zip(mine, theirs, oracle, strict=True):
            assert m.dtype == dtype
            floor = 1e-12 if dtype == torch.float64 else 1e-6
            assert (m - o).abs().max() <= 2 * (t - o).abs().max() + floor * o.abs().max()


@pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])
def test_the_layers_own_formulas_are_not_called(
    paper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, edges = make(paper), Edges.make()
    kgrec_fast.accelerate(layer)
    for name in [n for n in vars(Formulas) if not n.startswith("_")]:
        monkeypatch.setattr(Formulas, name, None)
    for case in cases(layer, edges):
        call(layer, *case)


@pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])
@pytest.mark.parametrize("swapped", [False, True])
def test_message_dropout(paper: bool, swapped: bool) -> None:
    """What is kept is divided by what is kept on average, and rows are normalised after it."""
    layer, edges = make(paper, hops=1, rate=RATE), Edges.make()
    if swapped:
        kgrec_fast.accelerate(layer)
    types = edges.edge_type + int(paper)
    arguments = (edges.entities, edges.edge_index, types)
    mean = layer.kg_agg(*arguments)
    layer.train()
    kept = all_elements = 0
    with torch.no_grad():
        for _ in range(100):
            message = layer.forward_kg(*arguments) - edges.entities
            mask = message.abs() > 1e-9
            expected = nn.functional.normalize(mean * mask / (1 - RATE))
            torch.testing.assert_close(message, expected, rtol=0, atol=1e-12)
            kept += int(mask.sum())
            all_elements += int((mean != 0).sum())
    deviation = (RATE * (1 - RATE) / all_elements) ** 0.5
    assert abs(kept / all_elements - (1 - RATE)) < 4 * deviation


@pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])
def test_when_messages_are_dropped(paper: bool) -> None:
    layer, edges = make(paper, rate=RATE), Edges.make()
    kgrec_fast.accelerate(layer)
    case = next(cases(layer, edges))[1]
    whole = layer.eval()(*case)

    def same(one: tuple, other: tuple) -> bool:
        return all(map(torch.equal, one, other))

    assert same(layer(*case), whole)
    layer.train()
    torch.manual_seed(3)
    dropped = layer(*case)
    assert not same(dropped, whole)
    assert not same(layer(*case), dropped), "new draws at each call"
    torch.manual_seed(3)
    assert same(layer(*case), dropped), "torch's generator governs"
    if paper:
        assert same(layer(*case, mess_dropout=False), whole)
        layer.dropout.p = 0.0
    else:
        layer.mess_dropout_rate = 0.0
    assert same(layer(*case), whole), "the rate is read at each call"


@pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_dropout_taken_out_of_a_layer(paper: bool, late: bool) -> None:
    layer, edges = make(paper, rate=RATE), Edges.make()
    case = next(cases(layer, edges))[1]
    whole = layer.eval()(*case)
    if late:
        kgrec_fast.accelerate(layer)
    setattr(layer, "dropout" if paper else "mess_dropout", nn.Identity())
    if not late:
        assert kgrec_fast.accelerate(layer).swapped == ("",)
    torch.testing.assert_close(layer.train()(*case), whole)


@pytest.mark.parametrize("paper", [False, True], ids=["hopwise", "paper"])
def test_training_goes_on(paper: bool) -> None:
    """Three steps, `accelerate`, three steps: as if nothing had been swapped in between."""
    model, edges = Model(paper).double(), Edges.make()
    other = copy.deepcopy(model)
    pairs = [(m, torch.optim.Adam(m.parameters(), 0.01)) for m in (model, other)]

    def steps(count: int, seed: int) -> None:
        for module, optimizer in pairs:
            torch.manual_seed(seed)
            for _ in range(count):
                optimizer.zero_grad()
                module(edges).backward()
                optimizer.step()

    steps(3, 0)
    parameters = list(model.parameters())
    state = pairs[0][1].state_dict()
    report = kgrec_fast.accelerate(model)
    assert report.swapped == ("gcn", "contrast_fn")
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    for mine, theirs in zip(
        state["state"].values(), pairs[0][1].state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    steps(3, 1)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-11)
    assert pairs[0][1].state_dict()["state"][0]["step"] == 6


def test_an_edge_list_that_stays_is_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = RelGraph.from_edges

    def counting(*args: Any, **named: Any) -> RelGraph:
        built.append(args)
        return build(*args, **named)

    for paper in (False, True):
        layer, edges = make(paper), Edges.make()
        kgrec_fast.accelerate(layer)
        monkeypatch.setattr(RelGraph, "from_edges", counting)
        types = edges.edge_type + int(paper)
        for _ in range(3):
            layer.kg_agg(edges.entities, edges.edge_index, types)
            layer.norm_attn_computer(edges.entities, edges.edge_index, types)
        assert len(built) == 1 + int(paper)
        monkeypatch.undo()


def test_relation_zero_of_the_paper_is_its_last_row() -> None:
    """No edge has it; but where one does, both read the same."""
    layer, edges = make(True), Edges.make()
    arguments = (edges.entities, edges.edge_index, edges.edge_type * 0)
    before = call(layer, "kg_agg", arguments, {})
    kgrec_fast.accelerate(layer)
    torch.testing.assert_close(call(layer, "kg_agg", arguments, {}), before)
