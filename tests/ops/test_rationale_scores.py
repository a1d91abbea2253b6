"""Rationale scores: against loops over edges, in the caller's order, every case, type and ISA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_helpers import CASES, Case, assert_as_good_as, kept, loop_scores, operands, random_mask

from kgrec_fast import InteractionGraph
from kgrec_fast.ops import rationale_scores, rationale_scores_reference

GRAPH = CASES["bipartite"].build()
Q, _, R = operands(CASES["bipartite"], 8, torch.float32)


def loop_rationales(case: Case, query, relation, heads: int, mask) -> tuple[np.ndarray, np.ndarray]:
    edges = kept(case, mask)
    scores = np.zeros(case.edge_type.numel())
    logits = np.full(case.edge_type.numel(), -np.inf)
    for (e, *_), row in zip(edges, loop_scores(query, relation, edges, heads), strict=True):
        logits[e] = row.mean()
    for node in range(case.num_rows):
        mine = [e for e, head, _, _ in edges if head == node]
        weights = np.exp(logits[mine])
        scores[mine] = weights / weights.sum() * len(mine)
    return scores, logits


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_relation", [False, True])
@pytest.mark.parametrize("case", [c for c in CASES if c != "hub row"])
def test_equals_the_loops(case: str, with_relation: bool, masked: bool, isa: str) -> None:
    case = CASES[case]
    graph, mask = case.build(), random_mask(case) if masked else None
    query, _, relation = operands(case, 6)
    relation = relation if with_relation else None
    wanted = loop_rationales(
        case, query.numpy(), None if relation is None else relation.numpy(), 3, mask
    )
    for function in (rationale_scores, rationale_scores_reference):
        got = function(query, relation, graph, 3, mask)
        in_row_order = function(query, relation, graph, 3, mask, edge_order="row")
        for ours, exact, row in zip(got, wanted, in_row_order, strict=True):
            torch.testing.assert_close(ours, torch.from_numpy(exact), rtol=1e-11, atol=1e-12)
            assert torch.equal(graph.to_caller_order(row), ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("width", "heads"), [(6, 3), (32, 2), (64, 2), (64, 8), (100, 2), (256, 4)]
)
def test_is_as_exact_as_pytorch_in_every_type(width, heads, dtype, isa: str) -> None:
    case = CASES["hub row"]
    graph, mask = case.build(), random_mask(case)
    query, _, relation = operands(case, width, dtype)
    ours = rationale_scores(query, relation, graph, heads, mask)
    theirs = rationale_scores_reference(query, relation, graph, heads, mask)
    exact = rationale_scores_reference(query.double(), relation.double(), graph, heads, mask)
    assert ours[0].dtype == torch.float32
    for results in zip(ours, theirs, exact, strict=True):
        assert_as_good_as(*(x[mask] for x in results))
    assert torch.equal(ours[0][~mask], torch.zeros(int((~mask).sum())))
    assert bool((ours[1][~mask] == -torch.inf).all())


@pytest.mark.parametrize("case", ["bipartite", "hub row"])
def test_masked_edges_have_no_score_beside_nan(case: str, isa: str) -> None:
    case = CASES[case]
    graph, mask = case.build(), random_mask(case)
    query, _, relation = operands(case, 64, torch.float32)
    query[case.edge_index[1, mask][:2]] = torch.nan
    ours, theirs = (
        function(query, relation, graph, 2, mask)
        for function in (rationale_scores, rationale_scores_reference)
    )
    assert bool(ours[0].isnan().any())
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)
    assert torch.equal(ours[0][~mask], torch.zeros(int((~mask).sum())))


@pytest.mark.usefixtures("restore_threads")
def test_bitwise_equal_for_every_number_of_threads(isa: str) -> None:
    case = CASES["hub row"]
    graph, mask = case.build(), random_mask(case)
    query, _, relation = operands(case, 64, torch.float32)
    first = rationale_scores(query, relation, graph, 2, mask)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        again = rationale_scores(query, relation, graph, 2, mask)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_scores_of_a_node_add_up_to_its_degree() -> None:
    scores, _ = rationale_scores(Q, R, GRAPH, 2)
    heads = CASES["bipartite"].edge_index[0]
    total = torch.zeros(GRAPH.num_rows).index_add(0, heads, scores)
    torch.testing.assert_close(total, torch.bincount(heads, minlength=GRAPH.num_rows).float())


def test_no_gradient_flows() -> None:
    query = Q.clone().requires_grad_()
    assert not any(x.requires_grad for x in rationale_scores(query, R, GRAPH, 2))


def test_takes_interactions_without_relations() -> None:
    case = CASES["bipartite"]
    graph = InteractionGraph.from_edges(case.edge_index, num_users=12, num_items=31)
    got = rationale_scores(Q, None, graph, 2)
    wanted = rationale_scores(Q, None, GRAPH, 2)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(TypeError, match="graph is a InteractionGraph, expected a RelGraph"):
        rationale_scores(Q, R, graph, 2)


def test_opcheck() -> None:
    mask = GRAPH.edge_mask(random_mask(CASES["bipartite"]))
    for relation, row_mask in ((R, None), (None, mask.row)):
        torch.library.opcheck(
            torch.ops.kgrec_fast.rationale_scores.default,
            (Q, relation, GRAPH.tensors(columns=False), row_mask, 2),
        )


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((Q, R, None, 2), TypeError, "graph is a NoneType"),
        ((Q[:20], R, GRAPH, 2), ValueError, "query has 20 rows, expected at least 31"),
        ((Q, R[:2], GRAPH, 2), ValueError, "relation has 2 rows, expected at least 6"),
        ((Q, R, GRAPH, 5), ValueError, "num_heads is 5"),
        ((Q, R, GRAPH, 2, None, "column"), ValueError, "edge_order is 'column'"),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message) -> None:
    with pytest.raises(kind, match=message):
        rationale_scores(*arguments)
