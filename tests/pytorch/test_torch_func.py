"""torch.func: vmap runs every op sample by sample, grad takes the gradients of the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_helpers import (
    DIFFERENTIABLE,
    EXAMPLES,
    RANDOM,
    Example,
    Small,
    Step,
    relational_layers,
    same,
)
from torch import Tensor
from torch.autograd import forward_ad

from kgrec_fast import ops

each_op = pytest.mark.parametrize("name", EXAMPLES)
each_differentiable = pytest.mark.parametrize("name", DIFFERENTIABLE)


def batch_of(x: Tensor) -> Tensor:
    """Three samples in the second dimension."""
    return torch.stack([x, x.flip(0), x / 2], dim=min(1, x.dim()))


def samples_of(leaves: list[Tensor]) -> list[list[Tensor]]:
    return [[x.select(min(1, x.dim() - 1), i) for x in leaves] for i in range(3)]


@each_op
def test_vmap_over_operands(name: str) -> None:
    example = Example(name)
    leaves, *others = example.inputs
    batches = [batch_of(x) for x in leaves]
    dims = [min(1, x.dim()) for x in leaves]
    found = torch.func.vmap(lambda xs: example(xs, *others), in_dims=(dims,))(batches)
    wanted = [example(xs, *others) for xs in samples_of(batches)]
    same(found, [torch.stack(parts) for parts in zip(*wanted, strict=True)])


@each_op
def test_vmap_over_one_operand(name: str) -> None:
    """The others are the same for all samples."""
    example = Example(name)
    leaves, *others = example.inputs

    def call(x: Tensor) -> tuple[Tensor, ...]:
        return example([*leaves[:-1], x], *others)

    batch = torch.stack([leaves[-1], leaves[-1] * 2])
    found = torch.func.vmap(call)(batch)
    same(found, [torch.stack(p) for p in zip(*[call(x) for x in batch], strict=True)])


@pytest.mark.parametrize("name", [*RANDOM, "dropout_normalize_add"])
def test_vmap_over_random_numbers(name: str) -> None:
    example = Example(name)
    *others, rng = example.inputs
    rngs = torch.stack([rng, rng + 1])
    found = torch.func.vmap(lambda rng: example(*others, rng))(rngs)
    wanted = [torch.stack(p) for p in zip(*[example(*others, r) for r in rngs], strict=True)]
    same(found, wanted)
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("name", ["scatter_sum", "scatter_mean", "scatter_softmax"])
def test_vmap_over_the_index(name: str) -> None:
    src, index = torch.randn(6, 4), torch.tensor([[0, 2, 2, 1, 0, 4], [3, 3, 1, 0, 4, 2]])
    op = getattr(ops, name)

    def call(index: Tensor) -> Tensor:
        if name == "scatter_softmax":
            return op(src, index, None, 5)
        return op(src, index, 0, None, 5)

    same([torch.func.vmap(call)(index)], [torch.stack([call(i) for i in index])])
    size = "num_nodes" if name == "scatter_softmax" else "dim_size"
    with pytest.raises(ValueError, match=f"{size} is None, expected a size under torch.func.vmap"):
        torch.func.vmap(lambda i: op(src, i, dim=0))(index)


def test_vmap_over_users_and_segments() -> None:
    example = Example("sample_negatives")
    _, graph, _, rng = example.inputs
    users = torch.tensor([[3, 1, 4], [1, 5, 9]])
    found = torch.func.vmap(lambda u: ops.sample_negatives(u, graph, rng))(users)
    same([found], [torch.stack([ops.sample_negatives(u, graph, rng) for u in users])])
    src, ptr = torch.randn(6, 3), torch.tensor([[0, 2, 2, 6], [0, 0, 5, 6]])
    found = torch.func.vmap(lambda p: ops.segment_softmax(src, p))(ptr)
    same([found], [torch.stack([ops.segment_softmax(src, p) for p in ptr])])


def test_vmap_without_samples() -> None:
    example = Example("relation_mean")
    leaves, *others = example.inputs
    with pytest.raises(ValueError, match="batch of no samples"):
        torch.func.vmap(lambda x: example([x, leaves[1]], *others))(leaves[0][None][:0])


# -- derivatives -----------------------------------------------------------------------------------


def plain(example: Example, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in leaves]
    return torch.autograd.grad(example.loss(*leaves), leaves)


def numbers(example: Example) -> tuple[int, ...]:
    return tuple(range(len(example.inputs[0])))


@each_differentiable
def test_grad(name: str) -> None:
    example = Example(name)
    leaves = example.inputs[0]
    found, value = torch.func.grad_and_value(example.loss, numbers(example))(*leaves)
    assert torch.equal(value, example.loss(*leaves))
    wanted = plain(example, leaves)
    assert all(bool((g != 0).any()) for g in wanted)
    # Fused gradients are sums in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@each_differentiable
def test_grad_of_each_sample(name: str) -> None:
    example = Example(name)
    batches = [torch.stack([x, x.flip(0)]) for x in example.inputs[0]]
    found = torch.func.vmap(torch.func.grad(example.loss, numbers(example)))(*batches)
    wanted = zip(*[plain(example, [x[i] for x in batches]) for i in range(2)], strict=True)
    torch.testing.assert_close(
        found, tuple(torch.stack(parts) for parts in wanted), rtol=1e-12, atol=1e-12
    )


@each_differentiable
def test_jacobian(name: str) -> None:
    """vmap over what comes in backward."""
    example = Example(name)
    leaves, *others = example.inputs

    def first(*leaves: Tensor) -> Tensor:
        return torch.nan_to_num(example(list(leaves), *others)[0], neginf=0.0).flatten()[:3]

    found = torch.func.jacrev(first)(*leaves)
    operand = leaves[0].detach().requires_grad_()
    out = first(operand, *leaves[1:])
    rows = [torch.autograd.grad(y, operand, retain_graph=True)[0] for y in out.reshape(-1)]
    wanted = torch.stack(rows).view(found.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["weighted_aggregate", "segment_mean", "scatter_sum"])
def test_second_derivatives_where_there_are_some(name: str) -> None:
    example = Example(name, width=1)

    def loss(*leaves: Tensor) -> Tensor:
        return example.loss(*leaves).square()

    def of_rows(x: Tensor) -> Tensor:
        return torch.func.grad(loss)(x, *example.inputs[0][1:])

    x = example.inputs[0][0]
    found = torch.func.jacrev(of_rows)(x)
    with ops.use_reference():
        wanted = torch.func.hessian(loss)(*example.inputs[0])
    assert bool((wanted != 0).any())
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["relation_attention", "relation_mean", "segment_softmax", "bpr_loss", "contrast_loss"]
)
def test_what_there_is_not_is_an_error_that_says_what_to_do(name: str) -> None:
    example = Example(name, width=2)
    leaves = tuple(example.inputs[0])
    advice = r"use_reference\(\)"

    def first_order(*leaves: Tensor) -> Tensor:
        return torch.func.grad(lambda *x: example.loss(*x) ** 2)(*leaves).sum()

    with pytest.raises(RuntimeError, match=f"kgrec_fast::{name}_backward is not.*{advice}"):
        torch.func.grad(first_order)(*leaves)
    with pytest.raises(RuntimeError, match=f"{name} has no forward-mode derivative.*{advice}"):
        torch.func.jvp(example.loss, leaves, leaves)
    with ops.use_reference():
        second = torch.func.grad(first_order)(*leaves)
        _, slope = torch.func.jvp(example.loss, leaves, leaves)
    assert torch.isfinite(second).all()
    wanted = sum((g * x).sum() for g, x in zip(plain(example, list(leaves)), leaves, strict=True))
    torch.testing.assert_close(slope, wanted)


def test_forward_mode_is_refused_where_gradients_are_off_too() -> None:
    src, index = torch.ones(3, 2), torch.tensor([0, 1, 0])
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(src, torch.ones_like(src))
        with pytest.raises(RuntimeError, match="scatter_sum has no forward-mode derivative"):
            ops.scatter_sum(dual, index, 0, dim_size=2)
    with torch.no_grad():
        assert ops.scatter_sum(src, index, 0, dim_size=2).tolist() == [[2, 2], [1, 1]]


def test_an_op_without_gradient_says_so() -> None:
    example = Example("edge_score_means")
    with pytest.raises(RuntimeError, match="kgrec_fast::edge_score_means is not differentiable"):
        torch.func.grad(example.loss)(*example.inputs[0])


# -- layers and the model -------------------------------------------------------------------------


def functional(small: Small) -> Any:
    step = Step(small.model)

    def loss(parameters: dict[str, Tensor], rng: Tensor) -> Tensor:
        given = {f"model.{name}": value for name, value in parameters.items()}
        inputs = (small.model.hops, small.model.interactions, small.batch, rng)
        return torch.func.functional_call(step, given, inputs)

    return loss


def test_the_training_step_in_functional_form() -> None:
    small = Small.make()
    parameters = dict(small.model.named_parameters())
    loss = functional(small)
    found, value = torch.func.grad_and_value(loss)(parameters, small.rng)
    assert torch.equal(value, small.loss())
    torch.testing.assert_close(found, small.gradients(), rtol=1e-4, atol=1e-6)
    # As many steps as samples of random numbers.
    rngs = torch.stack([small.rng + 1, small.rng])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, rngs)
    for name, gradient in found.items():
        torch.testing.assert_close(each[name][1], gradient, rtol=1e-4, atol=1e-6)
        assert not torch.equal(each[name][0], gradient)


def test_ensembles_of_models() -> None:
    """Stacked parameters, one set for each sample."""
    small = Small.make()
    others = [dict(Small.make(seed).model.named_parameters()) for seed in (1, 5)]
    stacked = {name: torch.stack([p[name].detach() for p in others]) for name in others[0]}
    loss = functional(small)
    found = torch.func.vmap(loss, in_dims=(0, None))(stacked, small.rng)
    wanted = torch.stack([loss(p, small.rng) for p in others])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["KGIN", "KGCL", "KGAT", "R-GAT"])
def test_relational_layers(name: str) -> None:
    """Gradients for each sample of one operand, the graph shared by all."""
    layer, args = relational_layers(Small.make())[name]
    place = 1 if name == "KGIN" else 0

    def loss(x: Tensor) -> Tensor:
        out = layer(*args[:place], x, *args[place + 1 :])
        return (out[0] if isinstance(out, tuple) else out).square().sum()

    samples = torch.stack([args[place].detach(), args[place].detach().flip(0)])
    found = torch.func.vmap(torch.func.grad(loss))(samples)
    wanted = []
    for sample in samples:
        operand = sample.clone().requires_grad_()
        wanted.append(torch.autograd.grad(loss(operand), operand)[0])
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-5)
