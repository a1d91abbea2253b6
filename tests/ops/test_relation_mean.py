"""Relation mean: against loops over edges, float64 gradients, every case, type and ISA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_helpers import CASES, assert_as_good_as, kept, operands, random_mask

from kgrec_fast.ops import relation_mean, relation_mean_reference

GRAPH = CASES["bipartite"].build()
X, _, R = operands(CASES["bipartite"], 8, torch.float32)


def run(function, x, relation, graph, mask):
    leaves = [t.detach().clone().requires_grad_() for t in (x, relation)]
    out = function(*leaves, graph, mask)
    generator = torch.Generator().manual_seed(5)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [c for c in CASES if c != "hub row"])
def test_equals_the_loops(case: str, masked: bool, isa: str) -> None:
    case = CASES[case]
    mask = random_mask(case) if masked else None
    x, _, relation = operands(case, 6)
    wanted, count = np.zeros((case.num_rows, 6)), np.zeros((case.num_rows, 1))
    for _, head, tail, rel in kept(case, mask):
        wanted[head] += x[tail].numpy() * relation[rel].numpy()
        count[head] += 1
    wanted = torch.from_numpy(wanted / np.maximum(count, 1))
    for function in (relation_mean, relation_mean_reference):
        got = function(x, relation, case.build(), mask)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference_in_float64(case: str, masked: bool, isa: str) -> None:
    case = CASES[case]
    mask = random_mask(case) if masked else None
    x, _, relation = operands(case, 64)
    ours = run(relation_mean, x, relation, case.build(), mask)
    exact = run(relation_mean_reference, x, relation, case.build(), mask)
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 6, 32, 64, 100, 128, 256])
def test_is_as_exact_as_pytorch_in_every_type(width: int, dtype: torch.dtype, isa: str) -> None:
    case = CASES["hub row"]
    graph, mask = case.build(), random_mask(case)
    x, _, relation = operands(case, width, dtype)
    ours = run(relation_mean, x, relation, graph, mask)
    theirs = run(relation_mean_reference, x, relation, graph, mask)
    exact = run(relation_mean_reference, x.double(), relation.double(), graph, mask)
    for results in zip(ours, theirs, exact, strict=True):
        assert_as_good_as(*results)


def test_gradcheck(isa: str) -> None:
    leaves = [t.double().requires_grad_() for t in (X, R)]
    mask = random_mask(CASES["bipartite"])
    torch.autograd.gradcheck(lambda *t: relation_mean(*t, GRAPH, mask), leaves)


@pytest.mark.usefixtures("restore_threads")
def test_bitwise_equal_for_every_number_of_threads(isa: str) -> None:
    case = CASES["hub row"]
    x, _, relation = operands(case, 64, torch.float32)
    arguments = (relation_mean, x, relation, case.build(), random_mask(case))
    first = run(*arguments)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(first, run(*arguments), strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked: bool) -> None:
    mask = GRAPH.edge_mask(random_mask(CASES["bipartite"])) if masked else None
    masks = (mask.row, mask.col) if mask else (None, None)
    leaves = [t.clone().requires_grad_() for t in (X, R)]
    tensors = GRAPH.tensors(columns=True)
    torch.library.opcheck(torch.ops.kgrec_fast.relation_mean.default, (*leaves, tensors, *masks))
    out, count = torch.ops.kgrec_fast.relation_mean(X, R, tensors, *masks)
    torch.library.opcheck(
        torch.ops.kgrec_fast.relation_mean_backward.default, (out, X, R, count, tensors, *masks)
    )


def test_double_backward_raises() -> None:
    leaves = [t.clone().requires_grad_() for t in (X, R)]
    out = relation_mean(*leaves, GRAPH)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X, R, 3), TypeError, "graph is a int, expected a RelGraph"),
        ((X[:30], R, GRAPH), ValueError, "x has 30 rows, expected at least 31"),
        ((X, R[:, :4], GRAPH), ValueError, "relation has 4 columns, expected 8"),
        ((X, R.half(), GRAPH), TypeError, "relation has dtype torch.float16"),
        ((X, R, GRAPH, torch.ones(300)), TypeError, "mask is torch.float32"),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message) -> None:
    with pytest.raises(kind, match=message):
        relation_mean(*arguments)
