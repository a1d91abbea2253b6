"""Rationale scores of the CUDA kernels, on the CPU, against the reference in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from graph_args import row_arguments
from graph_cases import BINS, DTYPES, EPS, SMALL, same_bits, sums, values
from graph_helpers import CASES, operands, random_mask
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.cuda_plan import CHUNK, SHORT_ROW
from kgrec_fast.ops import rationale_scores_reference

# Roundings of a logit: of the factors of its products, of up to ten additions in a lane and of five
# between lanes.
LOGIT_ROUNDINGS = 20
# Of a score, besides those of its logit and of differences of logits: of 32 additions in a lane and
# ten between lanes (chunks are added up likewise), of three exponentials by two units in the last
# place, and of some products.
SCORE_ROUNDINGS = 64
WIDTHS = (32, 64, 128, 256, 7, 135)


def scores(
    graph: RelGraph,
    query: Tensor,
    relation: Tensor | None,
    heads: int,
    mask: Tensor | None = None,
    **how: Any,
) -> tuple[Tensor, Tensor]:
    """scores and logits, in row order."""
    out = torch.full((graph.num_edges,), math.nan, dtype=sums(query.dtype))
    logits = torch.full_like(out, math.nan)
    edges = row_arguments(graph, mask, relations=True)
    run(
        "rationale_scores",
        **edges,
        dtype=query.dtype,
        query=query,
        relation=relation,
        num_heads=heads,
        scores=out,
        logits=logits,
        **how,
    )
    return out, logits


def row_max(graph: RelGraph, x: Tensor, kept: Tensor, otherwise: float) -> Tensor:
    """The highest x of the unmasked edges of its row, for each edge."""
    rows, head = torch.full((graph.num_rows,), otherwise, dtype=x.dtype), graph.head.long()
    return rows.scatter_reduce(0, head[kept], x[kept], "amax")[head]


def check(
    graph: RelGraph,
    query: Tensor,
    relation: Tensor | None,
    heads: int,
    mask: Tensor | None = None,
) -> None:
    got = scores(graph, query, relation, heads, mask)
    wide = query.double()
    wide_relation = None if relation is None else relation.double()
    score, logit = rationale_scores_reference(wide, wide_relation, graph, heads, mask, "row")
    kept = torch.ones_like(score, dtype=torch.bool)
    if mask is not None:
        kept = graph.edge_mask(mask).row
    assert not got[0][~kept].any()
    assert bool((got[1][~kept] == -torch.inf).all())

    head, width = graph.head.long(), query.size(1)
    products = wide[head] * wide[graph.col.long()]
    if wide_relation is not None:
        products = products * wide_relation[graph.rel.long()]
    size = products.abs().sum(1) / (heads * math.sqrt(width // heads))
    degree = torch.bincount(head[kept], minlength=graph.num_rows)[head].double()
    top = row_max(graph, logit, kept, -math.inf)
    spread = top + row_max(graph, -logit, kept, -math.inf)
    half_eps = EPS[got[0].dtype] / 2
    logit_error = half_eps * LOGIT_ROUNDINGS * size
    error = half_eps * (2 * spread + SCORE_ROUNDINGS)
    if query.dtype == torch.float64:
        # The reference rounds as well, and adds up each logit and each row in one go.
        logit_error += half_eps * (width + 4) * size
        error += half_eps * (spread + top.abs() + degree + SCORE_ROUNDINGS)
    error += logit_error + row_max(graph, logit_error, kept, 0.0)
    assert bool(((got[1] - logit).abs() <= logit_error)[kept].all())
    bound = torch.expm1(error) * score + torch.finfo(got[0].dtype).tiny * degree
    assert bool(((got[0] - score).abs() <= bound)[kept].all())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_relation", [False, True])
def test_cases(name: str, masked: bool, with_relation: bool) -> None:
    case = CASES[name]
    query, _, relation = operands(case, 64, torch.float32)
    mask = random_mask(case) if masked else None
    check(case.build(), query, relation if with_relation else None, 2, mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("with_relation", [False, True])
def test_shapes(dtype: torch.dtype, width: int, with_relation: bool) -> None:
    query, _, relation = operands(SMALL, width, dtype)
    heads = 2 if width % 2 == 0 else 1
    check(SMALL.build(), query, relation if with_relation else None, heads, random_mask(SMALL))


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_heads(heads: int) -> None:
    query, _, relation = operands(SMALL, 64, torch.float32)
    check(SMALL.build(), query, relation, heads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_relation", [False, True])
def test_bins(dtype: torch.dtype, masked: bool, with_relation: bool) -> None:
    graph = BINS.build()
    degree = graph.rowptr.diff()
    assert int(degree.max()) > 2 * CHUNK
    assert bool(((degree > SHORT_ROW) & (degree <= CHUNK)).any())
    assert int(degree.min()) == 0
    query, _, relation = operands(BINS, 64, dtype)
    mask = random_mask(BINS) if masked else None
    check(graph, query, relation if with_relation else None, 2, mask)


def test_hubs_find_their_chunks() -> None:
    """Several hubs side by side, some of more chunks than a warp has lanes."""
    lengths = torch.tensor([CHUNK + 1, 3, 35 * CHUNK, 0, 2 * CHUNK, CHUNK, 5 * CHUNK - 1])
    heads = torch.arange(7).repeat_interleave(lengths)
    tails = torch.arange(heads.numel()) % 50
    types = torch.arange(heads.numel()) // 9 % 4
    graph = RelGraph.from_edges(
        torch.stack([heads, tails]), types, num_rows=7, num_cols=50, num_relations=4
    )
    check(graph, values((50, 32), torch.float32, 1), values((4, 32), torch.float32, 2), 2)


@pytest.mark.parametrize("begin", [3, 8])
def test_strided_rows(begin: int) -> None:
    """From column 8 on vectors can be loaded, from 3 on the general kernel serves."""
    query = values((31, 80), torch.float32, 1)[:, begin : begin + 64]
    relation = values((8, 80), torch.float32, 2)[:, 8:72]
    check(SMALL.build(), query, relation, 2)
    check(SMALL.build(), query[:, :64], values((8, 64), torch.float32, 2), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_order_and_grid_do_not_matter(dtype: torch.dtype) -> None:
    graph, mask = BINS.build(), random_mask(BINS)
    query, _, relation = operands(BINS, 64, dtype)
    expected = scores(graph, query, relation, 2, mask)
    for order, seed in ORDERS:
        how = {"order": order, "seed": seed, "max_blocks": seed % 3}
        results = scores(graph, query, relation, 2, mask, **how)
        assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


def test_orders_of_the_general_kernel() -> None:
    graph, mask = BINS.build(), random_mask(BINS)
    query, _, relation = operands(BINS, 135, torch.float32)
    expected = scores(graph, query, relation, 3, mask)
    for order, seed in ORDERS:
        how = {"order": order, "seed": seed, "max_blocks": seed % 3}
        results = scores(graph, query, relation, 3, mask, **how)
        assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


def test_masked_rows() -> None:
    """All of a short row, of a long one, of a hub and of one chunk of another."""
    lengths = torch.tensor([5, 300, 2 * CHUNK + 9, 2 * CHUNK, 7])
    heads = torch.arange(5).repeat_interleave(lengths)
    kept = heads >= 3
    kept[int(lengths[:3].sum()) :][:CHUNK] = False
    tails, types = torch.arange(heads.numel()) % 50, torch.arange(heads.numel()) // 9 % 4
    types = torch.sort(heads * 4 + types).values % 4
    graph = RelGraph.from_edges(
        torch.stack([heads, tails]), types, num_rows=5, num_cols=50, num_relations=4
    )
    assert torch.equal(graph.edge_mask(kept).row, kept)
    query, relation = values((50, 64), torch.float32, 1), values((4, 64), torch.float32, 2)
    check(graph, query, relation, 2, kept)
    query[:3] = math.nan  # of those heads, and of tails that are masked, too
    kept &= tails >= 3
    check(graph, query, relation, 2, kept)
    check(graph, query, relation, 2, torch.zeros_like(kept))


@pytest.mark.parametrize("degree", [9, 300, 2 * CHUNK + 100])
@pytest.mark.parametrize("masked", [False, True])
def test_infinite_and_missing_logits_stay_in_their_row(degree: int, masked: bool) -> None:
    """As in the reference, in short and long rows and in hubs."""
    inf, rows = math.inf, 7
    logits = values((rows, degree), torch.float32, 1)
    logits[0, : degree - 1] = -inf  # one finite logit at the end
    logits[1, 2] = inf
    logits[2, 2] = math.nan
    logits[3] = -inf
    logits[4] = -inf
    logits[4, 2] = math.nan
    logits[5, : degree // 2] = -inf
    logits[5, 2] = inf
    # Each edge has a tail of its own, after the heads. The logit is its first element.
    query = torch.zeros(rows + rows * degree, 32)
    query[:rows, 0] = math.sqrt(32)
    query[rows:, 0] = logits.flatten()
    heads = torch.arange(rows).repeat_interleave(degree)
    edges = torch.stack([heads, torch.arange(rows, rows + rows * degree)])
    graph = RelGraph.from_edges(
        edges, torch.zeros_like(heads), num_nodes=len(query), num_relations=1
    )
    kept = torch.ones(rows * degree, dtype=torch.bool)
    if masked:
        kept = torch.arange(rows * degree) % degree % 3 != 0
        kept[degree - 1] = True
    mask = kept if masked else None
    got = scores(graph, query, None, 1, mask)
    expected = rationale_scores_reference(query, None, graph, 1, mask)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours[kept], theirs[kept], equal_nan=True)
    assert not got[0][~kept].any()
    broken = got[0].view(rows, degree).isnan() == kept.view(rows, degree)
    assert broken[1:6].all()
    assert got[0].view(rows, degree)[[0, 6]].isfinite().all()
    assert float(got[0][degree - 1]) == float(kept[:degree].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_run_reads_its_relation_once(dtype: torch.dtype) -> None:
    """512 edges in 128 runs of four, 16 runs a row."""
    heads, runs = torch.arange(8).repeat_interleave(64), torch.arange(512) // 4
    edges = torch.stack([heads, torch.arange(512) % 61])
    graph = RelGraph.from_edges(edges, runs, num_nodes=61, num_relations=128)
    query, relation = values((61, 64), dtype, 1), values((128, 64), dtype, 2)
    traffic = run(
        "rationale_scores",
        **row_arguments(graph, relations=True),
        dtype=dtype,
        query=query,
        relation=relation,
        num_heads=2,
        scores=torch.zeros(512),
        logits=torch.zeros(512),
        count=True,
    )
    row = 64 * query.element_size()
    groups = 32 * 16 // row  # of a warp, each of which reads the row of its head
    read = {
        name: sum(t.bytes for t in traffic if t.array == name and not t.write)
        for name in ("query", "relation")
    }
    assert read == {"query": (512 + 8 * groups) * row, "relation": 128 * row}


def test_sanitized(tmp_path: Path) -> None:
    graph, mask = SMALL.build(), random_mask(SMALL)
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for width in WIDTHS:
                query, _, relation = operands(SMALL, width, dtype)
                scores(graph, query, relation, 1, mask)
        query, _, relation = operands(BINS, 64, torch.float32)
        scores(BINS.build(), query, relation, 2)
        scores(BINS.build(), query, None, 2, random_mask(BINS))
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
