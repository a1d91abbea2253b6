"""The paper's model by its published interface, against its formulas under the same choices."""

from __future__ import annotations

import copy
import logging
import math
import pickle
import re
from pathlib import Path

import networkx
import pytest
import torch
from paper_oracle import PlainModel, arguments
from step_choices import to_choice
from torch.optim import Adam

from kgrec_fast import ops
from kgrec_fast.integrations.paper import PRESETS, KGRec
from kgrec_fast.nn._streams import draw_rng

EXACT = {"rtol": 1e-9, "atol": 1e-12}

CASES = {
    "defaults": {},
    "all of it weighs": {"mae_coef": 1.0, "cl_coef": 1.0, "l2": 1.0},
    "one hop": {"context_hops": 1, "cl_coef": 1.0},
    "three hops": {"context_hops": 3, "cl_coef": 1.0},
    "few are kept": {"node_dropout_rate": 0.3, "cl_drop_ratio": 0.2, "cl_tau": 0.3, "cl_coef": 1.0},
    "all are kept": {"node_dropout_rate": 1.0, "cl_coef": 1.0},
    "no message dropout in the encoder": {"mess_dropout": 0, "cl_coef": 1.0},
    "no message dropout": {"mess_dropout_rate": 0.0},
}


def build(world, args=None, hp_dict=None, **changed) -> KGRec:
    args = args or arguments(**changed)
    return KGRec(world.data_config, args, world.triples, world.adj_mat, hp_dict)


def with_plain(world, **changed) -> tuple[KGRec, PlainModel]:
    """A model and the plain one with its weights, in float64."""
    args = arguments(**changed)
    model = build(world, args).double()
    plain = PlainModel(world, args).double()
    plain.load_state_dict(model.state_dict())
    return model, plain


def gradients(module, loss):
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_agree_with_the_formulas(world, case, training):
    torch.manual_seed(len(case))
    model, plain = with_plain(world, **CASES[case])
    model.train(training)
    for size in (16, 33):
        masks = model.draw_masks()
        loss, parts = model(world.batch(size), masks)
        wanted = plain.parts(world.batch(size), to_choice(model, masks))
        assert list(parts) == ["rec_loss", "mae_loss", "cl_loss"]
        torch.testing.assert_close(list(parts.values()), [x.item() for x in wanted], **EXACT)
        torch.testing.assert_close(loss, sum(wanted), **EXACT)
        found = gradients(model, loss)
        torch.testing.assert_close(found, gradients(plain, sum(wanted)), **EXACT)
        assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_steps_draw_anew_and_follow_the_seed(world):
    model = build(world)
    torch.manual_seed(3)
    first, second = model(world.batch())[0], model(world.batch())[0]
    assert first != second
    torch.manual_seed(3)
    assert model(world.batch())[0] == first


def test_published_sampling(world):
    """Relations 1..5 of 6, and interactions kept with node_dropout_rate, in either mode."""
    model = build(world, node_dropout_rate=0.3)
    quota = torch.bincount(world.kinds - 1, minlength=6) * 3 // 10
    assert quota[-1] > 0
    quota[-1] = 0
    kept = 0
    for number in range(200):
        model.train(number % 2 == 0)
        masks = model.draw_masks()
        assert torch.equal(model.kg.rel[masks.sampled].bincount(minlength=6), quota)
        kept += int(masks.kept.sum())
    # Of 45 * 200 draws 0.3 are kept: within 4.9 standard deviations, an error rate of 1e-6.
    assert abs(kept / 9000 - 0.3) < 4.9 * (0.3 * 0.7 / 9000) ** 0.5


def test_sampling_of_the_method_on_request(world):
    args = arguments(node_dropout_rate=0.25)
    model = KGRec(world.data_config, args, world.triples, world.adj_mat, published_quirks=False)
    quota = torch.bincount(world.kinds - 1, minlength=6) // 4
    masks = model.draw_masks()
    assert torch.equal(model.kg.rel[masks.sampled].bincount(minlength=6), quota)
    assert model.sampler.keep_rate == 0.75


# -- use ------------------------------------------------------------------------------------------


def test_generate_and_rating(world):
    model, plain = with_plain(world)
    for training in (True, False):
        model.train(training)
        found = entities, users = model.generate()
        torch.testing.assert_close(found, plain.generate(), **EXACT)
        torch.testing.assert_close(model.embeddings(), (users, entities), **EXACT)
    wanted = torch.einsum("ud,id->ui", users, entities[:12])
    torch.testing.assert_close(model.rating(users, entities[:12]), wanted, **EXACT)
    with torch.no_grad():  # nothing is kept between calls
        model.all_embed.mul_(2)
        plain.all_embed.mul_(2)
    torch.testing.assert_close(model.generate(), plain.generate(), **EXACT)


def test_generate_on_a_part_of_the_graph(world):
    model, plain = with_plain(world)
    with pytest.raises(ValueError, match="kg_drop_test_keep_rate is None, expected it in"):
        model.generate_kg_drop()
    model.kg_drop_test_keep_rate = 0.3
    torch.manual_seed(8)
    found = model.generate_kg_drop()
    torch.manual_seed(8)
    edges = world.kinds.numel()
    kept = ops.sample_edges(edges, int(0.3 * edges), draw_rng(torch.device("cpu")))
    assert kept.sum() == int(0.3 * edges)
    torch.testing.assert_close(found, plain.generate(kept), **EXACT)
    assert build(world, hp_dict={"kg_drop_test_keep_rate": 0.7}).kg_drop_test_keep_rate == 0.7


def test_global_attention_scores(world):
    model, plain = with_plain(world)
    scores, edges, kinds = model.generate_global_attn_score()
    wanted, _ = plain.gcn.rationale(plain.tables()[1], world.edges, world.kinds)
    torch.testing.assert_close(scores, wanted.detach(), **EXACT)
    assert torch.equal(edges, world.edges)
    assert torch.equal(kinds, world.kinds)


def test_published_losses(world):
    model = build(world, l2=0.25).double()
    u, p, n = torch.randn(3, 5, 8, dtype=torch.float64)
    total, bpr, penalty = model.create_bpr_loss(u, p, n)
    gap = ((u * p).sum(1) - (u * n).sum(1)).tolist()
    wanted = sum(math.log1p(math.exp(-x)) for x in gap) / 5
    assert bpr.item() == pytest.approx(wanted, rel=1e-12)
    squares = sum(x.item() ** 2 for y in (u, p, n) for x in y.flatten())
    assert penalty.item() == pytest.approx(0.25 * squares / 2 / 5, rel=1e-12)
    assert total == bpr + penalty
    with pytest.raises(ValueError, match="the BPR loss is NaN"):
        model.create_bpr_loss(u * torch.nan, p, n)

    pairs, rel = torch.randn(7, 2, 8, dtype=torch.float64), torch.randn(7, 8, dtype=torch.float64)
    for given, factor in ((rel, rel), (None, torch.ones_like(rel))):
        score = (pairs[:, 0] * pairs[:, 1] * factor).sum(1)
        wanted = -(1 / (1 + (-score).exp())).log().mean()
        torch.testing.assert_close(model.create_mae_loss(pairs, given), wanted, **EXACT)


def test_loss_of_embeddings_that_are_nan(world):
    model = build(world)
    with torch.no_grad():
        model.all_embed.fill_(torch.nan)
    with pytest.raises(ValueError, match="the BPR loss is NaN"):
        model(world.batch())


def test_the_spread_of_the_scores_is_logged_at_the_start_of_an_epoch(world, caplog):
    model, plain = with_plain(world)
    torch.manual_seed(6)
    with caplog.at_level(logging.INFO):
        model(world.batch(start=16))
        assert caplog.messages == []
        torch.manual_seed(6)
        model(world.batch(start=0))
    torch.manual_seed(6)
    sampled = to_choice(model, model.draw_masks()).sampled_edges
    edges, kinds = world.edges[:, sampled], world.kinds[sampled]
    scores, _ = plain.gcn.rationale(plain.tables()[1], edges, kinds)
    (message,) = caplog.messages
    assert float(message.removeprefix("edge_attn_score std: ")) == pytest.approx(
        scores.std().item(), rel=1e-4
    )


def test_shapes_are_logged(world, caplog):
    with caplog.at_level(logging.INFO):
        build(world).print_shapes()
    assert {"all_embed: [49, 8]", "inter_edge: [2, 45]", "tau: 1.0"} <= set(caplog.messages)


def test_learns(world):
    """The published loop: forward, backward, step."""
    torch.manual_seed(0)
    model = build(world, mae_coef=0.01)
    optimizer = Adam(model.parameters(), lr=0.02)
    batch = {"users": world.pairs[0], "pos_items": world.pairs[1], "batch_start": 0}
    batch["neg_items"] = torch.full_like(world.pairs[0], 11)
    losses = []
    for _ in range(80):
        loss, parts = model(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(parts["rec_loss"])
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_training_step_compiles_without_graph_breaks(world):
    model = build(world, cl_coef=1.0)
    model.interactions.untouched()
    batch, rng = {"user_id": world.pairs[0], "item_id": world.pairs[1]}, torch.tensor([3, 4])
    wanted = model.training_step(batch, rng)
    torch._dynamo.reset()
    found = torch.compile(model.training_step, fullgraph=True, backend="aot_eager")(batch, rng)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    gradient, expected = gradients(model, found), gradients(model, wanted)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


# -- parameters -----------------------------------------------------------------------------------

MLP = {"0.weight": (8, 8), "0.bias": (8,), "2.weight": (8, 8), "2.bias": (8,)}
SHAPES = {
    "all_embed": (49, 8),
    "gcn.relation_emb": (6, 8),
    "gcn.W_Q": (8, 8),
    **{f"contrast_fn.mlp{k}.{name}": shape for k in (1, 2) for name, shape in MLP.items()},
}


def test_state_dict_has_the_published_names_in_the_published_order(world):
    model = build(world)
    assert {name: tuple(x.shape) for name, x in model.state_dict().items()} == SHAPES
    assert list(model.state_dict()) == list(SHAPES)
    assert [name for name, _ in model.named_parameters()] == list(SHAPES)


def test_checkpoints_and_optimizer_states_load_both_ways(world, tmp_path: Path):
    model, plain = with_plain(world)
    batch = world.batch()

    def step(module, optimizer, masks):
        if module is model:
            loss, _ = model(batch, masks)
        else:
            loss = sum(plain.parts(batch, to_choice(model, masks)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for source, target in ((plain, model), (model, plain)):
        torch.manual_seed(2)
        masks = [model.draw_masks() for _ in range(4)]
        first, second = (Adam(m.parameters(), lr=0.01) for m in (source, target))
        for chosen in masks[:2]:
            step(source, first, chosen)
        torch.save(source.state_dict(), tmp_path / "model.ckpt")
        torch.save(first.state_dict(), tmp_path / "optimizer.ckpt")
        loaded = target.load_state_dict(torch.load(tmp_path / "model.ckpt"), strict=True)
        assert not loaded.missing_keys
        assert not loaded.unexpected_keys
        second.load_state_dict(torch.load(tmp_path / "optimizer.ckpt"))
        for chosen in masks[2:]:
            step(source, first, chosen)
            step(target, second, chosen)
        torch.testing.assert_close(source.state_dict(), target.state_dict(), rtol=1e-6, atol=1e-8)


def test_the_contrast_of_the_earlier_revision_loads(world):
    model = build(world)
    state = {
        name.replace("contrast_fn", "grace_loss"): torch.full_like(value, 0.5)
        for name, value in model.state_dict().items()
    }
    names = list(state)
    model.load_state_dict(state, strict=True)
    assert all((value == 0.5).all() for value in model.state_dict().values())
    assert list(state) == names
    torch.nn.ModuleList([model]).load_state_dict({f"0.{n}": x for n, x in state.items()})


def test_initial_values_have_the_published_distributions(world):
    torch.manual_seed(1)
    model = build(world)
    for name, value in model.state_dict().items():
        # torch's default for a linear layer of 8 inputs; Xavier's for the rest
        linear = name.startswith("contrast_fn")
        bound = 8**-0.5 if linear else (6 / sum(value.shape)) ** 0.5
        assert 0.5 * bound < value.abs().max() <= bound, name


def test_copies(world):
    torch.manual_seed(0)
    model = build(world)
    masks = model.draw_masks()
    wanted = model(world.batch(), masks)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin(world.batch(), masks) == wanted
        assert twin.all_embed is not model.all_embed


# -- what the constructor is given ----------------------------------------------------------------


def test_the_graph_and_matrix_of_the_paper_are_taken(world):
    graph = networkx.MultiDiGraph()
    for head, tail, kind in world.triples.tolist():
        graph.add_edge(head, tail, key=kind)
    model = KGRec(world.data_config, arguments(), graph, world.adj_mat.tocsr().tocoo())
    listed = torch.tensor(list(graph.edges))
    assert torch.equal(model.edge_index, listed[:, :2].t())
    assert torch.equal(model.edge_type, listed[:, 2])
    assert torch.equal(model.kg.edge_type + 1, model.edge_type)
    assert torch.equal(model.inter_edge, world.pairs)
    torch.testing.assert_close(model.inter_edge_w, world.weight.float())
    assert (model.n_nodes, model.emb_size, model.decay, model.device.type) == (49, 8, 1e-5, "cpu")
    same = build(world)
    same.load_state_dict(model.state_dict())
    torch.testing.assert_close(same.generate(), model.generate())


@pytest.mark.parametrize("name", PRESETS)
def test_data_sets_set_their_hyper_parameters(world, name):
    published = {
        "last-fm": (0.1, 256, 0.01, 1.0, 0.5, "torch"),
        "mind-f": (0.1, 256, 0.001, 0.1, 0.6, "np"),
        "alibaba-fashion": (0.1, 256, 0.001, 0.2, 0.5, "torch"),
    }
    args = arguments(dataset=name, mae_coef=9.0, mae_msize=9, cl_coef=9.0, cl_tau=9.0)
    with pytest.warns(UserWarning, match="mae_msize is 256"):  # so small a graph has fewer edges
        model = build(world, args)
    names = ("mae_coef", "mae_msize", "cl_coef", "tau", "cl_drop", "samp_func")
    assert tuple(getattr(model, n) for n in names) == published[name]
    assert model.contrast_fn.tau == published[name][3]


def test_hp_dict_comes_last(world):
    hp_dict = {
        "decay": 0.5, "emb_size": 4, "context_hops": 1, "node_dropout_rate": 0.25,
        "mess_dropout": False, "mess_dropout_rate": 0.3, "mae_coef": 0.2, "mae_msize": 3,
        "cl_coef": 0.3, "tau": 0.4, "cl_drop": 0.1, "samp_func": "np",
    }  # fmt: skip
    model = build(world, arguments(dataset="last-fm"), hp_dict)
    assert {name: getattr(model, name) for name in hp_dict} == hp_dict
    assert model.all_embed.shape == (49, 4)
    assert model.gcn.mess_dropout_rate == 0.3
    assert model.gcn.n_hops == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data_config": {"n_users": 9}}, ValueError, "data_config has no 'n_items'"),
        ({"nodes": 50}, ValueError, "n_nodes is 50, expected 49"),
        ({"hp_dict": {"tua": 1}}, ValueError, "hp_dict has 'tua', expected some of cl_coef"),
        ({"hp_dict": {"node_dropout_rate": 0.0}}, ValueError, r"node_dropout_rate is 0, expected"),
        ({"hp_dict": {"node_dropout_rate": 1.5}}, ValueError, r"node_dropout_rate is 1.5"),
        ({"args_config": object()}, ValueError, "args_config has no 'l2'"),
        ({"graph": [[0, 1]]}, ValueError, r"graph lists edges of shape \[1, 2\], expected \[E, 3"),
        ({"graph": [[0.0, 1.0, 1.0]]}, TypeError, "graph lists edges of float64"),
        ({"graph": [[0, 1, 0]]}, ValueError, r"edge_type\[0\] is 0, expected 1 <= id < 7"),
        ({"adj_mat": [[1.0]]}, TypeError, "adj_mat is a list, expected a scipy matrix"),
    ],
)
def test_bad_arguments(world, change, error, message):
    given = {
        "data_config": world.data_config, "args_config": arguments(), "graph": world.triples,
        "adj_mat": world.adj_mat,
    }  # fmt: skip
    if "nodes" in change:
        change = {"data_config": world.data_config | {"n_nodes": change["nodes"]}}
    with pytest.raises(error, match=message):
        KGRec(**(given | change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"users": torch.full((16,), 9)}, ValueError, r"users holds 9, expected ids in \[0, 9\)"),
        ({"pos_items": torch.full((16,), 12)}, ValueError, "pos_items holds 12"),
        ({"neg_items": torch.ones(3).long()}, ValueError, r"neg_items has shape \[3\]"),
        ({"users": [1]}, TypeError, "users is list"),
    ],
)
def test_bad_batches(world, change, error, message):
    model = build(world)
    with pytest.raises(error, match=message):
        model(world.batch() | change)
    with pytest.raises(ValueError, match="users is empty"):
        model({name: torch.empty(0).long() for name in ("users", "pos_items", "neg_items")})


def test_the_example_of_the_document_runs():
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "paper_code.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(example, "docs/paper_code.md", "exec"), names)
    assert names["scores"].shape == (2, 3)
    assert names["model"].all_embed.grad.abs().sum() > 0
