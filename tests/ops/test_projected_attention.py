"""Projected attention: against the two steps apart and against float64 differences."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import CASES, operands, random_mask
from torch import Tensor

from kgrec_fast.ops import (
    projected_attention,
    projected_attention_reference,
    relation_attention,
    use_reference,
)


def inputs(name: str, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, weight, relation."""
    query, _, relation = operands(CASES[name], width, dtype)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return [query, weight.to(dtype), relation]


def run(function, tensors: list[Tensor], *arguments, **options) -> list[Tensor]:
    """Output, log-sum-exp, gradients of x, weight and relation."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out, lse = function(*leaves, *arguments, return_lse=True, **options)
    generator = torch.Generator().manual_seed(5)
    grad_out, grad_lse = (
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
        for t in (out, lse)
    )
    lse = torch.where(torch.isfinite(lse), lse, 0)
    loss = (out * grad_out).sum() + (lse * grad_lse).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_two_steps_in_float64(name: str, masked: bool, known: bool) -> None:
    graph, tensors = CASES[name].build(), inputs(name, 16)
    mask = random_mask(CASES[name]) if masked else None
    query = tensors[0] @ tensors[1] if known else None
    ours = run(projected_attention, tensors, graph, 2, mask, query=query)
    exact = run(projected_attention_reference, tensors, graph, 2, mask)
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_gradcheck() -> None:
    graph = CASES["bipartite"].build()
    leaves = [t.requires_grad_() for t in inputs("bipartite", 4)]
    assert torch.autograd.gradcheck(
        lambda *t: projected_attention(*t, graph, 2, return_lse=True), leaves, atol=1e-6
    )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)])
def test_gives_the_gradients_that_are_asked_for(wanted: tuple[int, ...]) -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 8)
    everything = run(projected_attention, tensors, graph, 2)[2:]
    for index in wanted:
        tensors[index].requires_grad_()
    out, lse = projected_attention(*tensors, graph, 2, return_lse=True)
    generator = torch.Generator().manual_seed(5)
    grad_out = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    grad_lse = torch.randn(lse.shape, generator=generator, dtype=torch.float64)
    finite = torch.where(torch.isfinite(lse), lse, 0)
    ((out * grad_out).sum() + (finite * grad_lse).sum()).backward()
    for index, tensor in enumerate(tensors):
        if index in wanted:
            assert torch.equal(tensor.grad, everything[index])
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_the_two_steps_in_every_type(dtype: torch.dtype) -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 64, dtype)

    def apart(x: Tensor, weight: Tensor, relation: Tensor, *arguments, **options):
        return relation_attention(x @ weight, x, relation, *arguments, **options)

    ours, theirs = (run(f, tensors, graph, 2) for f in (projected_attention, apart))
    exact = run(projected_attention_reference, [t.double() for t in tensors], graph, 2)
    assert ours[0].dtype == dtype
    assert ours[2].dtype == dtype
    for got, other, truth in zip(ours, theirs, exact, strict=True):
        size = truth.abs().max()
        error, allowed = (got - truth).abs().max(), (other - truth).abs().max()
        assert error <= 2 * allowed + 2 * torch.finfo(torch.float32).eps * size


def test_the_reference_and_no_gradient_take_the_same_way_in() -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 8)
    wanted = projected_attention_reference(*tensors, graph, 2)
    with use_reference():
        assert torch.equal(projected_attention(*tensors, graph, 2), wanted)
    known = projected_attention(*tensors, graph, 2, query=tensors[0] @ tensors[1])
    torch.testing.assert_close(known, wanted, rtol=1e-11, atol=1e-12)


def test_double_backward_raises() -> None:
    leaves = [t.requires_grad_() for t in inputs("bipartite", 8)]
    out = projected_attention(*leaves, CASES["bipartite"].build(), 2)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_compiles_without_graph_breaks() -> None:
    graph = CASES["bipartite"].build()
    graph.columns()
    tensors = inputs("bipartite", 8, torch.float32)

    def loss(*leaves: Tensor) -> Tensor:
        return projected_attention(*leaves, graph, 2).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        gradients.append(torch.autograd.grad(function(*leaves), leaves))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


GRAPH = CASES["bipartite"].build()
X, W, R = inputs("bipartite", 8, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((X, W, R, "graph", 2), {}, TypeError, "graph is a str, expected a RelGraph"),
        ((X[:30], W, R, GRAPH, 2), {}, ValueError, "x has 30 rows, expected at least 31"),
        ((X, W[:4], R, GRAPH, 2), {}, ValueError, "weight has 4 rows, expected at least 8"),
        ((X, W[:, :4], R, GRAPH, 2), {}, ValueError, "weight has 4 columns, expected 8"),
        ((X, torch.cat([W, W]), R, GRAPH, 2), {}, ValueError, "weight has 16 rows, expected 8"),
        ((X, W.double(), R, GRAPH, 2), {}, TypeError, "weight has dtype torch.float64"),
        ((X, W, R[:5], GRAPH, 2), {}, ValueError, "relation has 5 rows, expected at least 6"),
        ((X, W, R, GRAPH, 3), {}, ValueError, "num_heads is 3"),
        ((X, W, R, GRAPH, 2), {"query": X[:31]}, ValueError, "query has 31 rows, expected"),
        ((X, W, R, GRAPH, 2), {"query": X[:, :4]}, ValueError, "query has 4 columns"),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_bad_arguments_are_named(arguments, options, kind, message, grad: bool) -> None:
    x, *rest = arguments
    with pytest.raises(kind, match=message):
        projected_attention(x.detach().requires_grad_(grad), *rest, **options)
