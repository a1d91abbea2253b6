"""KGRec against the reference on edge lists, under the same weights and the same choices."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec
from kgrec_fast.ops import use_reference

EXACT = {"rtol": 1e-9, "atol": 1e-12}

CASES = {
    "published": {},
    "nothing sampled": {"node_dropout_rate": 0.0},
    "no message dropout": {"mess_dropout_rate": 0.0},
    "all of it weighs": {"mae_coef": 1.0, "cl_coef": 1.0, "reg_weight": 1.0},
    "one hop": {"context_hops": 1, "mae_coef": 1.0, "cl_coef": 1.0},
    "three hops": {"context_hops": 3, "mae_coef": 1.0, "cl_coef": 1.0},
    "other rates": {"node_dropout_rate": 0.3, "cl_drop": 0.2, "cl_tau": 0.3, "cl_coef": 1.0},
    "nothing left out of the contrast": {"cl_drop": 0.0, "cl_coef": 1.0},
    "numpy's sampling": {"samp_func": "np"},
}


def loss_and_gradients(model, *args):
    loss = model.calculate_loss(*args)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss, dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_agree_with_the_reference(world, choice_of, case, training):
    torch.manual_seed(len(case))
    model = world.model(**CASES[case]).double().train(training)
    reference = world.reference(model, **CASES[case]).train(training)
    for _ in range(3):
        masks = model.draw_masks()
        choice = choice_of(model, masks)
        batch = world.batch()
        found = loss_and_gradients(model, batch, masks)
        wanted = loss_and_gradients(reference, batch, choice)
        torch.testing.assert_close(found, wanted, **EXACT)
        assert all(gradient.abs().max() > 0 for gradient in found[1].values())
        torch.testing.assert_close(model(masks), reference(choice), **EXACT)


def test_weights_of_the_interactions_are_taken_from_the_graph(world, choice_of):
    weight = torch.rand(world.inter_edge.shape[1], dtype=torch.float64) + 0.5
    inter = InteractionGraph.from_edges(world.inter_edge, weight, num_users=9, num_items=12)
    model = KGRec(*world.sizes, world.kg, inter, **world.hyper).double()
    reference = world.reference(model)
    torch.testing.assert_close(reference.inter_edge_w, weight)
    masks = model.draw_masks()
    found = loss_and_gradients(model, world.batch(), masks)
    wanted = loss_and_gradients(reference, world.batch(), choice_of(model, masks))
    torch.testing.assert_close(found, wanted, **EXACT)


def test_default_weights_of_the_interactions(world):
    degree = world.inter_edge[0].bincount(minlength=9)
    expected = 1 / (degree.double() + 1e-7)[world.inter_edge[0]]
    torch.testing.assert_close(world.model().inter_weight.double(), expected, rtol=1e-6, atol=0)


def test_reference_ops_give_the_same(world):
    model = world.model(mae_coef=1.0, cl_coef=1.0).double()
    masks = model.draw_masks()
    native = loss_and_gradients(model, world.batch(), masks)
    with use_reference():
        plain = loss_and_gradients(model, world.batch(), masks)
    torch.testing.assert_close(native, plain, **EXACT)


def test_float32_is_close_to_float64(world):
    model = world.model(mae_coef=1.0, cl_coef=1.0)
    exact = copy.deepcopy(model).double()
    masks = model.draw_masks()
    found = loss_and_gradients(model, world.batch(), masks)
    wanted = loss_and_gradients(exact, world.batch(), masks)
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=0)
    for name, gradient in wanted[1].items():
        error = (found[1][name].double() - gradient).norm() / gradient.norm()
        assert error < 1e-4, name


@pytest.mark.parametrize("shape", ["inverse edges", "last node has edges", "few items have edges"])
def test_shapes_of_the_knowledge_graph(world, choice_of, shape):
    """Nearly all nodes with edges; few, but the last among them; fewer than there are items."""
    if shape == "inverse edges":
        world.edge_index = torch.cat([world.edge_index, world.edge_index.flip(0)], 1)
        world.edge_type = torch.cat([world.edge_type, world.edge_type])
    elif shape == "last node has edges":
        world.edge_index[0, 7] = 59
    else:
        world.edge_index[0] %= 4
    model = world.model(mae_coef=1.0, cl_coef=1.0).double()
    rows = {"inverse edges": 56, "last node has edges": 60, "few items have edges": 13}
    assert model.kg.num_rows == rows[shape]
    assert (model.hops.later is None) == (shape == "inverse edges")
    masks = model.draw_masks()
    reference = world.reference(model, mae_coef=1.0, cl_coef=1.0)
    found = loss_and_gradients(model, world.batch(), masks)
    wanted = loss_and_gradients(reference, world.batch(), choice_of(model, masks))
    torch.testing.assert_close(found, wanted, **EXACT)
    torch.testing.assert_close(model.embeddings(), reference.eval().embeddings(), **EXACT)


def test_users_items_and_relations_without_edges(world, choice_of):
    """One user, one item with interactions, edges of one relation."""
    world.n_users = 1
    world.inter_edge = torch.tensor([[0], [5]])
    world.edge_type[:] = 4
    model = world.model().double()
    masks = model.draw_masks()
    found = loss_and_gradients(model, world.batch(), masks)
    wanted = loss_and_gradients(world.reference(model), world.batch(), choice_of(model, masks))
    torch.testing.assert_close(found, wanted, **EXACT)


def test_knowledge_graph_without_edges(world):
    world.edge_index = torch.empty(2, 0, dtype=torch.int64)
    world.edge_type = torch.empty(0, dtype=torch.int64)
    with pytest.warns(UserWarning, match="mae_msize is 5, but a step samples 0 edges"):
        model = world.model()
    loss = model.calculate_loss(world.batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.entity_embedding.weight.grad).all()
    assert model.rationales().shape == (0,)


def test_more_masked_edges_than_there_are(world, choice_of):
    sampled = int((world.edge_type.bincount() // 2).sum())
    with pytest.warns(UserWarning, match=f"mae_msize is 1000, but a step samples {sampled} edges"):
        model = world.model(mae_msize=1000)
    masks = model.double().draw_masks()
    assert masks.sampled.sum() == sampled
    torch.testing.assert_close(masks.masked, masks.sampled, rtol=0, atol=0)
    found = loss_and_gradients(model, world.batch(), masks)
    wanted = loss_and_gradients(
        world.reference(model, mae_msize=1000), world.batch(), choice_of(model, masks)
    )
    torch.testing.assert_close(found, wanted, **EXACT)


# -- parameters -----------------------------------------------------------------------------------

SHAPES = {
    "user_embedding.weight": (9, 8),
    "entity_embedding.weight": (60, 8),
    "gcn.W_Q": (8, 8),
    "gcn.relation_embedding.weight": (5, 8),
    "contrast_fn.mlp1.0.weight": (8, 8),
    "contrast_fn.mlp1.0.bias": (8,),
    "contrast_fn.mlp1.2.weight": (8, 8),
    "contrast_fn.mlp1.2.bias": (8,),
    "contrast_fn.mlp2.0.weight": (8, 8),
    "contrast_fn.mlp2.0.bias": (8,),
    "contrast_fn.mlp2.2.weight": (8, 8),
    "contrast_fn.mlp2.2.bias": (8,),
}


def test_state_dict_names_and_shapes(world):
    state = world.model().state_dict()
    assert list(state) == list(SHAPES)
    assert {name: tuple(value.shape) for name, value in state.items()} == SHAPES


def test_weights_are_xavier_uniform(world):
    model = world.model()
    model.reset_parameters()
    for name, value in model.state_dict().items():
        if name.endswith("bias"):
            assert (value == 0).all()
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.5 * bound < value.abs().max() <= bound, name


def test_published_hyper_parameters_are_the_defaults(world):
    model = KGRec(*world.sizes, world.kg, world.interactions, mae_msize=10)
    expected = {
        "embedding_size": 64,
        "reg_weight": 1e-5,
        "context_hops": 2,
        "node_dropout_rate": 0.5,
        "mess_dropout_rate": 0.1,
        "mae_coef": 0.1,
        "cl_coef": 0.01,
        "cl_tau": 1.0,
        "cl_drop": 0.5,
        "samp_func": "torch",
    }
    assert {name: getattr(model, name) for name in expected} == expected
    with pytest.warns(UserWarning, match="mae_msize is 256"):
        assert KGRec(*world.sizes, world.kg, world.interactions).mae_msize == 256


def test_state_dict_round_trip_and_deepcopy(world):
    torch.manual_seed(0)
    model = world.model().eval()
    other = world.model().eval()
    users = {"user_id": torch.arange(9)}
    before = other.full_sort_predict(users)
    other.load_state_dict(model.state_dict())
    after = other.full_sort_predict(users)
    assert (before != after).any()
    torch.testing.assert_close(after, model.full_sort_predict(users), rtol=0, atol=0)

    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.user_embedding.weight.zero_()
    model.train()
    torch.manual_seed(1)
    twin.train()
    masks = twin.draw_masks()
    assert torch.isfinite(twin.calculate_loss(world.batch(), masks))
    torch.testing.assert_close(twin.eval().full_sort_predict(users), after, rtol=0, atol=0)


def test_seeds_reproduce(world):
    model = world.model()
    torch.manual_seed(4)
    first = loss_and_gradients(model, world.batch())
    second = loss_and_gradients(model, world.batch())
    torch.manual_seed(4)
    torch.testing.assert_close(first, loss_and_gradients(model, world.batch()), rtol=0, atol=0)
    assert first[0] != second[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_change_of_dtype(world, dtype):
    model = world.model().to(dtype)
    loss = model.calculate_loss(world.batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.dtype == dtype and torch.isfinite(p.grad).all() for p in model.parameters())


def test_training_reduces_the_loss():
    """Two kinds of users and items; the knowledge graph tells the kinds of items apart."""
    torch.manual_seed(0)
    users, items = 20, 30
    pairs = torch.cartesian_prod(torch.arange(users), torch.arange(items))
    liked = pairs[pairs[:, 0] % 2 == pairs[:, 1] % 2]
    seen = liked[torch.randperm(len(liked))[:150]].t()
    item = torch.arange(items)
    kg = RelGraph.from_edges(
        torch.stack([item, items + item % 2]), torch.zeros(items, dtype=torch.int64), num_nodes=32
    )
    inter = InteractionGraph.from_edges(seen, num_users=users, num_items=items)
    model = KGRec(users, items, 32, 2, kg, inter, embedding_size=16, mae_msize=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        batch = {"user_id": seen[0], "item_id": seen[1], "neg_item_id": (seen[1] + 1) % items}
        optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    scores = model.eval().full_sort_predict({"user_id": torch.arange(users)}).view(users, items)
    same = (torch.arange(users)[:, None] % 2) == (item % 2)
    assert scores[same].mean() > scores[~same].mean() + 0.5


# -- use ------------------------------------------------------------------------------------------


def test_predictions_agree_with_the_reference_and_each_other(world):
    model = world.model().double()
    reference = world.reference(model).eval()
    users = torch.arange(9).repeat_interleave(12)
    items = torch.arange(12).repeat(9)
    for training in (True, False):  # no dropout in either
        model.train(training)
        pairs = model.predict({"user_id": users, "item_id": items})
        everything = model.full_sort_predict({"user_id": torch.arange(9)})
        assert everything.shape == (108,)
        torch.testing.assert_close(pairs, everything, **EXACT)
        torch.testing.assert_close(pairs, reference.predict({"user_id": users, "item_id": items}))
    torch.testing.assert_close(model.embeddings(), reference.embeddings(), **EXACT)


def test_rationales_agree_with_the_reference(world):
    model = world.model().double()
    reference = world.reference(model)
    wanted = reference.gcn.norm_attn_computer(
        reference.entity_embedding.weight, world.edge_index, world.edge_type
    )
    torch.testing.assert_close(model.rationales(), wanted, **EXACT)


CHANGES = {
    "train": lambda model, world: model.train().eval(),
    "load_state_dict": lambda model, world: model.load_state_dict(model.state_dict()),
    "load_state_dict of a parent": lambda model, world: torch.nn.ModuleList(
        [model]
    ).load_state_dict(torch.nn.ModuleList([model]).state_dict()),
    "calculate_loss": lambda model, world: model.calculate_loss(world.batch()),
    "dtype": lambda model, world: model.double(),
    "in place": lambda model, world: zeroed(model.user_embedding.weight),
    "an optimizer": lambda model, world: torch.optim.SGD(model.parameters(), 0.1).step(
        lambda: model.gcn.W_Q.square().sum().backward()
    ),
    "another parameter": lambda model, world: setattr(
        model.gcn, "W_Q", torch.nn.Parameter(model.gcn.W_Q.detach().clone())
    ),
}


@torch.no_grad()
def zeroed(x):
    x.zero_()


@pytest.mark.parametrize("change", CHANGES)
def test_embeddings_are_kept_in_evaluation_mode_until(world, change):
    model = world.model().eval()
    users, entities = model.embeddings()
    assert model.embeddings()[0] is users
    assert model.embeddings()[1] is entities
    assert not users.requires_grad
    CHANGES[change](model, world)
    assert model.embeddings()[0] is not users


def test_kept_embeddings_are_those_of_the_parameters_given(world):
    """Of several sets of parameters, each in place of the model's own for one call."""
    model, other = world.model().eval(), world.model().eval()
    with torch.no_grad():
        other.entity_embedding.weight.mul_(-2)
    batch = world.batch()
    own, wanted = model.predict(batch), other.predict(batch)
    assert not torch.equal(own, wanted)
    caller = Caller(model)
    sets = [{f"model.{n}": p.detach() for n, p in m.named_parameters()} for m in (model, other)]
    for parameters, scores in zip((*sets, *sets), (own, wanted) * 2, strict=True):
        assert torch.equal(torch.func.functional_call(caller, parameters, (batch,)), scores)
    assert torch.equal(model.predict(batch), own)
    stacked = {n: torch.stack([p[n] for p in sets]) for n in sets[0]}
    each = torch.func.vmap(lambda p: torch.func.functional_call(caller, p, (batch,)))(stacked)
    torch.testing.assert_close(each, torch.stack([own, wanted]), rtol=1e-6, atol=0)
    assert torch.equal(model.predict(batch), own)


class Caller(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.predict(batch)


def test_embeddings_have_a_gradient_in_training_mode(world):
    assert all(x.requires_grad for x in world.model().train().embeddings())


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_size": 9}, "embedding_size is 9"),
        ({"node_dropout_rate": 1.0}, r"node_dropout_rate is 1.0, expected it in \[0, 1\)"),
        ({"mess_dropout_rate": -0.1}, "mess_dropout_rate is -0.1"),
        ({"cl_drop": 1.5}, "cl_drop is 1.5"),
        ({"cl_drop": math.nan}, "cl_drop is nan"),
        ({"mae_msize": 0}, "mae_msize is 0, expected at least 1"),
        ({"cl_tau": 0}, "cl_tau is 0"),
        ({"mae_coef": -1}, "mae_coef is -1"),
        ({"cl_coef": math.inf}, "cl_coef is inf"),
        ({"reg_weight": -1e-5}, "reg_weight is -1e-05"),
        ({"context_hops": -2}, "n_hops is -2"),
        ({"samp_func": "jax"}, "samp_func is 'jax', expected 'torch' or 'np'"),
    ],
)
def test_bad_hyper_parameters(world, change, message):
    with pytest.raises(ValueError, match=message):
        world.model(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_users": 8}, "interactions has 9 users and 12 items, expected 8"),
        ({"n_items": 61}, r"n_items is 61, expected it in \[1, 60\]"),
        ({"n_entities": 59}, "kg has 60 rows, 60 columns and 5 relations, expected 59, 59"),
        ({"n_relations": 5}, r"and 4 \(n_relations - 1\)"),
    ],
)
def test_sizes_that_do_not_fit_the_graphs(world, change, message):
    names = ("n_users", "n_items", "n_entities", "n_relations")
    arguments = dict(zip(names, world.sizes, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        KGRec(**arguments, kg=world.kg, interactions=world.interactions, **world.hyper)


def test_graphs_of_the_wrong_kind(world):
    with pytest.raises(TypeError, match="kg is a Tensor, expected a RelGraph"):
        KGRec(*world.sizes, world.edge_index, world.interactions)
    with pytest.raises(TypeError, match="interactions is a RelGraph"):
        KGRec(*world.sizes, world.kg, world.kg)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"item_id": torch.full((32,), 12)}, ValueError, r"item_id holds 12, expected ids in"),
        ({"user_id": torch.full((32,), -1)}, ValueError, "user_id holds -1"),
        ({"neg_item_id": torch.ones(31).long()}, ValueError, r"neg_item_id has shape \[31\]"),
        ({"user_id": torch.ones(32)}, TypeError, "user_id is torch.float32"),
        ({"item_id": [1, 2]}, TypeError, "item_id is list"),
        ({"user_id": torch.ones(4, 8).long()}, ValueError, r"user_id has shape \[4, 8\]"),
    ],
)
def test_bad_batches(world, change, error, message):
    with pytest.raises(error, match=message):
        world.model().calculate_loss(world.batch() | change)


def test_batches_that_are_none(world):
    model = world.model()
    with pytest.raises(ValueError, match="batch has no 'neg_item_id'"):
        model.calculate_loss({n: v for n, v in world.batch().items() if n != "neg_item_id"})
    with pytest.raises(ValueError, match="user_id is empty"):
        model.calculate_loss({n: v[:0] for n, v in world.batch().items()})
    with pytest.raises(TypeError, match="batch is a Tensor"):
        model.predict(torch.ones(3))


def test_masks_are_complete(world):
    """Every choice of a step has a place in StepMasks, so that a step can be repeated."""
    model = world.model()
    masks = model.draw_masks()
    assert all(getattr(masks, f.name) is not None for f in dataclasses.fields(masks))
    first = model.calculate_loss(world.batch(), masks)
    assert first == model.calculate_loss(world.batch(), masks)
