"""Projected attention, and the mean with it: against the steps apart and float64 differences."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import CASES, HALF_TYPES, assert_as_good_as, operands, random_mask
from torch import Tensor

from kgrec_fast import EdgeMask, RelGraph
from kgrec_fast.ops import (
    attention_and_mean,
    attention_and_mean_reference,
    edge_subgraph,
    projected_attention,
    projected_attention_reference,
    relation_attention,
    relation_mean,
    relation_mean_reference,
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


def assert_same_but_for_products(found: Tensor, wanted: Tensor) -> None:
    """In float64, equal but for the last bits of dense products: which gradients are asked for says
    whether ours or torch's makes them, which add up in the same order on some processors only.
    """
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


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
            assert_same_but_for_products(tensor.grad, everything[index])
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("of", [0, 1], ids=["sum", "log-sum-exp"])
def test_gradients_of_one_result(of: int) -> None:
    graph = CASES["bipartite"].build()
    found, wanted = (
        torch.autograd.grad(
            torch.nan_to_num(function(*leaves, graph, 2, return_lse=True)[of], neginf=0).sum(),
            leaves,
            allow_unused=True,
            materialize_grads=True,
        )
        for function in (projected_attention, projected_attention_reference)
        for leaves in [[t.requires_grad_() for t in inputs("bipartite", 8)]]
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


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


def assert_no_double_backward(loss: Tensor, leaves: list[Tensor]) -> None:
    """Nor is a penalty on a gradient taken for zero, whichever gradients of it are asked for."""
    for leaf in leaves:
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        penalty = grad.square().sum()
        for other in leaves:
            with pytest.raises(RuntimeError, match="no double backward"):
                torch.autograd.grad(loss + penalty, other, retain_graph=True)
        with pytest.raises(RuntimeError, match="no double backward"):
            penalty.backward(retain_graph=True)


def test_double_backward_raises() -> None:
    leaves = [t.requires_grad_() for t in inputs("bipartite", 8)]
    out = projected_attention(*leaves, CASES["bipartite"].build(), 2)
    assert_no_double_backward(out.square().sum(), leaves)


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


# -- attention and mean -------------------------------------------------------------------------


def run_both(function, tensors: list[Tensor], *arguments, **options) -> list[Tensor]:
    """Both outputs, gradients of x, weight and relation."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves, *arguments, **options)
    generator = torch.Generator().manual_seed(5)
    grads = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in out
    ]
    return [*(t.detach() for t in out), *torch.autograd.grad(out, leaves, grads)]


def apart(x, weight, relation, graph, num_heads, edge_mask=None, mean_mask=None) -> tuple:
    """The two ops, their gradients added up by autograd."""
    out = projected_attention(x, weight, relation, graph, num_heads, edge_mask)
    return out, relation_mean(x, relation, graph, mean_mask)


def masks(name: str) -> tuple[Tensor, Tensor]:
    return random_mask(CASES[name]), random_mask(CASES[name], seed=7)


@pytest.mark.parametrize("masked", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", CASES)
def test_attention_and_mean_equal_the_two_ops(
    name: str, masked: tuple[bool, bool], isa: str
) -> None:
    graph, tensors = CASES[name].build(), inputs(name, 16)
    given = [m if wanted else None for m, wanted in zip(masks(name), masked, strict=True)]
    ours = run_both(attention_and_mean, tensors, graph, 2, *given)
    for function in (apart, attention_and_mean_reference):
        for got, wanted in zip(ours, run_both(function, tensors, graph, 2, *given), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_attention_and_mean_take_more_rows_than_either_side(isa: str) -> None:
    """12 rows and 31 columns: what no edge can reach has a gradient of the projection's alone."""
    graph = CASES["bipartite"].build()
    x, weight, relation = inputs("bipartite", 16)
    x = torch.cat([x, x[:9] + 1])
    ours = run_both(attention_and_mean, [x, weight, relation], graph, 2, *masks("bipartite"))
    exact = run_both(apart, [x, weight, relation], graph, 2, *masks("bipartite"))
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)
    assert ours[2].shape == x.shape
    assert not ours[2][31:].any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_mean_may_have_a_graph_of_its_own(name: str, masked: bool) -> None:
    graph, tensors = CASES[name].build(), inputs(name, 16)
    mask, mean_mask = masks(name)
    subgraph, _ = edge_subgraph(graph, mask)
    wanted_mask = mean_mask if masked else None
    given = (subgraph, 2, None, wanted_mask)
    exact = run_both(apart, tensors, graph, 2, mask, wanted_mask)
    for function in (attention_and_mean, attention_and_mean_reference):
        ours = run_both(function, tensors, *given, mean_graph=graph)
        for got, wanted in zip(ours, exact, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_graphs_of_attention_and_mean_must_fit() -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 16)
    with pytest.raises(ValueError, match="mean_graph has num_rows 31, expected 12, as graph"):
        attention_and_mean(*tensors, graph, 2, mean_graph=CASES["wide"].build())
    with pytest.raises(TypeError, match="graph is a list"):
        attention_and_mean(*tensors, graph, 2, mean_graph=[])


def test_attention_and_mean_gradcheck() -> None:
    graph = CASES["bipartite"].build()
    given = [graph.edge_mask(mask) for mask in masks("bipartite")]
    leaves = [t.requires_grad_() for t in inputs("bipartite", 2)]
    assert torch.autograd.gradcheck(
        lambda *t: attention_and_mean(*t, graph, 2, *given), leaves, atol=1e-6
    )


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_attention_and_mean_is_enough(used: int) -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 8)
    leaves = [[t.clone().requires_grad_() for t in tensors] for _ in range(2)]
    for function, given in zip((attention_and_mean, apart), leaves, strict=True):
        function(*given, graph, 2)[used].square().sum().backward()
    for ours, theirs in zip(*leaves, strict=True):
        wanted = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
        torch.testing.assert_close(ours.grad, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_attention_and_mean_give_the_gradients_that_are_asked_for(wanted: tuple[int, ...]) -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 8)
    everything = run_both(attention_and_mean, tensors, graph, 2)[2:]

    def some(*leaves: Tensor) -> tuple[Tensor, ...]:
        given = [t if i in wanted else t.detach() for i, t in enumerate(leaves)]
        return attention_and_mean(*given, graph, 2)

    leaves = [t.clone().requires_grad_() for t in tensors]
    out = some(*leaves)
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in out]
    torch.autograd.backward(out, grads)
    for index, leaf in enumerate(leaves):
        if index in wanted:
            assert_same_but_for_products(leaf.grad, everything[index])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("name", ["bipartite", "hub row"])
def test_attention_and_mean_are_as_exact_as_pytorch(
    name: str, dtype: torch.dtype, isa: str
) -> None:
    graph, tensors = CASES[name].build(), inputs(name, 64, dtype)
    given = masks(name)
    ours = run_both(attention_and_mean, tensors, graph, 2, *given)
    theirs = run_both(attention_and_mean_reference, tensors, graph, 2, *given)
    wide = [t.double() for t in tensors]
    exact = run_both(attention_and_mean_reference, wide, graph, 2, *given)
    for results in zip(ours, theirs, exact, strict=True):
        assert_as_good_as(*results)


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("grad", [False, True])
def test_attention_and_mean_under_autocast(dtype: torch.dtype, grad: bool) -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 8, torch.float32)
    leaves, same = ([t.clone().requires_grad_(grad) for t in tensors] for _ in range(2))
    with torch.autocast("cpu", dtype):
        found = attention_and_mean(*leaves, graph, 2)
    wanted = attention_and_mean(*(t.to(dtype) for t in same), graph, 2)
    for got, other in zip(found, wanted, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, other)
    if grad:
        for out, given in ((found, leaves), (wanted, same)):
            sum(t.float().square().sum() for t in out).backward()
            assert all(t.grad.dtype == torch.float32 for t in given)
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(leaves, same, strict=True))


def test_attention_and_mean_know_the_query() -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 8)
    query = tensors[0] @ tensors[1]
    known = run_both(attention_and_mean, tensors, graph, 2, query=query)
    for got, wanted in zip(known, run_both(attention_and_mean, tensors, graph, 2), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_attention_and_mean_of_the_reference_and_without_a_gradient() -> None:
    graph, tensors = CASES["bipartite"].build(), inputs("bipartite", 8)
    given = masks("bipartite")
    wanted = attention_and_mean_reference(*tensors, graph, 2, *given)
    with use_reference():
        for got, other in zip(attention_and_mean(*tensors, graph, 2, *given), wanted, strict=True):
            assert torch.equal(got, other)
    for got, other in zip(attention_and_mean(*tensors, graph, 2, *given), wanted, strict=True):
        torch.testing.assert_close(got, other, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("restore_threads")
def test_attention_and_mean_are_bit_equal_for_every_number_of_threads(isa: str) -> None:
    graph, tensors = CASES["hub row"].build(), inputs("hub row", 64, torch.float32)
    arguments = (attention_and_mean, tensors, graph, 2, *masks("hub row"))
    first = run_both(*arguments)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(first, run_both(*arguments), strict=True))


def test_attention_and_mean_have_no_double_backward() -> None:
    leaves = [t.requires_grad_() for t in inputs("bipartite", 8)]
    out, mean = attention_and_mean(*leaves, CASES["bipartite"].build(), 2)
    assert_no_double_backward(out.square().sum() + mean.square().sum(), leaves)


def test_attention_and_mean_compile_without_graph_breaks() -> None:
    graph = CASES["bipartite"].build()
    graph.columns()
    tensors = inputs("bipartite", 8, torch.float32)

    def loss(*leaves: Tensor) -> Tensor:
        out, mean = attention_and_mean(*leaves, graph, 2)
        return out.square().sum() + mean.square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        gradients.append(torch.autograd.grad(function(*leaves), leaves))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"),
    [
        ((X, W, R, "graph", 2), {}, TypeError, "graph is a str, expected a RelGraph"),
        ((X[:30], W, R, GRAPH, 2), {}, ValueError, "x has 30 rows, expected at least 31"),
        ((X, torch.cat([W, W]), R, GRAPH, 2), {}, ValueError, "weight has 16 rows, expected 8"),
        ((X, W, R.half(), GRAPH, 2), {}, TypeError, "relation has dtype torch.float16"),
        ((X, W, R[:5], GRAPH, 2), {}, ValueError, "relation has 5 rows, expected at least 6"),
        ((X, W, R, GRAPH, 3), {}, ValueError, "num_heads is 3"),
        ((X, W, R, GRAPH, 2, torch.ones(300)), {}, TypeError, "mask is torch.float32"),
        ((X, W, R, GRAPH, 2, None, torch.ones(300)), {}, TypeError, "mask is torch.float32"),
        ((X, W, R, GRAPH, 2), {"query": X[:31]}, ValueError, "query has 31 rows, expected"),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_bad_arguments_of_attention_and_mean_are_named(
    arguments, options, kind, message, grad: bool
) -> None:
    x, *rest = arguments
    with pytest.raises(kind, match=message):
        attention_and_mean(x.detach().requires_grad_(grad), *rest, **options)


# -- the gradient of a mean, added onto what is there -----------------------------------------


def mean_gradients(
    graph: RelGraph, x: Tensor, relation: Tensor, mask: EdgeMask | Tensor | None = None
) -> tuple[Tensor, tuple]:
    """An incoming gradient, and the operands of the backward ops behind it."""
    given = None if mask is None else graph.edge_mask(mask)
    pair = (None, None) if given is None else (given.row, given.col)
    tensors = graph.tensors(columns=True)
    out, inverse_count = torch.ops.kgrec_fast.relation_mean(x, relation, tensors, *pair)
    generator = torch.Generator().manual_seed(5)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return grad, (x, relation, inverse_count, tensors, *pair)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_mean_is_added_in_place(name: str, masked: bool, isa: str) -> None:
    case = CASES[name]
    x, there, relation = operands(case, 64)
    mask = random_mask(case) if masked else None
    grad, rest = mean_gradients(case.build(), x, relation, mask)
    leaves = [t.clone().requires_grad_() for t in (x, relation)]
    wanted, wanted_relation = torch.autograd.grad(
        relation_mean_reference(*leaves, case.build(), mask), leaves, grad
    )
    onto = there.clone()
    address = onto.data_ptr()
    found = torch.ops.kgrec_fast.relation_mean_backward_onto(onto, grad, *rest)
    torch.testing.assert_close(onto, there + wanted, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found, wanted_relation, rtol=1e-11, atol=1e-12)
    assert onto.data_ptr() == address
    kept = slice(None) if mask is None else mask
    lonely = torch.ones(x.size(0), dtype=torch.bool)
    lonely[case.edge_index[1, kept]] = False
    assert bool(lonely.any())  # at least those behind the columns
    assert torch.equal(onto[lonely], there[lonely])


@pytest.mark.usefixtures("restore_threads")
def test_what_is_added_in_place_is_bit_equal_for_every_number_of_threads(isa: str) -> None:
    case = CASES["hub row"]
    x, there, relation = operands(case, 64, torch.float32)
    grad, rest = mean_gradients(case.build(), x, relation, random_mask(case))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        onto = there.clone()
        more = torch.ops.kgrec_fast.relation_mean_backward_onto(onto, grad, *rest)
        results.append((onto, more))
    for found in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))


def test_opcheck_of_what_is_added_in_place() -> None:
    grad, rest = mean_gradients(GRAPH, X, R)
    torch.library.opcheck(
        torch.ops.kgrec_fast.relation_mean_backward_onto.default, (X.clone(), grad, *rest)
    )


@pytest.mark.parametrize("onto", [X.half(), X.double(), X[:-1], X.t().contiguous().t()])
def test_what_cannot_be_added_to_is_named(onto: Tensor) -> None:
    grad, rest = mean_gradients(GRAPH, X, R)
    with pytest.raises(RuntimeError, match="grad_x is"):
        torch.ops.kgrec_fast.relation_mean_backward_onto(onto, grad, *rest)


@pytest.mark.parametrize("onto", [torch.float32, torch.bfloat16])
def test_half_types_are_not_added_in_place(onto: torch.dtype) -> None:
    """They would be rounded in between, or written in another type."""
    x, relation = X.bfloat16(), R.bfloat16()
    grad, rest = mean_gradients(GRAPH, x, relation)
    with pytest.raises(RuntimeError, match="grad_x is"):
        torch.ops.kgrec_fast.relation_mean_backward_onto(x.to(onto), grad, *rest)
