"""The reference itself, against loops over nodes, and its own draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kgrec_fast.models.reference import EdgeFunctions, ReferenceAttnHGCN, StepChoice
from kgrec_fast.models.reference_layers import scatter_mean, scatter_sum, softmax


@pytest.fixture
def edges():
    head = torch.tensor([0, 3, 3, 0, 3, 5, 0])
    return head, torch.randn(7, 2, dtype=torch.float64)


def test_scatter_functions_against_loops(edges):
    index, src = edges
    for node in range(6):
        mine = src[index == node].numpy()
        total = scatter_sum(src, index, dim=0, dim_size=6)[node].numpy()
        np.testing.assert_allclose(total, mine.sum(0), rtol=1e-12)
        if len(mine):
            mean = scatter_mean(src, index, dim=0, dim_size=6)[node].numpy()
            np.testing.assert_allclose(mean, mine.mean(0), rtol=1e-12)
            weight = softmax(src, index, num_nodes=6)[index == node].numpy()
            np.testing.assert_allclose(weight, np.exp(mine) / np.exp(mine).sum(0), rtol=1e-12)
    assert (scatter_mean(src, index, dim=0, dim_size=9)[6:] == 0).all()
    assert torch.autograd.gradcheck(
        lambda x: softmax(x, index, num_nodes=6), src.requires_grad_(), eps=1e-6
    )


def test_one_hop_against_loops_over_nodes():
    """The formulas of KGRec, read literally."""
    torch.manual_seed(0)
    nodes, width = 9, 6
    layer = ReferenceAttnHGCN(width, 1, 4, 4, 0.0).double()
    x = torch.randn(nodes, width, dtype=torch.float64)
    users = torch.randn(4, width, dtype=torch.float64)
    edge_index, edge_type = torch.randint(nodes, (2, 30)), torch.randint(3, (30,))
    inter, weight = torch.randint(4, (2, 10)), torch.rand(10, dtype=torch.float64)
    agg, user_agg = layer.shared_layer_agg(users, x, edge_index, edge_type, inter, weight)
    mean = layer.kg_agg(x, edge_index, edge_type)
    scores, logits = layer.norm_attn_computer(x, edge_index, edge_type, return_logits=True)

    projected = (x @ layer.W_Q).detach().numpy()
    value, relation = x.numpy(), layer.relation_embedding.weight.detach().numpy()
    half, triples = width // 2, list(zip(*edge_index.tolist(), edge_type.tolist(), strict=True))
    for h in range(nodes):
        mine = [(e, t, r) for e, (head, t, r) in enumerate(triples) if head == h]
        if not mine:
            assert (agg[h] == 0).all()
            continue
        s = np.array(
            [
                [
                    (projected[h] * projected[t] * relation[r])[k * half : (k + 1) * half].sum()
                    / math.sqrt(half)
                    for k in range(2)
                ]
                for _, t, r in mine
            ]
        )
        a = np.exp(s) / np.exp(s).sum(0)
        messages = np.array([value[t] * relation[r] for _, t, r in mine])
        expected = (np.repeat(a, half, axis=1) * messages).sum(0)
        np.testing.assert_allclose(agg[h].detach().numpy(), expected, rtol=1e-10)
        np.testing.assert_allclose(mean[h].detach().numpy(), messages.mean(0), rtol=1e-10)
        mean_logit = s.mean(1)
        score = np.exp(mean_logit) / np.exp(mean_logit).sum() * len(mine)
        ids = [e for e, _, _ in mine]
        np.testing.assert_allclose(logits[ids].numpy(), mean_logit, rtol=1e-10)
        np.testing.assert_allclose(scores[ids].numpy(), score, rtol=1e-10)
    for u in range(4):
        expected = sum(
            (weight[e] * x[i] for e, (v, i) in enumerate(inter.t().tolist()) if v == u),
            torch.zeros(width, dtype=torch.float64),
        )
        torch.testing.assert_close(user_agg[u], expected)


@pytest.mark.parametrize("samp_func", ["torch", "np"])
def test_a_step_that_draws_for_itself(world, samp_func):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = world.reference(samp_func=samp_func)
    index, types = model.relation_aware_edge_sampling(0.5)
    wanted = world.edge_type.bincount(minlength=5) // 2
    torch.testing.assert_close(types.bincount(minlength=5), wanted, rtol=0, atol=0)
    *_, mask = model.mae_edge_mask_adapt_mixed(index, types, torch.tensor([0, 1]))
    assert 2 <= int(mask.sum()) <= 4
    assert model.adaptive_kg_drop_cl(index, types, torch.rand(len(types)))[1].shape[0] == (
        len(types) - len(types) // 2
    )
    assert model.adaptive_ui_drop_cl(torch.rand(12), world.inter_edge, model.inter_edge_w)[
        0
    ].shape == (2, 22)
    loss = model.calculate_loss(world.batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert loss != model.calculate_loss(world.batch())


def test_average_loss_of_its_own_draws_is_that_of_the_fast_model(world):
    """Both draw for themselves: means over steps agree within four standard errors."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    model = world.model(mae_coef=1.0, cl_coef=1.0)
    reference = world.reference(model, mae_coef=1.0, cl_coef=1.0)
    for parameter in model.parameters():  # far enough from zero for scores to matter
        parameter.data *= 3
    reference.load_state_dict(model.state_dict())
    steps, losses = 150, []
    for one in (model, reference):
        with torch.no_grad():
            losses.append(torch.stack([torch.stack(one()[2:]) for _ in range(steps)]).double())
    error = ((losses[0].var(0) + losses[1].var(0)) / steps).sqrt()
    assert ((losses[0].mean(0) - losses[1].mean(0)).abs() < 4 * error).all()


def test_functions_can_be_put_in(world):
    calls = []

    def spy(name, function):
        def called(*args, **keywords):
            calls.append(name)
            return function(*args, **keywords)

        return called

    functions = EdgeFunctions(
        spy("sum", scatter_sum), spy("mean", scatter_mean), spy("softmax", softmax)
    )
    plain = world.reference()
    spied = world.reference(functions=functions)
    spied.load_state_dict(plain.state_dict())
    choice = StepChoice(
        sampled_edges=torch.arange(0, 200, 2),
        kept_interactions=torch.arange(30),
        masked_edges=torch.arange(0, 20, 2),
        contrast_edges=torch.arange(0, 100, 2),
        contrast_interactions=torch.arange(15),
        permutation=torch.arange(12).roll(1),
    )
    losses = [m.eval().calculate_loss(world.batch(), choice) for m in (plain, spied)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert set(calls) == {"sum", "mean", "softmax"}
