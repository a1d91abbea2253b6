"""Weighted aggregation both ways: loops over edges, gradients to any order, every type and ISA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_helpers import CASES, HALF_TYPES, assert_as_good_as, kept, operands, random_mask

from kgrec_fast import InteractionGraph
from kgrec_fast.ops import weighted_aggregate, weighted_aggregate_reference


def build(case) -> InteractionGraph:
    return InteractionGraph.from_edges(
        case.edge_index, num_users=case.num_rows, num_items=case.num_cols
    )


def weights(case, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(case.edge_type.numel(), generator=generator, dtype=torch.float64).to(dtype)


def run(function, x, weight, graph, transpose: bool, mask):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
    out = function(*leaves, graph, transpose, mask)
    generator = torch.Generator().manual_seed(5)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


GRAPH = build(CASES["bipartite"])
X = operands(CASES["bipartite"], 8, torch.float32)[0]
WEIGHT = weights(CASES["bipartite"], torch.float32)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [c for c in CASES if c != "hub row"])
def test_equals_the_loops(case: str, masked: bool, transpose: bool, isa: str) -> None:
    case = CASES[case]
    mask, weight = random_mask(case) if masked else None, weights(case)
    x = operands(case, 6)[0]
    for w in (weight, None):
        wanted = np.zeros((case.num_cols if transpose else case.num_rows, 6))
        for e, head, tail, _ in kept(case, mask):
            target, source = (tail, head) if transpose else (head, tail)
            wanted[target] += (1.0 if w is None else float(w[e])) * x[source].numpy()
        for function in (weighted_aggregate, weighted_aggregate_reference):
            got = function(x, w, build(case), transpose, mask)
            torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference_in_float64(case, masked, transpose, isa: str) -> None:
    case = CASES[case]
    mask = random_mask(case) if masked else None
    arguments = (operands(case, 64)[0], weights(case), build(case), transpose, mask)
    ours, exact = run(weighted_aggregate, *arguments), run(weighted_aggregate_reference, *arguments)
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("width", [1, 6, 32, 64, 100, 256])
def test_is_as_exact_as_pytorch_in_every_type(width, dtype, transpose, isa: str) -> None:
    case = CASES["hub row"]
    graph, mask = build(case), random_mask(case)
    x, weight = operands(case, width, dtype)[0], weights(case, torch.float32)
    ours = run(weighted_aggregate, x, weight, graph, transpose, mask)
    theirs = run(weighted_aggregate_reference, x, weight, graph, transpose, mask)
    exact = run(weighted_aggregate_reference, x.double(), weight.double(), graph, transpose, mask)
    for results in zip(ours, theirs, exact, strict=True):
        assert_as_good_as(*results)


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_of_both_orders(transpose: bool, isa: str) -> None:
    leaves = [t.double().requires_grad_() for t in (X, WEIGHT)]
    mask = random_mask(CASES["bipartite"])

    def function(*t: torch.Tensor) -> torch.Tensor:
        return weighted_aggregate(*t, GRAPH, transpose, mask)

    torch.autograd.gradcheck(function, leaves)
    torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.usefixtures("restore_threads")
def test_bitwise_equal_for_every_number_of_threads(isa: str) -> None:
    case = CASES["hub row"]
    x, weight = operands(case, 64, torch.float32)[0], weights(case, torch.float32)
    for transpose in (False, True):
        arguments = (weighted_aggregate, x, weight, build(case), transpose, random_mask(case))
        first = run(*arguments)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(first, run(*arguments), strict=True))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_one_weight_for_all_edges_of_a_row(masked: bool, transpose: bool, isa: str) -> None:
    """As with that weight at each of them, and the same derivatives of any order."""
    case = CASES["hub row"]
    graph, mask = build(case), random_mask(case) if masked else None
    x = operands(case, 64)[0].requires_grad_()
    row_weight = torch.rand(graph.num_rows, dtype=torch.float64) + 0.5
    by_edge = row_weight[graph.edge_index[0]]
    grad = torch.randn(graph.num_cols if transpose else graph.num_rows, 64, dtype=torch.float64)
    results = []
    for weights_of in ({"weight": None, "row_weight": row_weight}, {"weight": by_edge}):
        out = weighted_aggregate(x, graph=graph, transpose=transpose, edge_mask=mask, **weights_of)
        results.append((out, *torch.autograd.grad(out, x, grad)))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)

    small, weight = X[:, :3].double().requires_grad_(), torch.rand(GRAPH.num_rows).double()
    assert torch.autograd.gradgradcheck(
        lambda t: weighted_aggregate(t, None, GRAPH, transpose, row_weight=weight), (small,)
    )
    torch.testing.assert_close(
        weighted_aggregate(small, None, GRAPH, transpose, row_weight=weight),
        weighted_aggregate_reference(small, None, GRAPH, transpose, row_weight=weight),
    )


def test_takes_strided_operands_and_half_weights() -> None:
    wide = torch.cat([torch.randn(len(X), 3), X], 1)[:, 3:]
    assert torch.equal(
        weighted_aggregate(wide, WEIGHT, GRAPH), weighted_aggregate(X, WEIGHT, GRAPH)
    )
    half = WEIGHT.bfloat16()
    got = weighted_aggregate(X.bfloat16(), half, GRAPH)
    assert torch.equal(got, weighted_aggregate(X.bfloat16(), half.float(), GRAPH))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked: bool, transpose: bool) -> None:
    mask = GRAPH.edge_mask(random_mask(CASES["bipartite"])) if masked else None
    masks = (mask.row, mask.col) if mask else (None, None)
    leaves = [t.clone().requires_grad_() for t in (X, WEIGHT)]
    tensors = GRAPH.tensors(columns=True)
    torch.library.opcheck(
        torch.ops.kgrec_fast.weighted_aggregate.default,
        (*leaves, None, tensors, *masks, transpose, len(X)),
    )
    torch.library.opcheck(
        torch.ops.kgrec_fast.weighted_aggregate.default,
        (leaves[0], None, torch.rand(GRAPH.num_rows), tensors, *masks, transpose, len(X)),
    )
    torch.library.opcheck(
        torch.ops.kgrec_fast.edge_dot.default,
        (leaves[0], X.clone().requires_grad_(), tensors, *masks),
    )


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X, WEIGHT, None), TypeError, "graph is a NoneType, expected a RelGraph or Interaction"),
        ((X, WEIGHT, GRAPH, 1), TypeError, "transpose is a int"),
        ((X[:30], WEIGHT, GRAPH), ValueError, "x has 30 rows, expected at least 31"),
        ((X[:11], WEIGHT, GRAPH, True), ValueError, "x has 11 rows, expected at least 12"),
        ((X, WEIGHT[:9], GRAPH), ValueError, r"weight has shape \[9\], expected \[300\]"),
        ((X, WEIGHT.double(), GRAPH), TypeError, "weight has dtype torch.float64"),
        ((X, 0.5, GRAPH), TypeError, "weight is a float"),
        (
            (X, None, GRAPH, False, None, WEIGHT[:5]),
            ValueError,
            r"row_weight has shape \[5\], expected \[12\]",
        ),
        (
            (X, WEIGHT, GRAPH, False, None, WEIGHT[:12]),
            ValueError,
            "weight and row_weight are both given",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message) -> None:
    with pytest.raises(kind, match=message):
        weighted_aggregate(*arguments)
