"""Contrast against the published formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kgrec_fast.models.reference import ReferenceContrast
from kgrec_fast.nn import Contrast

ROWS, WIDTH = 11, 6


@pytest.fixture
def views() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z1, z2 = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return z1, z2, torch.randperm(ROWS, generator=generator)


def test_loss_is_the_published_formula(views):
    z1, z2, permutation = views
    tau = 0.4
    loss = Contrast(WIDTH, tau).loss(z1, z2, permutation)
    unit1, unit2 = (z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True) for z in (z1, z2))
    for i, j in enumerate(permutation.tolist()):
        positive = math.exp(unit1[i] @ unit2[i] / tau)
        forth = math.exp(unit1[i] @ unit2[j] / tau)
        back = math.exp(unit2[i] @ unit1[j] / tau)
        expected = -math.log(positive / (2 * positive + forth + back))
        assert loss[i].item() == pytest.approx(expected, rel=1e-12)


def test_forward_and_gradients_agree_with_the_reference(views):
    z1, z2, permutation = views
    fast, reference = Contrast(WIDTH).double(), ReferenceContrast(WIDTH).double()
    reference.load_state_dict(fast.state_dict())
    results = []
    for module in (fast, reference):
        inputs = [z1.clone().requires_grad_(), z2.clone().requires_grad_()]
        loss = module(*inputs, permutation)
        results.append((loss, torch.autograd.grad(loss, [*inputs, *module.parameters()])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-13)


def test_permutation_comes_from_torchs_generator(views):
    z1, z2, _ = views
    contrast = Contrast(WIDTH).double()
    torch.manual_seed(3)
    drawn = contrast.loss(z1, z2)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, contrast.loss(z1, z2, torch.randperm(ROWS)), rtol=0, atol=0)


def test_small_temperature_does_not_overflow(views):
    z1, z2, permutation = (x.float() if x.is_floating_point() else x for x in views)
    loss = Contrast(WIDTH, tau=1e-3).loss(z1, z2, permutation)
    assert torch.isfinite(loss).all()
    assert (loss >= math.log(2) - 1e-6).all()  # the positive twice in the denominator


def test_similarities(views):
    z1, z2, _ = views
    contrast = Contrast(WIDTH)
    similarity = contrast.sim(z1, z2)
    assert similarity.shape == (ROWS, ROWS)
    torch.testing.assert_close(similarity.diagonal(), contrast.self_sim(z1, z2))
    expected = torch.nn.functional.cosine_similarity(z1[:, None], z2[None], dim=-1)
    torch.testing.assert_close(similarity, expected)


def test_state_dict_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in Contrast(6).state_dict().items()}
    assert shapes == {
        "mlp1.0.weight": (6, 6),
        "mlp1.0.bias": (6,),
        "mlp1.2.weight": (6, 6),
        "mlp1.2.bias": (6,),
        "mlp2.0.weight": (6, 6),
        "mlp2.0.bias": (6,),
        "mlp2.2.weight": (6, 6),
        "mlp2.2.bias": (6,),
    }


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan])
def test_bad_temperature(tau):
    with pytest.raises(ValueError, match="tau is"):
        Contrast(4, tau)


def test_bad_arguments(views):
    z1, z2, permutation = views
    contrast = Contrast(WIDTH)
    with pytest.raises(ValueError, match="num_hidden is 0"):
        Contrast(0)
    with pytest.raises(ValueError, match=r"z1 and z2 have shapes \[11, 6\] and \[10, 6\]"):
        contrast.loss(z1, z2[1:])
    with pytest.raises(ValueError, match=r"permutation has shape \[10\], expected \[11\]"):
        contrast.loss(z1, z2, permutation[1:])


def test_replaced_layers_and_hooks_of_the_projections_count():
    torch.manual_seed(0)
    contrast, x = Contrast(8), torch.randn(5, 8)
    first, _, last = contrast.mlp1
    plain = last(torch.relu(first(x)))
    torch.testing.assert_close(contrast.mlp1(x), plain)

    seen = []
    handle = first.register_forward_hook(lambda *given: seen.append(1))
    torch.testing.assert_close(contrast.mlp1(x), plain)
    assert seen == [1]
    handle.remove()
    handle = last.register_full_backward_hook(lambda *given: seen.append(2))
    contrast.mlp1(x.clone().requires_grad_()).sum().backward()
    assert seen == [1, 2]
    handle.remove()

    contrast.mlp1[1] = torch.nn.Tanh()
    torch.testing.assert_close(contrast.mlp1(x), last(torch.tanh(first(x))))
    torch.nn.utils.spectral_norm(contrast.mlp2[0])  # a hook that makes the weight
    torch.nn.init.ones_(contrast.mlp2[0].weight_orig)
    contrast.mlp2.eval()
    first, _, last = contrast.mlp2
    torch.testing.assert_close(contrast.mlp2(x), last(torch.relu(first(x))))
