"""The paper's layer by its published interface, against its formulas on edge lists in float64."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from paper_oracle import PlainLayer

from kgrec_fast import InteractionGraph, RelGraph, graph_cache
from kgrec_fast.integrations.paper import AttnHGCN, Contrast

EXACT = {"rtol": 1e-9, "atol": 1e-11}
WIDTH, ITEMS, NODES = 8, 12, 40


@pytest.fixture
def layers(world):
    torch.manual_seed(1)
    fast = AttnHGCN(WIDTH, 2, world.n_users, world.n_relations, 0.5, 0.0).double()
    plain = PlainLayer(WIDTH, 2, world.n_relations).double()
    plain.load_state_dict(fast.state_dict())
    return fast, plain


@pytest.fixture
def inputs(world):
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)
        for rows in (world.n_users, NODES)
    ]


def outputs_and_gradients(module, inputs, call):
    """Outputs of ``call(*inputs)``; gradients of inputs and parameters, outputs weighted."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.rand(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
    total = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True))
    wanted = [*inputs, *module.parameters()]
    return outputs, torch.autograd.grad(total, wanted, materialize_grads=True)


CALLS = {
    "forward": (
        lambda m, u, x, kg, ui: m(u, x, *kg, *ui),
        lambda m, u, x, kg, ui: m.rec(u, x, *kg, *ui),
    ),
    "forward_ui": (
        lambda m, u, x, kg, ui: m.forward_ui(u, x[:ITEMS], *ui),
        lambda m, u, x, kg, ui: m.ui(u, x[:ITEMS], *ui),
    ),
    "forward_kg": (
        lambda m, u, x, kg, ui: m.forward_kg(x, *kg),
        lambda m, u, x, kg, ui: m.kg(x, *kg),
    ),
    "kg_agg": (
        lambda m, u, x, kg, ui: m.kg_agg(x, *kg),
        lambda m, u, x, kg, ui: m.mean(x, *kg),
    ),
    "ui_agg": (
        lambda m, u, x, kg, ui: m.ui_agg(u, x[:ITEMS], *ui),
        lambda m, u, x, kg, ui: (
            m.to_users(x[:ITEMS], *ui, len(u)),
            m.to_items(u, *ui, ITEMS),
        ),
    ),
    "shared_layer_agg": (
        lambda m, u, x, kg, ui: m.shared_layer_agg(u, x, *kg, *ui, 2 * m.relation_emb),
        lambda m, u, x, kg, ui: (
            m.attention(x, *kg, 2 * m.relation_emb),
            m.to_users(x, *ui, len(u)),
        ),
    ),
    "non_attn_agg": (
        lambda m, u, x, kg, ui: m.non_attn_agg(u, x, *kg, *ui, 2 * m.relation_emb),
        lambda m, u, x, kg, ui: (
            m.mean(x, *kg, 2 * m.relation_emb),
            m.to_users(x, *ui, len(u)),
        ),
    ),
}


@pytest.mark.parametrize("given", ["raw", "graphs", "few rows"])
@pytest.mark.parametrize("name", CALLS)
def test_methods_agree_with_the_formulas(world, layers, inputs, name, given):
    fast, plain = layers
    raw = kg, ui = (world.edges, world.kinds), (world.pairs, world.weight)
    if given != "raw":
        rows = NODES if given == "graphs" else int(world.edges[0].max()) + 1
        graph = RelGraph.from_edges(
            *kg, num_rows=rows, num_cols=NODES, num_relations=6, first_relation=1
        )
        users = InteractionGraph.from_edges(world.pairs, num_users=9, num_items=ITEMS)
        kg, ui = (graph, None), (users, world.weight)
    ours, theirs = CALLS[name]
    found = outputs_and_gradients(fast, inputs, lambda u, x: ours(fast, u, x, kg, ui))
    wanted = outputs_and_gradients(plain, inputs, lambda u, x: theirs(plain, u, x, *raw))
    torch.testing.assert_close(found, wanted, **EXACT)


def test_item_attention(world, layers, inputs):
    fast, plain = layers
    attention = torch.randn(ITEMS, dtype=torch.float64)
    raw = (world.edges, world.kinds, world.pairs, world.weight)
    inputs = [*inputs, attention]
    found = outputs_and_gradients(
        fast, inputs, lambda u, x, a: fast(u, x, *raw, mess_dropout=True, item_attn=a)
    )
    wanted = outputs_and_gradients(
        plain, inputs, lambda u, x, a: plain.rec(u, x, *raw, item_attn=a)
    )
    torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("typed", [True, False])
def test_rationale_scores(world, layers, inputs, typed, caplog):
    fast, plain = layers
    kinds = world.kinds if typed else None
    wanted = plain.rationale(inputs[1], world.edges, kinds)
    with caplog.at_level(logging.INFO):
        found = fast.norm_attn_computer(inputs[1], world.edges, kinds, True, True)
    torch.testing.assert_close(found, tuple(x.detach() for x in wanted), **EXACT)
    assert not found[0].requires_grad
    assert caplog.messages == [f"edge_attn_score std: {found[0].std()}"]
    again = fast.norm_attn_computer(inputs[1], world.edges, kinds)
    torch.testing.assert_close(again, found[0], rtol=0, atol=0)
    assert len(caplog.messages) == 1


def test_message_dropout_is_asked_for_and_of_training(world, inputs):
    torch.manual_seed(0)
    layer = AttnHGCN(WIDTH, 1, world.n_users, world.n_relations, mess_dropout_rate=0.5).double()
    raw = (world.edges, world.kinds, world.pairs, world.weight)
    users, x = inputs
    calls = [
        lambda drop: layer(users, x, *raw, drop),
        lambda drop: (layer.forward_kg(x, *raw[:2], drop),),
        lambda drop: (layer.forward_ui(users, x[:ITEMS], *raw[2:], drop),),
    ]
    for call in calls:
        without = call(False)
        torch.testing.assert_close(call(False), without, rtol=0, atol=0)
        assert all((a != b).any() for a, b in zip(call(True), without, strict=True))
        torch.manual_seed(4)
        first = call(True)
        torch.manual_seed(4)
        torch.testing.assert_close(call(True), first, rtol=0, atol=0)
        torch.testing.assert_close(layer.eval() and call(True), without, rtol=0, atol=0)
        layer.train()


def test_half_of_the_elements_are_dropped(world, inputs):
    """Seen before normalisation takes the scale away: a message has zeros where one was dropped."""
    layer = AttnHGCN(WIDTH, 1, world.n_users, world.n_relations, mess_dropout_rate=0.5).double()
    has_edges = torch.isin(torch.arange(NODES), world.edges[0])
    zero = torch.cat(
        [
            (layer.forward_kg(inputs[1], world.edges, world.kinds) == inputs[1])[has_edges]
            for _ in range(20)
        ]
    )
    # Within 4.9 standard deviations of a half, an error rate of 1e-6.
    assert abs(zero.double().mean() - 0.5) < 4.9 * 0.5 / zero.numel() ** 0.5


def test_raw_edges_are_sorted_once(world, layers, inputs, monkeypatch):
    fast, _ = layers
    graph_cache.clear()
    built = []
    real = RelGraph.from_edges
    monkeypatch.setattr(RelGraph, "from_edges", lambda *a, **k: built.append(1) or real(*a, **k))
    for _ in range(3):
        fast.forward_kg(inputs[1], world.edges, world.kinds)
    assert built == [1]


def test_published_signatures():
    def parameters(function) -> list[str]:
        return [
            name if p.default is p.empty else f"{name}={p.default}"
            for name, p in inspect.signature(function).parameters.items()
        ]

    kg, ui = "edge_index edge_type", "inter_edge inter_edge_w"
    published = {
        "__init__": "channel n_hops n_users n_relations node_dropout_rate=0.5"
        " mess_dropout_rate=0.1",
        "forward": f"user_emb entity_emb {kg} {ui} mess_dropout=True item_attn=None",
        "forward_ui": f"user_emb item_emb {ui} mess_dropout=True",
        "forward_kg": f"entity_emb {kg} mess_dropout=True",
        "ui_agg": f"user_emb item_emb {ui}",
        "kg_agg": f"entity_emb {kg}",
        "non_attn_agg": f"user_emb entity_emb {kg} {ui} relation_emb",
        "shared_layer_agg": f"user_emb entity_emb {kg} {ui} relation_emb",
        "norm_attn_computer": "entity_emb edge_index edge_type=None print=False"
        " return_logits=False",
    }
    for name, names in published.items():
        assert parameters(getattr(AttnHGCN, name)) == ["self", *names.split()], name
    assert parameters(Contrast.__init__)[:3] == ["self", "num_hidden", "tau=0.7"]


def test_published_parameters(world):
    layer = AttnHGCN(WIDTH, 2, world.n_users, world.n_relations)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert list(shapes.items()) == [("relation_emb", (6, WIDTH)), ("W_Q", (WIDTH, WIDTH))]
    assert list(layer.state_dict()) == ["relation_emb", "W_Q"]
    for p in layer.parameters():
        bound = (6 / sum(p.shape)) ** 0.5
        assert 0.5 * bound < p.abs().max() <= bound
    assert (layer.n_heads, layer.d_k, layer.n_hops, layer.n_users) == (2, 4, 2, 9)
    assert (layer.node_dropout_rate, layer.mess_dropout_rate) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel": 7}, "channel is 7, expected a positive multiple of 2"),
        ({"n_relations": 1}, "n_relations is 1"),
        ({"mess_dropout_rate": 1.0}, "mess_dropout_rate is 1.0"),
        ({"n_hops": -1}, "n_hops is -1"),
    ],
)
def test_bad_sizes(change, message):
    with pytest.raises(ValueError, match=message):
        AttnHGCN(**({"channel": 8, "n_hops": 2, "n_users": 9, "n_relations": 7} | change))


def test_bad_edges_are_named_with_the_callers_ids(world, layers, inputs):
    fast, _ = layers
    with pytest.raises(ValueError, match=r"edge_type\[\d+\] is 0, expected 1 <= id < 7"):
        fast.forward_kg(inputs[1], world.edges, world.kinds - 1)
    with pytest.raises(ValueError, match=r"edge_type\[\d+\] is 7, expected 1 <= id < 7"):
        fast.forward_kg(inputs[1], world.edges, world.kinds + 1)
    with pytest.raises(ValueError, match="edge_type is None"):
        fast.forward_kg(inputs[1], world.edges, None)
