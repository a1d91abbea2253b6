"""The model that a framework gets: its graphs, parameters, losses and scores."""

from __future__ import annotations

import copy
import importlib
import logging
from collections import Counter
from typing import Any

import pytest
import torch
from framework_runs import FRAMEWORK, Built, build, framework_utils, options, pair_batch
from torch import Tensor

import kgrec_fast.models
from benchmarks.train_step import choice_of
from kgrec_fast.models.reference import ReferenceKGRec

# Those of hopwise's own KGRec, in its order.
PARAMETERS = [
    "user_embedding.weight",
    "entity_embedding.weight",
    "gcn.W_Q",
    "gcn.relation_embedding.weight",
    *(
        f"contrast_fn.{mlp}.{layer}.{kind}"
        for mlp in ("mlp1", "mlp2")
        for layer in (0, 2)
        for kind in ("weight", "bias")
    ),
]
PUBLISHED = {
    "embedding_size": 64,
    "reg_weight": 1e-5,
    "context_hops": 2,
    "node_dropout_rate": 0.5,
    "mess_dropout_rate": 0.1,
    "mae_coef": 0.1,
    "mae_msize": 256,
    "cl_coef": 0.01,
    "cl_tau": 1.0,
    "cl_drop": 0.5,
    "samp_func": "torch",
}


@pytest.fixture
def built(data_path) -> Built:
    return build(options(data_path))


def distinct_pairs(dataset: Any) -> set[tuple[int, int]]:
    columns = (dataset.inter_feat[name].tolist() for name in ("user_id", "item_id"))
    return set(zip(*columns, strict=True))


def scores_of(model: Any, users: list[int]) -> Tensor:
    return model.full_sort_predict({"user_id": torch.tensor(users)})


def test_is_a_model_of_the_framework(built):
    model = built.model
    kinds = [kind.__name__ for kind in type(model).__mro__]
    assert "KnowledgeRecommender" in kinds
    assert isinstance(model, kgrec_fast.models.KGRec)
    assert model.type == framework_utils.ModelType.KNOWLEDGE
    assert model.input_type == framework_utils.InputType.PAIRWISE
    assert "Trainable parameters" in str(model)


def test_parameters_have_the_published_names_and_order(built):
    assert [name for name, _ in built.model.named_parameters()] == PARAMETERS
    assert list(built.model.state_dict()) == PARAMETERS  # no buffers beside them
    dataset = built.dataset
    shapes = [tuple(p.shape) for p in built.model.parameters()][:4]
    relations = dataset.relation_num - 1
    assert shapes == [(dataset.user_num, 16), (dataset.entity_num, 16), (16, 16), (relations, 16)]


def test_graphs_are_those_of_the_data_set(built):
    dataset, model = built.dataset, built.model
    triples = zip(
        *(dataset.kg_feat[name].tolist() for name in ("head_id", "relation_id", "tail_id")),
        strict=True,
    )
    head, tail = model.edge_index.tolist()
    found = Counter(zip(head, model.edge_type.tolist(), tail, strict=True))
    assert found == Counter(triples)
    assert min(found)[1] >= 1  # relation 0 is padding
    edges = model.interactions.edge_index.t().tolist()
    assert len(dataset.inter_feat) > len(edges)  # the data repeats some of them
    assert sorted(map(tuple, edges)) == sorted(distinct_pairs(dataset))


def test_interactions_weigh_one_over_the_degree(built):
    pairs = distinct_pairs(built.dataset)
    degree = Counter(user for user, _ in pairs)
    users = built.model.interactions.edge_index[0].tolist()
    wanted = torch.tensor([1 / (degree[user] + 1e-7) for user in users])
    torch.testing.assert_close(built.model.inter_weight, wanted, rtol=3e-7, atol=0)


def test_what_the_configuration_lacks_is_as_published(data_path):
    settings = options(data_path)
    for name in ("embedding_size", "mae_msize"):
        del settings[name]
    built = build(settings)
    assert all(built.config[name] is None for name in PUBLISHED)
    assert {name: getattr(built.model, name) for name in PUBLISHED} == PUBLISHED
    assert built.model.gcn.n_hops == 2
    assert built.model.contrast_fn.tau == 1.0


def test_what_the_configuration_has_is_taken(data_path):
    settings = options(
        data_path, cl_tau=0.3, context_hops=1, node_dropout_rate=0.25, samp_func="np"
    )
    model = build(settings).model
    assert (model.cl_tau, model.context_hops, model.node_dropout_rate) == (0.3, 1, 0.25)
    assert (model.gcn.n_hops, model.contrast_fn.tau, model.samp_func) == (1, 0.3, "np")


def test_wrong_hyper_parameter_is_named(data_path):
    with pytest.raises(ValueError, match=r"cl_drop is 1\.5, expected it in"):
        build(options(data_path, cl_drop=1.5))


@pytest.mark.parametrize("node_dropout_rate", [0.5, 0.0])
def test_loss_and_gradients_are_the_published_ones(data_path, node_dropout_rate):
    """In float64; the contrast runs over all items, the padding row among them."""
    settings = options(data_path, mess_dropout_rate=0.0, node_dropout_rate=node_dropout_rate)
    built = build(settings)
    dataset, model = built.dataset, built.model.double()
    model.train()
    reference = ReferenceKGRec(
        dataset.user_num,
        dataset.item_num,
        dataset.entity_num,
        dataset.relation_num,
        model.edge_index,
        model.edge_type,
        model.interactions.edge_index,
        model.inter_weight,
        embedding_size=16,
        mae_msize=20,
        mess_dropout_rate=0.0,
        node_dropout_rate=node_dropout_rate,
    ).double()
    # An item without any output of so narrow an MLP would have the gradient of 1e12 times a row.
    for layer in (model.contrast_fn.mlp1[-1], model.contrast_fn.mlp2[-1]):
        torch.nn.init.constant_(layer.bias, 0.1)
    reference.load_state_dict(model.state_dict(), strict=True)
    masks = model.draw_masks()
    assert masks.permutation.sort().values.tolist() == list(range(dataset.item_num))
    batch = built.batch()
    found = model.calculate_loss(batch, masks)
    pairs = {name: batch[name] for name in ("user_id", "item_id", "neg_item_id")}
    wanted = reference.calculate_loss(pairs, choice_of(model, masks))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    found.backward()
    wanted.backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-8, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_optimizer_state_loads_both_ways(built):
    model = built.model
    reference = ReferenceKGRec(
        model.n_users,
        model.n_items,
        model.n_entities,
        model.n_relations,
        model.edge_index,
        model.edge_type,
        model.interactions.edge_index,
        embedding_size=16,
        mae_msize=20,
    )
    reference.load_state_dict(model.state_dict(), strict=True)
    ours, theirs = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, reference))
    batch = pair_batch(built)
    model.calculate_loss(batch).backward()
    ours.step()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    reference.load_state_dict(model.state_dict(), strict=True)
    for other, parameter in zip(reference.parameters(), model.parameters(), strict=True):
        other.grad = parameter.grad.clone()
    ours.step()
    theirs.step()
    for other, parameter in zip(reference.parameters(), model.parameters(), strict=True):
        assert torch.equal(other, parameter)
    model.load_state_dict(reference.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict()["state"][2]["step"] == 2


def test_other_field_names(data_path, tmp_path):
    """A data set that calls its users and items otherwise."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for suffix in ("inter", "kg", "link"):
        text = (data_path / "planted" / f"planted.{suffix}").read_text(encoding="utf-8")
        text = text.replace("user_id:", "reader:").replace("item_id:", "book:")
        (folder / f"planted.{suffix}").write_text(text.replace("relation_id:", "verb:"))
    columns = {
        "inter": ["reader", "book", "rating", "timestamp"],
        "kg": ["head_id", "verb", "tail_id"],
        "link": ["book", "entity_id"],
    }
    names = {"USER_ID_FIELD": "reader", "ITEM_ID_FIELD": "book", "RELATION_ID_FIELD": "verb"}
    built = build(options(tmp_path, load_col=columns, **names))
    batch = built.batch()
    assert {"reader", "book", "neg_book"} <= set(batch.columns)
    loss = built.model.calculate_loss(batch)
    loss.backward()
    assert built.model.gcn.W_Q.grad.abs().sum() > 0
    assert 0.1 < loss.item() < 2


def test_batch_without_negatives_is_named(built):
    batch = pair_batch(built)
    del batch["neg_item_id"]
    with pytest.raises(ValueError, match="batch has no 'neg_item_id'"):
        built.model.calculate_loss(batch)


def test_predictions_agree_with_the_embeddings(built):
    model = built.model.eval()
    batch = pair_batch(built, 20)
    users, entities = model.embeddings()
    wanted = users[batch["user_id"]] @ entities[: model.n_items].t()
    full = model.full_sort_predict(batch)
    assert full.shape == (20 * model.n_items,)
    torch.testing.assert_close(full.view(20, -1), wanted)
    pairs = wanted.gather(1, batch["item_id"].unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(model.predict(batch), pairs)


def test_returned_scores_may_be_overwritten(built):
    """As the frameworks do, to leave out padding and what is known."""
    model, batch = built.model.eval(), pair_batch(built, 20)
    for predict in (model.full_sort_predict, model.predict):
        first = predict(batch)
        kept = first.clone()
        first.fill_(-torch.inf)
        assert torch.equal(predict(batch), kept)


@pytest.mark.parametrize("change", ["train", "eval", "load_state_dict"])
def test_embeddings_are_dropped(built, change):
    model = built.model.eval()
    before = scores_of(model, [1, 2])
    model.entity_embedding.weight.data.mul_(2)  # torch counts no change
    assert torch.equal(scores_of(model, [1, 2]), before)  # kept, until the model is told
    if change == "load_state_dict":
        model.load_state_dict(model.state_dict())
    else:
        getattr(model, change)()
    after = scores_of(model, [1, 2])
    assert (after - before).abs().max() > 0.1 * before.abs().max()


def test_survives_the_count_of_operations(built):
    """`get_flops` copies the model, hooks its layers and adds buffers to them."""
    model = built.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = scores_of(model.eval(), [1, 2, 3])
    transform = importlib.import_module(f"{FRAMEWORK}.data.transform")
    flops = framework_utils.get_flops(
        model,
        built.dataset,
        built.config["device"],
        logging.getLogger(),
        transform.construct_transform(built.config),
    )
    assert flops >= 0
    after = model.state_dict()
    assert list(after) == PARAMETERS
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(scores_of(model, [1, 2, 3]), scores)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_copy_stands_on_its_own(built):
    model = built.model.eval()
    scores = scores_of(model, [1, 2, 3])
    other = copy.deepcopy(model)
    for module in other.modules():  # as thop does
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
    assert torch.equal(scores_of(other, [1, 2, 3]), scores)
    with torch.no_grad():
        other.train().entity_embedding.weight.zero_()
    assert torch.equal(scores_of(model.train().eval(), [1, 2, 3]), scores)
