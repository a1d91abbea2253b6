"""Means of edge scores: against loops over edges, every case, type and instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graph_helpers import CASES, Case, assert_as_good_as, random_mask
from torch import Tensor

from kgrec_fast.graph import EdgeMask
from kgrec_fast.ops import edge_score_means, edge_score_means_reference

GRAPH = CASES["bipartite"].build()


def scores(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.edge_type.numel(), generator=generator, dtype=torch.float64).to(dtype)


S = scores(CASES["bipartite"], torch.float32)


def loop_means(case: Case, score: Tensor, mask: Tensor | None) -> Tensor:
    values = score.double().numpy()
    kept = np.ones(len(values), dtype=bool) if mask is None else mask.numpy()
    means = np.zeros(case.num_cols)
    for tail in range(case.num_cols):
        mine = [
            values[e] for e in (case.edge_index[1] == tail).nonzero().flatten().tolist() if kept[e]
        ]
        means[tail] = sum(mine) / len(mine) if mine else 0.0
    return torch.from_numpy(means)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_loops(name: str, masked: bool, isa: str) -> None:
    case = CASES[name]
    graph, mask = case.build(), random_mask(case) if masked else None
    score = scores(case)
    wanted = loop_means(case, score, mask)
    for function in (edge_score_means, edge_score_means_reference):
        for count in (None, 0, (case.num_cols + 1) // 2, case.num_cols):
            got = function(score, graph, mask, count)
            torch.testing.assert_close(got, wanted[:count], rtol=1e-11, atol=1e-12)
            in_row_order = graph.to_row_order(score)
            assert torch.equal(function(in_row_order, graph, mask, count, "row"), got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_is_as_exact_as_pytorch_in_every_type(dtype: torch.dtype, masked: bool, isa: str) -> None:
    case = CASES["hub row"]
    graph, mask = case.build(), random_mask(case) if masked else None
    score = scores(case, dtype)
    ours = edge_score_means(score, graph, mask)
    theirs = edge_score_means_reference(score, graph, mask)
    assert_as_good_as(ours, theirs, loop_means(case, score, mask))


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bitwise_equal_for_every_number_of_threads(dtype: torch.dtype, isa: str) -> None:
    case = CASES["hub row"]
    graph, mask = case.build(), random_mask(case)
    assert graph.columns()[4].size(1) > 3  # parts, which share the hub column
    score = scores(case, dtype)
    first = edge_score_means(score, graph, mask)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(edge_score_means(score, graph, mask), first)


def test_masked_edges_may_hold_anything(isa: str) -> None:
    mask = random_mask(CASES["bipartite"])
    wanted = edge_score_means(S, GRAPH, mask)
    for value in (torch.nan, torch.inf):
        assert torch.equal(edge_score_means(S.masked_fill(~mask, value), GRAPH, mask), wanted)
    kept = edge_score_means(S.masked_fill(mask, torch.nan), GRAPH, mask)
    assert torch.equal(kept.isnan(), wanted != 0)
    nothing = edge_score_means(S, GRAPH, torch.zeros_like(mask))
    assert torch.equal(nothing, torch.zeros(GRAPH.num_cols))


def test_infinite_scores_stay_infinite(isa: str) -> None:
    score = torch.full_like(S, -torch.inf)
    degree = torch.bincount(CASES["bipartite"].edge_index[1], minlength=GRAPH.num_cols)
    assert torch.equal(edge_score_means(score, GRAPH).isneginf(), degree > 0)


def test_no_copy_of_the_mask_in_column_order_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = GRAPH.edge_mask(random_mask(CASES["bipartite"]))
    wanted = edge_score_means(S, GRAPH, mask)
    monkeypatch.delattr(EdgeMask, "col")
    assert torch.equal(edge_score_means(S, GRAPH, mask), wanted)
    assert mask._col is None


def test_strided_scores(isa: str) -> None:
    view = torch.stack([S, torch.zeros_like(S)], 1)[:, 0]
    assert not view.is_contiguous()
    for order in ("caller", "row"):
        wanted = edge_score_means(S, GRAPH, None, None, order)
        assert torch.equal(edge_score_means(view, GRAPH, None, None, order), wanted)


def test_a_gradient_that_is_asked_for_raises() -> None:
    score = S.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="edge_score_means is not differentiable"):
        edge_score_means(score, GRAPH).sum().backward()


def test_opcheck() -> None:
    mask = GRAPH.edge_mask(random_mask(CASES["bipartite"]))
    for row_mask in (None, mask.row):
        torch.library.opcheck(
            torch.ops.kgrec_fast.edge_score_means.default,
            (S, GRAPH.tensors(columns=True), row_mask, 20),
        )


@pytest.mark.parametrize("order", ["caller", "row"])
def test_compiles_as_one_graph(order: str) -> None:
    GRAPH.columns()
    mask = GRAPH.edge_mask(random_mask(CASES["bipartite"]))
    compiled = torch.compile(
        lambda score, mask: edge_score_means(score, GRAPH, mask, 20, order),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(S, mask), edge_score_means(S, GRAPH, mask, 20, order))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((S, None), TypeError, "graph is a NoneType"),
        ((S.int(), GRAPH), TypeError, r"score is torch\.int32, expected a floating"),
        ((None, GRAPH), TypeError, "score is NoneType"),
        ((S[:-1], GRAPH), ValueError, r"score has shape \[299\], expected \[300\]"),
        ((S, GRAPH, S), TypeError, r"mask is torch\.float32"),
        ((S, GRAPH, None, 32), ValueError, "num_items is 32, expected 0 <= num_items <= 31"),
        ((S, GRAPH, None, -1), ValueError, "num_items is -1"),
        ((S, GRAPH, None, True), TypeError, "num_items is a bool"),
        ((S, GRAPH, None, None, "column"), ValueError, "edge_order is 'column'"),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message) -> None:
    for function in (edge_score_means, edge_score_means_reference):
        with pytest.raises(kind, match=message):
            function(*arguments)
