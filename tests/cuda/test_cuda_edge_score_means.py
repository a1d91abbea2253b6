"""Means of edge scores of the CUDA kernels, on the CPU, against the reference in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from graph_args import column_arguments
from graph_cases import BINS, EPS, SMALL, same_bits, values
from graph_helpers import CASES, random_mask
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.cuda_plan import CHUNK, SHORT_ROW
from kgrec_fast.ops import edge_score_means_reference

DTYPES = (torch.float32, torch.float64)
# Additions in a lane (of up to CHUNK / 32 edges) and between lanes, the same of chunks, a division.
ROUNDINGS = CHUNK // 32 + 5 + 8 + 1


def means(
    graph: RelGraph, score: Tensor, mask: Tensor | None = None, count: int | None = None, **how: Any
) -> Tensor:
    """The kernels' result, which is filled with NaN before; scores and result in row order."""
    count = graph.num_cols if count is None else count
    out = torch.full((count,), math.nan, dtype=score.dtype)
    run(
        "edge_score_means",
        **column_arguments(graph, relations=False),
        row_mask=None if mask is None else graph.edge_mask(mask).row,
        dtype=score.dtype,
        score=score,
        out=out,
        **how,
    )
    return out


def check(
    graph: RelGraph, score: Tensor, mask: Tensor | None = None, count: int | None = None
) -> None:
    got = means(graph, score, mask, count)
    wide = score.double()
    wanted = edge_score_means_reference(wide, graph, mask, count, "row")
    size = edge_score_means_reference(wide.abs(), graph, mask, count, "row")
    roundings = ROUNDINGS
    if score.dtype == torch.float64:  # the reference rounds as well, and adds up in one go
        roundings += int(graph.columns()[0].diff().max()) if graph.num_cols else 0
    assert bool(((got - wanted).abs() <= EPS[score.dtype] / 2 * roundings * size).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, masked: bool, dtype: torch.dtype) -> None:
    case = CASES[name]
    graph, mask = case.build(), random_mask(case) if masked else None
    score = values((graph.num_edges,), dtype, 1)
    for count in (None, 0, (graph.num_cols + 1) // 2):
        check(graph, score, mask, count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_bins(dtype: torch.dtype, masked: bool) -> None:
    graph, mask = BINS.build(), random_mask(BINS) if masked else None
    degree = graph.columns()[0].diff()
    assert int(degree.max()) > 2 * CHUNK
    assert bool(((degree > SHORT_ROW) & (degree <= CHUNK)).any())
    score = values((graph.num_edges,), dtype, 1)
    hub = int(degree.argmax())
    for count in (None, hub, hub + 1):  # without the hub, and with it at the end
        check(graph, score, mask, count)


def test_many_chunks() -> None:
    """Of a hub with more of them than a warp has lanes."""
    tails = torch.cat([torch.full((35 * CHUNK,), 1), torch.arange(4)])
    edges = torch.stack([torch.arange(tails.numel()) % 50, tails])
    graph = RelGraph.from_edges(edges, torch.zeros_like(tails), num_nodes=50, num_relations=1)
    check(graph, values((graph.num_edges,), torch.float32, 1))


def test_masked_edges_may_hold_anything() -> None:
    graph, mask = BINS.build(), random_mask(BINS)
    score = values((graph.num_edges,), torch.float32, 1)
    wanted = means(graph, score, mask)
    score[~graph.edge_mask(mask).row] = math.nan
    assert same_bits(means(graph, score, mask), wanted)
    nothing = means(graph, score, torch.zeros_like(mask))
    assert torch.equal(nothing, torch.zeros(graph.num_cols))


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_and_grid_do_not_matter(dtype: torch.dtype) -> None:
    graph, mask = BINS.build(), random_mask(BINS)
    score = values((graph.num_edges,), dtype, 1)
    expected = means(graph, score, mask)
    for order, seed in ORDERS:
        how = {"order": order, "seed": seed, "max_blocks": seed % 3}
        assert same_bits(means(graph, score, mask, **how), expected)


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for case in (SMALL, BINS):
            graph = case.build()
            for dtype in DTYPES:
                score = values((graph.num_edges,), dtype, 1)
                means(graph, score, random_mask(case), graph.num_cols - 1)
                means(graph, score)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
