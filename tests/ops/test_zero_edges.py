"""Attention over a graph and `zero_edges` beside it, against the graph that has these edges."""

from __future__ import annotations

import math

import pytest
import torch
from graph_helpers import CASES, Case, assert_as_good_as, operands, random_mask
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.ops import (
    projected_attention,
    relation_attention,
    relation_attention_reference,
)

# Others have no row, or rows where the node of zeros would stand.
NAMES = [name for name in CASES if name not in ("no node", "wide")]
HEADS = 2


def counts(case: Case) -> Tensor:
    """How many edges each row has beside the graph: none in every third row."""
    rows = torch.arange(case.num_rows)
    return (rows % 3) * (1 + rows % 5)


def with_zero_edges(case: Case) -> RelGraph:
    """The graph with these edges in it: they lead to one node more, of zeros."""
    head = torch.arange(case.num_rows).repeat_interleave(counts(case))
    tail = torch.full_like(head, case.num_cols)
    relation = torch.arange(head.numel()) % case.num_relations
    return RelGraph.from_edges(
        torch.cat([case.edge_index, torch.stack([head, tail])], 1),
        torch.cat([case.edge_type, relation]),
        num_rows=case.num_rows,
        num_cols=case.num_cols + 1,
        num_relations=case.num_relations,
    )


def whole_mask(case: Case, mask: Tensor | None) -> Tensor | None:
    added = int(counts(case).sum())
    return None if mask is None else torch.cat([mask, torch.ones(added, dtype=torch.bool)])


def inputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Query, value and relation, zero past the columns of a graph that has no more rows."""
    query, value, relation = operands(case, 64, dtype)
    query[case.num_cols :] = value[case.num_cols :] = 0
    return [query, value, relation]


def run(function, tensors: list[Tensor], graph: RelGraph, mask, zero_edges=None) -> list[Tensor]:
    """Output, log-sum-exp, and gradients of both by query, value and relation."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    more = () if zero_edges is None else (zero_edges,)
    out, lse = function(*leaves, graph, HEADS, mask, True, *more)
    generator = torch.Generator().manual_seed(8)
    loss = out.new_zeros(())
    for result in (out, lse):
        grad = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        loss = loss + (torch.where(result.isfinite(), result, 0) * grad.to(result.dtype)).sum()
    grads = torch.autograd.grad(loss, leaves)
    return [out.detach(), lse.detach(), *grads]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_graph_that_has_these_edges(name: str, masked: bool, isa: str) -> None:
    case = CASES[name]
    mask = random_mask(case) if masked else None
    tensors, zero_edges = inputs(case, torch.float64), counts(case)
    exact = run(
        relation_attention_reference, tensors, with_zero_edges(case), whole_mask(case, mask)
    )
    for function in (relation_attention, relation_attention_reference):
        found = run(function, tensors, case.build(), mask, zero_edges)
        assert torch.equal(found[1] == -math.inf, exact[1] == -math.inf)
        for got, wanted in zip(found[:2], exact[:2], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)
        for got, wanted in zip(found[2:], exact[2:], strict=True):
            # The node of zeros has gradients of its own, which nobody asks for.
            rows = slice(0, case.num_cols) if got.shape == tensors[0].shape else slice(None)
            torch.testing.assert_close(got[rows], wanted[rows], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["bipartite", "wide", "hub row"])
def test_is_as_exact_as_pytorch_in_every_type(name: str, dtype: torch.dtype, isa: str) -> None:
    case = CASES[name]
    graph, mask, zero_edges = case.build(), random_mask(case), counts(case)
    tensors = list(operands(case, 64, dtype))
    ours = run(relation_attention, tensors, graph, mask, zero_edges)
    theirs = run(relation_attention_reference, tensors, graph, mask, zero_edges)
    doubles = [x.double() for x in tensors]
    exact = run(relation_attention_reference, doubles, graph, mask, zero_edges)
    for results in zip(ours, theirs, exact, strict=True):
        finite = [torch.where(x.isfinite(), x, 0) for x in results]
        assert_as_good_as(*finite)


def test_a_single_edge_has_a_score_gradient_beside_others() -> None:
    """Alone its weight is 1 whatever its score; beside an edge to a zero node it is not."""
    graph = RelGraph.from_edges(torch.tensor([[0, 1], [2, 2]]), torch.tensor([0, 0]), num_nodes=3)
    tensors = [x.requires_grad_() for x in torch.randn(3, 3, 8, dtype=torch.float64)]
    query, value, relation = tensors[0], tensors[1], tensors[2][:1]
    out = relation_attention(query, value, relation, graph, 1, zero_edges=torch.tensor([0, 1, 0]))
    (gradient,) = torch.autograd.grad(out.sum(), query)
    score = (query[1] * query[2] * relation[0]).sum() / math.sqrt(8)
    weight = torch.sigmoid(score)  # of two scores, one of which is 0
    wanted = torch.autograd.grad((weight * value[2] * relation[0]).sum(), query)[0]
    torch.testing.assert_close(out[1], (weight * value[2] * relation[0]), rtol=1e-12, atol=0)
    torch.testing.assert_close(out[0], value[2] * relation[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[1], wanted[1], rtol=1e-11, atol=1e-13)
    assert torch.equal(gradient[0], torch.zeros(8, dtype=torch.float64))


def test_none_beside_the_graph_changes_no_bit() -> None:
    case = CASES["hub row"]
    graph, mask, tensors = case.build(), random_mask(case), list(operands(case, 64, torch.float32))
    none = torch.zeros(case.num_rows)
    for one, other in zip(
        run(relation_attention, tensors, graph, mask, none),
        run(relation_attention, tensors, graph, mask),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_with_the_projection_in_front() -> None:
    case = CASES["bipartite"]
    x, weight = operands(case, 64)[0], torch.randn(64, 64, dtype=torch.float64) / 8
    relation, zero_edges = operands(case, 64)[2], counts(case)
    leaves = [t.requires_grad_() for t in (x, weight, relation)]
    found = projected_attention(*leaves, case.build(), HEADS, zero_edges=zero_edges)
    exact = relation_attention_reference(
        x @ weight, x, relation, case.build(), HEADS, zero_edges=zero_edges
    )
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(exact.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ([1, 2], TypeError, "zero_edges is a list"),
        (torch.ones(3), ValueError, r"zero_edges has shape \[3\], expected \[12\]"),
        (torch.ones(12, device="meta"), ValueError, "zero_edges is on meta, expected cpu"),
    ],
)
def test_bad_counts_are_named(bad, kind, message) -> None:
    case = CASES["bipartite"]
    with pytest.raises(kind, match=message):
        relation_attention(*operands(case, 64), case.build(), HEADS, zero_edges=bad)
