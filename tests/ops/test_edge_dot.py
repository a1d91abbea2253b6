"""Inner products of the ends of edges: against a loop, in every type and on every ISA."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import (
    CASES,
    HALF_TYPES,
    Case,
    assert_as_good_as,
    kept,
    operands,
    random_mask,
)
from torch import Tensor

from kgrec_fast.ops import edge_dot, edge_dot_reference

CASE = CASES["bipartite"]
GRAPH = CASE.build()
LEFT, RIGHT, _ = operands(CASE, 8)


def loop_dot(case: Case, left: Tensor, right: Tensor, mask: Tensor | None) -> Tensor:
    out = torch.zeros(case.edge_type.numel(), dtype=torch.float64)
    for edge, row, col, _ in kept(case, mask):
        out[edge] = (left[row] * right[col]).sum()
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [name for name in CASES if name != "hub row"])
def test_equals_the_loop(case: str, masked: bool, isa: str) -> None:
    graph, mask = CASES[case].build(), random_mask(CASES[case]) if masked else None
    left, right, _ = operands(CASES[case], 7)
    wanted = loop_dot(CASES[case], left, right, mask)
    for function in (edge_dot, edge_dot_reference):
        found = function(left, right, graph, mask)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(
            graph.to_row_order(found), function(left, right, graph, mask, edge_order="row")
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_those_of_the_reference(case: str, masked: bool, isa: str) -> None:
    graph, mask = CASES[case].build(), random_mask(CASES[case]) if masked else None
    leaves = [x.requires_grad_() for x in operands(CASES[case], 8)[:2]]
    grad = torch.randn(graph.num_edges, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad(function(*leaves, graph, mask), leaves, grad)
        for function in (edge_dot, edge_dot_reference)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
def test_is_as_exact_as_pytorch_in_every_type(dtype: torch.dtype, isa: str) -> None:
    left, right = LEFT.to(dtype), RIGHT.to(dtype)
    found, theirs = edge_dot(left, right, GRAPH), edge_dot_reference(left, right, GRAPH)
    assert found.dtype == torch.float32
    assert_as_good_as(found, theirs, edge_dot_reference(left.double(), right.double(), GRAPH))


def test_derivatives_of_any_order() -> None:
    leaves = [x[:, :2].clone().requires_grad_() for x in (LEFT, RIGHT)]
    assert torch.autograd.gradcheck(lambda a, b: edge_dot(a, b, GRAPH), leaves)
    assert torch.autograd.gradgradcheck(lambda a, b: edge_dot(a, b, GRAPH), leaves)
    # One of the two alone.
    alone = torch.autograd.grad(edge_dot(LEFT[:, :2], leaves[1], GRAPH).sum(), leaves[1])
    both = torch.autograd.grad(edge_dot(*leaves, GRAPH).sum(), leaves)
    assert torch.equal(alone[0], both[1])


def test_threads_do_not_matter(restore_threads: None) -> None:
    graph = CASES["hub row"].build()
    leaves = [x.requires_grad_() for x in operands(CASES["hub row"], 16, torch.float32)[:2]]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        out = edge_dot(*leaves, graph)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((LEFT, RIGHT, None), TypeError, "graph is a NoneType, expected a RelGraph or Interaction"),
        ((LEFT[:11], RIGHT, GRAPH), ValueError, "row_side has 11 rows, expected at least 12"),
        ((LEFT, RIGHT[:30], GRAPH), ValueError, "col_side has 30 rows, expected at least 31"),
        ((LEFT, RIGHT[:, :3], GRAPH), ValueError, "col_side has 3 columns, expected 8"),
        ((LEFT, RIGHT.float(), GRAPH), TypeError, "col_side has dtype torch.float32"),
        ((LEFT, 1.0, GRAPH), TypeError, "col_side is a float"),
        ((LEFT, RIGHT, GRAPH, None, "column"), ValueError, "edge_order is 'column', expected"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        edge_dot(*arguments)
