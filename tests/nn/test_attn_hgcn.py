"""AttnHGCN against plain PyTorch on edge lists, values and all gradients in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from kgrec_fast.graph import RelGraph
from kgrec_fast.models.reference import ReferenceAttnHGCN
from kgrec_fast.nn import AttnHGCN, HopGraphs, _row_graphs
from kgrec_fast.nn._item_attention import user_softmax
from kgrec_fast.nn._streams import DROPOUT_STREAMS, dropout_stream
from kgrec_fast.ops import dropout_normalize_add

USERS, ITEMS, NODES, RELATIONS, WIDTH = 7, 9, 40, 5, 8
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def layers():
    torch.manual_seed(1)
    fast = AttnHGCN(WIDTH, 2, USERS, RELATIONS, mess_dropout_rate=0.0).double()
    reference = ReferenceAttnHGCN(WIDTH, 2, USERS, RELATIONS, mess_dropout_rate=0.0).double()
    reference.load_state_dict(fast.state_dict())
    return fast, reference


def outputs_and_gradients(module, inputs, call):
    """Outputs of ``call(module, *inputs)``, gradients of inputs and parameters.

    Each output is weighted by fixed random numbers, so that no gradient cancels.
    """
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = call(module, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(9)
    total = sum(
        (out * torch.rand(out.shape, generator=generator, dtype=out.dtype)).sum() for out in outputs
    )
    wanted = [*inputs, *module.parameters()]
    return outputs, torch.autograd.grad(total, wanted, materialize_grads=True)


METHODS = {
    "shared_layer_agg": lambda m, t, u, x, kg, ui: m.shared_layer_agg(u, x, *kg, *ui),
    "forward": lambda m, t, u, x, kg, ui: m(u, x, *kg, *ui),
    "forward_ui": lambda m, t, u, x, kg, ui: m.forward_ui(u, x[:ITEMS], *ui),
    "forward_kg": lambda m, t, u, x, kg, ui: m.forward_kg(x, *kg),
    "ui_agg": lambda m, t, u, x, kg, ui: m.ui_agg(u, x[:ITEMS], *ui),
    "kg_agg": lambda m, t, u, x, kg, ui: m.kg_agg(x, *kg),
}


def compact(toy):
    """The graph with a row for each of the first nodes, and one for all later: none has edges."""
    return RelGraph.from_edges(
        toy.edge_index, toy.edge_type, num_rows=13, num_cols=NODES, num_relations=RELATIONS - 1
    )


GIVEN = {
    "graph": lambda toy: toy.kg,
    "graph with few rows": compact,
    "hops": lambda toy: HopGraphs.of(toy.kg, ITEMS),
    "hops with few rows": lambda toy: HopGraphs.of(compact(toy)),
}


@pytest.mark.parametrize("given", ["raw", *GIVEN])
@pytest.mark.parametrize("method", METHODS)
def test_methods_agree_with_the_reference(toy, layers, method, given):
    fast, reference = layers
    raw = kg, ui = ((toy.edge_index, toy.edge_type), (toy.inter_edge, toy.inter_edge_w))
    if given != "raw":
        kg, ui = (GIVEN[given](toy), None), (toy.interactions, toy.inter_edge_w)
    call = METHODS[method]
    inputs = [toy.users, toy.entities]
    found = outputs_and_gradients(fast, inputs, lambda m, u, x: call(m, toy, u, x, kg, ui))
    wanted = outputs_and_gradients(reference, inputs, lambda m, u, x: call(m, toy, u, x, *raw))
    torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_masks_are_edge_lists_without_the_masked_edges(toy, layers, method, as_tensor, given):
    fast, reference = layers
    generator = torch.Generator().manual_seed(2)
    keep = torch.rand(80, generator=generator) < 0.6
    keep &= toy.edge_index[0] != 5  # a head that loses all its edges
    kept = torch.rand(25, generator=generator) < 0.6
    kept &= toy.inter_edge[0] != 2
    kg, ui = GIVEN[given](toy), toy.interactions
    masks = {"edge_mask": keep, "inter_mask": kept}
    if not as_tensor:
        masks = {"edge_mask": toy.kg.edge_mask(keep), "inter_mask": ui.edge_mask(kept)}
    only = {"forward_ui": ["inter_mask"], "ui_agg": ["inter_mask"]}
    only |= {"forward_kg": ["edge_mask"], "kg_agg": ["edge_mask"]}
    masks = {name: masks[name] for name in only.get(method, masks)}

    class Masked(torch.nn.Module):
        """Passes the masks on, so that the same calls serve."""

        def __init__(self):
            super().__init__()
            self.layer = fast

        def __getattr__(self, name):
            if name in METHODS:
                return lambda *a: getattr(fast, name)(*a, **masks)
            return super().__getattr__(name)

        def forward(self, *a):
            return fast(*a, **masks)

    call = METHODS[method]
    inputs = [toy.users, toy.entities]
    weights = toy.inter_edge_w
    found = outputs_and_gradients(
        Masked(), inputs, lambda m, u, x: call(m, toy, u, x, (kg, None), (ui, weights))
    )
    few = (toy.edge_index[:, keep], toy.edge_type[keep]), (toy.inter_edge[:, kept], weights[kept])
    wanted = outputs_and_gradients(reference, inputs, lambda m, u, x: call(m, toy, u, x, *few))
    torch.testing.assert_close(found, wanted, **EXACT)


def test_item_attention_of_the_items_alone_with_raw_edges(toy, layers):
    """Raw edges do not say how many nodes are items."""
    fast, _ = layers
    attention = torch.randn(ITEMS, dtype=torch.float64)
    raw = (toy.edge_index, toy.edge_type, toy.inter_edge, toy.inter_edge_w)
    wanted = fast(toy.users, toy.entities, toy.kg, None, toy.interactions, raw[3], attention)
    found = fast(toy.users, toy.entities, *raw, attention)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    items = int(toy.inter_edge[1].max()) + 1
    with pytest.raises(ValueError, match=f"with n at least {items}, the number of items"):
        fast(toy.users, toy.entities, *raw, attention[: items - 1])


@pytest.mark.parametrize("masked", [False, True])
def test_item_attention(toy, layers, masked):
    fast, reference = layers
    attention = torch.randn(ITEMS, dtype=torch.float64)
    kept = torch.ones(25, dtype=torch.bool)
    if masked:
        kept[::3] = False
        kept[toy.inter_edge[0] == 2] = False
    mask = kept if masked else None
    inputs = [toy.users, toy.entities, attention, toy.inter_edge_w]
    kg = (toy.edge_index, toy.edge_type)
    found = outputs_and_gradients(
        fast,
        inputs,
        lambda m, u, x, a, w: m(u, x, toy.kg, None, toy.interactions, w, a, inter_mask=mask),
    )
    wanted = outputs_and_gradients(
        reference,
        inputs,
        lambda m, u, x, a, w: m(u, x, *kg, toy.inter_edge[:, kept], w[kept], a),
    )
    torch.testing.assert_close(found, wanted, **EXACT)


def test_item_attention_sums_to_the_number_of_interactions(toy):
    """Checked apart: the factor is equal for all of a user, and forward normalises it away."""
    attention = torch.randn(ITEMS, dtype=torch.float64)
    kept = torch.arange(25) % 3 > 0
    ui = toy.interactions
    weight = user_softmax(attention, ui, ui.edge_mask(kept))
    user, item = toy.inter_edge
    for one in range(USERS):
        mine = kept & (user == one)
        expected = attention[item[mine]].softmax(0) * mine.sum()
        torch.testing.assert_close(weight[mine], expected)


@pytest.mark.parametrize("typed", [False, True])
def test_rationale_scores(toy, layers, typed):
    fast, reference = layers
    types = toy.edge_type if typed else None
    entities = toy.entities.clone().requires_grad_()
    found = fast.norm_attn_computer(entities, toy.edge_index, types, return_logits=True)
    wanted = reference.norm_attn_computer(toy.entities, toy.edge_index, types, return_logits=True)
    torch.testing.assert_close(found, wanted, **EXACT)
    assert not any(x.requires_grad for x in found)
    alone = fast.norm_attn_computer(entities, toy.edge_index, types)
    torch.testing.assert_close(alone, found[0], rtol=0, atol=0)


def test_rationale_scores_of_a_graph_with_a_mask(toy, layers):
    fast, reference = layers
    keep = torch.rand(80) < 0.5
    scores, logits = fast.norm_attn_computer(
        toy.entities, toy.kg, return_logits=True, edge_mask=keep
    )
    wanted = reference.norm_attn_computer(
        toy.entities, toy.edge_index[:, keep], toy.edge_type[keep], return_logits=True
    )
    torch.testing.assert_close((scores[keep], logits[keep]), wanted, **EXACT)
    assert (scores[~keep] == 0).all()
    assert (logits[~keep] == -torch.inf).all()


def test_weights_default_to_those_of_the_graph(toy, layers):
    fast, _ = layers
    weighted = type(toy.interactions).from_edges(
        toy.inter_edge, toy.inter_edge_w, num_users=USERS, num_items=ITEMS
    )
    found = fast.ui_agg(toy.users, toy.entities[:ITEMS], weighted, None)
    wanted = fast.ui_agg(toy.users, toy.entities[:ITEMS], toy.inter_edge, toy.inter_edge_w)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    ones = fast.ui_agg(toy.users, toy.entities[:ITEMS], toy.inter_edge, None)
    wanted = fast.ui_agg(
        toy.users, toy.entities[:ITEMS], toy.inter_edge, torch.ones(25, dtype=torch.float64)
    )
    torch.testing.assert_close(ones, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("given", ["hops", "hops with few rows", "plain"])
@pytest.mark.parametrize("n_hops", [0, 1, 2, 3])
@pytest.mark.parametrize("by", ["masks", "graphs of their own"])
def test_messages_are_what_forward_adds(toy, n_hops, given, by, monkeypatch):
    """With what is known given, and with the rows that nobody reads left out; gradients too."""
    monkeypatch.setattr(_row_graphs, "SPARSE", 0 if by == "graphs of their own" else NODES)
    layer = AttnHGCN(WIDTH, n_hops, USERS, RELATIONS, mess_dropout_rate=0.2).double()
    hops = HopGraphs(toy.kg) if given == "plain" else GIVEN[given](toy)
    ui, weight, rng = toy.interactions, toy.inter_edge_w, torch.tensor([3, 1])
    mask = hops.first.edge_mask(torch.arange(80) % 3 > 0)
    entities = torch.tensor([0, 2, 7, 11, NODES - 1, 2])  # one without edges, one twice
    users = torch.tensor([6, 1, 6])

    def known(m, u, x):
        user_sum, entity_sum = m.messages(
            u,
            x,
            hops,
            ui,
            weight,
            edge_mask=mask,
            rng=rng,
            query=x @ m.W_Q,
            item_emb=x[:ITEMS],
            user_ids=users,
            entity_ids=entities,
        )
        kg_sum = m.kg_messages(x, hops, edge_mask=mask, rng=rng, first_rows=ITEMS)
        return u[users] + user_sum, x[entities] + entity_sum, x[:ITEMS] + kg_sum

    def full(m, u, x):
        new_users, new_entities = m(u, x, toy.kg, None, ui, weight, edge_mask=mask, rng=rng)
        kg = m.forward_kg(x, toy.kg, edge_mask=mask, rng=rng)
        return new_users[users], new_entities[entities], kg[:ITEMS]

    inputs = [toy.users, toy.entities]
    torch.testing.assert_close(
        outputs_and_gradients(layer, inputs, known),
        outputs_and_gradients(layer, inputs, full),
        **EXACT,
    )


def test_later_hops_read_the_edges_between_nodes_with_edges(toy):
    hops = HopGraphs.of(toy.kg)
    inner = toy.edge_index[1] < 12
    assert 0 < inner.sum() < 64
    assert hops.later.num_edges == inner.sum()
    torch.testing.assert_close(hops.later.to_row_order(hops.later.rel), hops.first.rel[~hops.outer])
    mask = toy.kg.edge_mask(torch.arange(80) % 2 == 0)
    found = hops.count_outer(mask, torch.float64).flatten()
    wanted = toy.edge_index[0][::2][~inner[::2]].bincount(minlength=NODES)
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=0)


def test_a_graph_that_later_hops_read_whole_is_not_built_twice(toy):
    both = torch.cat([toy.edge_index, toy.edge_index.flip(0)], 1)
    graph = RelGraph.from_edges(both, toy.edge_type.repeat(2), num_nodes=NODES, num_relations=4)
    hops = HopGraphs.of(graph)
    assert hops == HopGraphs(graph)
    assert hops.later_mask(None) is None
    assert hops.count_outer(None, torch.float64) is None


# -- message dropout ------------------------------------------------------------------------------


def kept_elements(rng, rate, rows, place, hop):
    """Which elements message dropout keeps, read off the op."""
    ones = torch.ones(rows, WIDTH, dtype=torch.float64)
    stream = dropout_stream(place, hop)
    return dropout_normalize_add(ones, torch.zeros_like(ones), rate, rng, stream, True)[0] != 0


def test_dropout_agrees_with_the_reference(toy):
    rate = 0.3
    fast = AttnHGCN(WIDTH, 2, USERS, RELATIONS, rate).double()
    reference = ReferenceAttnHGCN(WIDTH, 2, USERS, RELATIONS, rate).double()
    reference.load_state_dict(fast.state_dict())
    rng = torch.tensor([17, 4])
    rows = {"entity": NODES, "user": USERS, "item": ITEMS}
    masks = {
        f"{place}/{hop}": kept_elements(rng, rate, rows[place.split("/")[1]], place, hop)
        for place in DROPOUT_STREAMS
        for hop in range(2)
    }
    assert not any(mask.all() for mask in masks.values())
    kg, ui = (toy.edge_index, toy.edge_type), (toy.inter_edge, toy.inter_edge_w)
    for method in ("forward", "forward_ui", "forward_kg"):
        call, inputs = METHODS[method], [toy.users, toy.entities]
        found = outputs_and_gradients(
            fast, inputs, lambda m, u, x, c=call: c(WithRng(m, rng=rng), toy, u, x, kg, ui)
        )
        wanted = outputs_and_gradients(
            reference,
            inputs,
            lambda m, u, x, c=call: c(WithRng(m, dropout=masks), toy, u, x, kg, ui),
        )
        torch.testing.assert_close(found, wanted, **EXACT)


class WithRng:
    """A module whose forward methods get further keywords."""

    def __init__(self, module, **keywords):
        self.module, self.keywords = module, keywords

    def __call__(self, *args):
        return self.module(*args, **self.keywords)

    def __getattr__(self, name):
        method = getattr(self.module, name)
        return lambda *args: method(*args, **self.keywords)


def test_every_use_of_dropout_has_a_stream_of_its_own():
    streams = [dropout_stream(p, h) for p in DROPOUT_STREAMS for h in (0, 1, 127)]
    assert len(set(streams)) == len(streams)
    rng = torch.tensor([1, 2])
    masks = [
        kept_elements(rng, 0.5, 100, place, hop) for place in DROPOUT_STREAMS for hop in (0, 1)
    ]
    for one, other in itertools.combinations(masks, 2):
        assert 0.35 < (one == other).double().mean() < 0.65  # 800 fair coins, 8 sigma


def test_torchs_generator_governs_dropout(toy):
    layer = AttnHGCN(WIDTH, 2, USERS, RELATIONS, 0.5).double()

    def run():
        return layer.forward_kg(toy.entities, toy.kg)

    torch.manual_seed(0)
    first, second = run(), run()
    torch.manual_seed(0)
    torch.testing.assert_close(first, run(), rtol=0, atol=0)
    assert (first != second).any()
    torch.testing.assert_close(layer.eval().forward_kg(toy.entities, toy.kg), run(), rtol=0, atol=0)


def test_dropout_can_be_switched_off_in_training_mode(toy):
    layer = AttnHGCN(WIDTH, 2, USERS, RELATIONS, 0.5).double()
    args = (toy.users, toy.entities, toy.kg, None, toy.interactions, toy.inter_edge_w)
    off = layer(*args, dropout=False)
    torch.testing.assert_close(off, layer.eval()(*args), rtol=0, atol=0)


# -- parameters, sizes, errors --------------------------------------------------------------------


def test_state_dict_names_and_shapes():
    shapes = {n: tuple(v.shape) for n, v in AttnHGCN(8, 2, 3, 5).state_dict().items()}
    assert shapes == {"W_Q": (8, 8), "relation_embedding.weight": (4, 8)}


def test_weights_are_xavier_uniform():
    torch.manual_seed(0)
    layer = AttnHGCN(256, 1, 1, 200)
    for weight, fan in ((layer.W_Q, 256 + 256), (layer.relation_embedding.weight, 199 + 256)):
        bound = (6 / fan) ** 0.5
        assert weight.abs().max() <= bound
        # Variance bound^2 / 3 over some 50,000 draws: 2 % are 8 standard deviations.
        assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.02)


def test_nodes_without_edges_keep_their_embedding(toy, layers):
    fast, _ = layers
    users, entities = fast(
        toy.users, toy.entities, toy.kg, None, toy.interactions, toy.inter_edge_w
    )
    torch.testing.assert_close(entities[12:], toy.entities[12:], rtol=0, atol=0)
    torch.testing.assert_close(users[6], toy.users[6], rtol=0, atol=0)
    norms = (fast.forward_kg(toy.entities, toy.kg) - toy.entities)[:12].norm(dim=1)
    assert (norms > 0.1).all()


def test_no_edges_at_all(layers):
    fast, _ = layers
    users, entities = torch.randn(USERS, WIDTH).double(), torch.randn(NODES, WIDTH).double()
    none = torch.empty(2, 0, dtype=torch.int64)
    types, weights = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64)
    found = fast(users, entities, none, types, none, weights)
    torch.testing.assert_close(found, (users, entities), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_size": 7}, "embedding_size is 7, expected a positive multiple of 2"),
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"n_hops": -1}, "n_hops is -1"),
        ({"n_users": 0}, "n_users is 0"),
        ({"n_relations": 1}, "n_relations is 1, expected at least 2"),
        ({"mess_dropout_rate": 1.0}, r"mess_dropout_rate is 1.0, expected it in \[0, 1\)"),
    ],
)
def test_bad_constructor_arguments(change, message):
    arguments = {"embedding_size": 8, "n_hops": 2, "n_users": 3, "n_relations": 4}
    with pytest.raises(ValueError, match=message):
        AttnHGCN(**(arguments | change))


def test_bad_inputs(toy, layers):
    fast, _ = layers
    kg, ui = toy.kg, toy.interactions
    with pytest.raises(ValueError, match=r"entity_emb has shape \[40, 7\], expected \[n, 8\]"):
        fast.forward_kg(toy.entities[:, :7], kg)
    with pytest.raises(TypeError, match="user_emb is a list"):
        fast.ui_agg([1.0], toy.entities[:ITEMS], ui, toy.inter_edge_w)
    with pytest.raises(ValueError, match="edge_type is None"):
        fast.forward_kg(toy.entities, toy.edge_index)
    with pytest.raises(ValueError, match="edge_type is given together with a graph"):
        fast.forward_kg(toy.entities, kg, toy.edge_type)
    with pytest.raises(ValueError, match="edge_index is a graph with 40 rows"):
        fast.forward_kg(toy.entities[:39], kg)
    with pytest.raises(ValueError, match="expected 7 users and 8 items"):
        fast.ui_agg(toy.users, toy.entities[: ITEMS - 1], ui, toy.inter_edge_w)
    with pytest.raises(ValueError, match="of 7 users and 9 items, expected 6 users"):
        fast.ui_agg(toy.users[:6], toy.entities[:ITEMS], ui, toy.inter_edge_w)
    with pytest.raises(ValueError, match=r"inter_edge has shape \[3, \d+\], expected \[2, E\]"):
        fast.ui_agg(
            toy.users, toy.entities[:ITEMS], torch.cat([toy.inter_edge, toy.inter_edge[:1]]), None
        )
    with pytest.raises(ValueError, match=r"inter_edge\[0\]\[\d+\] is \d+, expected .*\(users\)"):
        fast(toy.users, toy.entities, kg, None, toy.inter_edge + 7, None)
    with pytest.raises(TypeError, match="inter_edge is a RelGraph"):
        fast(toy.users, toy.entities, kg, None, kg, None)
    with pytest.raises(TypeError, match="edge_index has layout"):
        fast.forward_kg(toy.entities, toy.edge_index.to_sparse(), toy.edge_type)
    with pytest.raises(ValueError, match="item_attn has shape"):
        fast(toy.users, toy.entities, kg, None, ui, None, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="edge_type"):
        fast.forward_kg(toy.entities, toy.edge_index, toy.edge_type + 2)
