"""Weighted sums over rows and columns of the CUDA kernels, on the CPU, against float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from graph_args import column_arguments, row_arguments
from graph_cases import BINS, DTYPES, EPS, MANY_CHUNKS, SMALL, same_bits, sums, values
from graph_helpers import CASES, operands, random_mask
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.cuda_plan import CHUNK, SHORT_ROW
from kgrec_fast.ops.relation_mean import relation_mean_reference
from kgrec_fast.ops.weighted_aggregate import weighted_aggregate_reference

# Sums of at most 64 edges, then of those: so many roundings at most.
TERMS = 128


def aggregate(
    graph: RelGraph,
    x: Tensor,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    *,
    transpose: bool = False,
    relation: Tensor | None = None,
    mean: bool = False,
    scale: float = 1.0,
    wide_out: bool = False,
    onto: Tensor | None = None,
    **operands_and_how: Any,
) -> tuple[Tensor, Tensor | None]:
    """out (`onto`, where that is given) and the inverse counts (of `mean`)."""
    rows = graph.num_cols if transpose else graph.num_rows
    arguments = column_arguments if transpose else row_arguments
    out = torch.full((rows, x.size(1)), math.nan, dtype=sums(dtype) if wide_out else dtype)
    out = out if onto is None else onto
    inverse = torch.full((rows,), math.nan, dtype=sums(dtype)) if mean else None
    edges = arguments(graph, mask, relations=True)
    run(
        "aggregate",
        **edges,
        dtype=dtype,
        transpose=transpose,
        x=x,
        relation=relation,
        inverse_count=inverse,
        scale=scale,
        wide_out=wide_out,
        out=out,
        **operands_and_how,
    )
    return out, inverse


def exact_aggregate(
    graph: RelGraph,
    x: Tensor,
    mask: Tensor | None = None,
    *,
    transpose: bool = False,
    relation: Tensor | None = None,
    mean: bool = False,
    scale: float = 1.0,
    weight: Tensor | None = None,
    source_scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    addend: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum in float64, and that of the absolute terms."""
    kept = slice(None) if mask is None else graph.edge_mask(mask).row
    row, col, rel = (t.long()[kept] for t in (graph.head, graph.col, graph.rel))
    source, target, size = (row, col, graph.num_cols) if transpose else (col, row, graph.num_rows)
    terms = x.double()[source] * scale
    if relation is not None:
        terms = terms * relation.double()[rel]
    if weight is not None:
        terms = terms * weight.double()[kept, None]
    if source_scale is not None:
        terms = terms * source_scale.double()[source, None]
    if row_scale is not None:
        terms = terms * row_scale.double()[target, None]
    if mean:
        count = torch.bincount(target, minlength=size).clamp(min=1)
        terms = terms / count[target, None]
    first = torch.zeros(size, x.size(1), dtype=torch.float64)
    if addend is not None:
        first[: addend.size(0)] = addend[:size]
    return first.index_add(0, target, terms), first.abs().index_add(0, target, terms.abs())


def check(out: Tensor, exact: Tensor, size: Tensor, dtype: torch.dtype) -> None:
    assert out.shape == exact.shape
    bound = EPS[out.dtype] * exact.abs() + TERMS * EPS[sums(dtype)] * size
    error = (out.double() - exact).abs()
    assert bool((error <= bound + torch.finfo(out.dtype).tiny).all())


def everything(graph: RelGraph, dtype: torch.dtype, transpose: bool, width: int) -> dict[str, Any]:
    """Operands of each kind."""
    rows = max(graph.num_rows, graph.num_cols)
    return {
        "relation": values((graph.num_relations + 2, width), dtype, 2),
        "weight": values((graph.num_edges,), sums(dtype), 3),
        "source_scale": values((rows,), sums(dtype), 4),
        "row_scale": values((rows,), sums(dtype), 6),
        "scale": 0.75,
        "addend": values((max(0, graph.num_rows - 2), width), sums(dtype), 5),
        "transpose": transpose,
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_cases(name: str, masked: bool) -> None:
    """Relation mean, its gradient of x, and weighted sums both ways."""
    case = CASES[name]
    graph = case.build()
    mask = random_mask(case) if masked else None
    x, gradient, relation = operands(case, 64, torch.float32)
    mean = {"relation": relation, "mean": True}
    out, inverse = aggregate(graph, x, torch.float32, mask, **mean)
    check(out, *exact_aggregate(graph, x, mask, **mean), torch.float32)
    assert inverse is not None
    exact = relation_mean_reference(x.double(), relation.double(), graph, mask)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)

    gradients = {"relation": relation, "source_scale": inverse, "transpose": True}
    wide = x.double().requires_grad_()
    relation_mean_reference(wide, relation.double(), graph, mask).backward(
        gradient[: graph.num_rows].double()
    )
    grad_x, _ = aggregate(graph, gradient, torch.float32, mask, **gradients)
    assert wide.grad is not None
    exact = wide.grad[: graph.num_cols]
    check(grad_x, exact, exact_aggregate(graph, gradient, mask, **gradients)[1], torch.float32)

    weight = values((graph.num_edges,), torch.float32, 3)
    in_callers_order = torch.empty_like(weight)
    in_callers_order[graph.perm.long()] = weight
    for transpose in (False, True):
        how = {"weight": weight, "transpose": transpose}
        out, _ = aggregate(graph, x, torch.float32, mask, **how)
        exact = weighted_aggregate_reference(
            x.double(), in_callers_order.double(), graph, transpose, mask
        )
        check(out, exact, exact_aggregate(graph, x, mask, **how)[1], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("width", [32, 64, 128, 256, 30, 135])
def test_shapes(dtype: torch.dtype, transpose: bool, width: int) -> None:
    graph, mask = SMALL.build(), random_mask(SMALL)
    x = values((31, width), dtype, 1)
    given = everything(graph, dtype, transpose, width)
    out, _ = aggregate(graph, x, dtype, mask, **given)
    check(out, *exact_aggregate(graph, x, mask, **given), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_bins(dtype: torch.dtype, transpose: bool, mean: bool) -> None:
    graph, mask = BINS.build(), random_mask(BINS) if mean else None
    degree = (graph.columns()[0] if transpose else graph.rowptr).diff()
    assert int(degree.max()) > 2 * CHUNK
    assert bool(((degree > SHORT_ROW) & (degree <= CHUNK)).any())
    assert int(degree.min()) == 0
    x = values((110, 64), dtype, 1)
    given = everything(graph, dtype, transpose, 64) | {"mean": mean}
    out, inverse = aggregate(graph, x, dtype, mask, **given)
    check(out, *exact_aggregate(graph, x, mask, **given), dtype)
    if inverse is not None:
        kept = graph.edge_mask(mask).row
        index = (graph.col if transpose else graph.head).long()[kept]
        count = torch.bincount(index, minlength=degree.numel()).clamp(min=1)
        torch.testing.assert_close(
            inverse.double(), 1 / count.double(), rtol=EPS[inverse.dtype], atol=0
        )


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("width", "dtype"), [(32, torch.float32), (7, torch.bfloat16)])
def test_chunks_that_a_block_adds_up(width: int, dtype: torch.dtype, transpose: bool) -> None:
    graph, mask = MANY_CHUNKS.build(), random_mask(MANY_CHUNKS)
    x = values((25, width), dtype, 1)
    given = everything(graph, dtype, transpose, width) | {"mean": True}
    out, _ = aggregate(graph, x, dtype, mask, **given)
    check(out, *exact_aggregate(graph, x, mask, **given), dtype)
    for order, seed in ORDERS:
        how = {"order": order, "seed": seed, "max_blocks": seed % 3}
        assert same_bits(aggregate(graph, x, dtype, mask, **given, **how)[0], out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 7])
def test_results_in_the_type_of_sums(dtype: torch.dtype, width: int) -> None:
    graph = SMALL.build()
    x = values((31, width), dtype, 1)
    given = everything(graph, dtype, False, width)
    out, _ = aggregate(graph, x, dtype, wide_out=True, **given)
    assert out.dtype == sums(dtype)
    check(out, *exact_aggregate(graph, x, **given), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [64, 7])
@pytest.mark.parametrize("transpose", [False, True])
def test_adds_in_place(transpose: bool, width: int, dtype: torch.dtype) -> None:
    """The bits of an addend apart; what lies behind it is left alone."""
    graph, mask = BINS.build(), random_mask(BINS)
    rows = graph.num_cols if transpose else graph.num_rows
    x, there = values((110, width), dtype, 1), values((rows + 2, width), dtype, 8)
    given = everything(graph, dtype, transpose, width) | {"addend": there[:rows].clone()}
    expected, _ = aggregate(graph, x, dtype, mask, **given)
    for order, seed in ORDERS:
        onto = there.clone()
        how = {"order": order, "seed": seed, "max_blocks": seed % 3}
        aggregate(graph, x, dtype, mask, onto=onto, **given | {"addend": onto[:rows]}, **how)
        assert same_bits(onto[:rows], expected)
        assert same_bits(onto[rows:], there[rows:])


@pytest.mark.parametrize("begin", [3, 8])
def test_strided_rows(begin: int) -> None:
    """From column 8 on vectors can be loaded, from 3 on the general kernel serves."""
    graph = SMALL.build()
    x = values((31, 80), torch.float32, 1)[:, begin : begin + 64]
    given = everything(graph, torch.float32, False, 64)
    out, _ = aggregate(graph, x, torch.float32, **given)
    check(out, *exact_aggregate(graph, x, **given), torch.float32)


def test_masked_nan_stays_away() -> None:
    graph = SMALL.build()
    x = values((31, 64), torch.float32, 1)
    x[4] = math.nan
    mask = SMALL.edge_index[1] != 4
    out, _ = aggregate(graph, x, torch.float32, mask, mean=True)
    assert out.isfinite().all()


def test_no_columns() -> None:
    graph = SMALL.build()
    out, inverse = aggregate(graph, torch.zeros(31, 0), torch.float32, mean=True)
    assert out.shape == (12, 0)
    assert inverse is not None
    torch.testing.assert_close(inverse, 1 / graph.rowptr.diff().float())


def edge_dot(
    graph: RelGraph, left: Tensor, right: Tensor, mask: Tensor | None = None, **how: Any
) -> Tensor:
    out = torch.full((graph.num_edges,), math.nan, dtype=sums(left.dtype))
    edges = row_arguments(graph, mask, relations=True)
    run("edge_dot", **edges, dtype=left.dtype, row_side=left, col_side=right, out=out, **how)
    return out


def check_edge_dot(graph: RelGraph, left: Tensor, right: Tensor, mask: Tensor | None) -> None:
    out = edge_dot(graph, left, right, mask)
    products = left.double()[graph.head.long()] * right.double()[graph.col.long()]
    if mask is not None:
        products[~graph.edge_mask(mask).row] = 0
    bound = left.size(1) * EPS[out.dtype] * products.abs().sum(1)
    assert bool(((out.double() - products.sum(1)).abs() <= bound).all())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_edge_dot_cases(name: str, masked: bool) -> None:
    case = CASES[name]
    left, right, _ = operands(case, 64, torch.float32)
    check_edge_dot(case.build(), left, right, random_mask(case) if masked else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 64, 128, 256, 7, 135])
def test_edge_dot_shapes(dtype: torch.dtype, width: int) -> None:
    left, right, _ = operands(SMALL, width, dtype)
    check_edge_dot(SMALL.build(), left, right, random_mask(SMALL))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 64)])
def test_order_and_grid_do_not_matter(dtype: torch.dtype, width: int) -> None:
    graph, mask = BINS.build(), random_mask(BINS)
    x = values((110, width), dtype, 1)

    def both(**how: Any) -> list[Tensor]:
        results = [edge_dot(graph, x, x, mask, **how)]
        for transpose in (False, True):
            given = everything(graph, dtype, transpose, width)
            results += aggregate(graph, x, dtype, mask, mean=True, **given, **how)
        return results

    expected = both()
    for order, seed in ORDERS:
        results = both(order=order, seed=seed, max_blocks=seed % 3)
        assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


def test_orders_of_the_general_kernel() -> None:
    graph = SMALL.build()
    x = values((31, 135), torch.float32, 1)
    given = everything(graph, torch.float32, False, 135)
    expected, _ = aggregate(graph, x, torch.float32, **given)
    products = edge_dot(graph, x, x)
    for order, seed in ORDERS:
        how = {"order": order, "seed": seed, "max_blocks": seed % 3}
        assert same_bits(aggregate(graph, x, torch.float32, **given, **how)[0], expected)
        assert same_bits(edge_dot(graph, x, x, **how), products)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_run_reads_its_relation_once(dtype: torch.dtype) -> None:
    """In rows short enough for one group, and x once an edge, in units of 32 bytes."""
    heads = torch.arange(64).repeat_interleave(8)
    types = torch.arange(512) // 4  # two runs a row
    cols = torch.arange(512) * 7 % 64
    graph = RelGraph.from_edges(torch.stack([heads, cols]), types, num_nodes=64, num_relations=128)
    x, relation = values((64, 64), dtype, 1), values((128, 64), dtype, 2)
    out = torch.zeros_like(x)
    edges = row_arguments(graph, relations=True)
    traffic = run(
        "aggregate", **edges, dtype=dtype, x=x, relation=relation, scale=1.0, out=out, count=True
    )
    row = x[0].numel() * x.element_size()
    read = {"x": 0, "relation": 0, "out": 0}
    for t in traffic:
        if t.array in read:
            read[t.array] += t.bytes
    assert read == {"x": 512 * row, "relation": 128 * row, "out": 64 * row}


def test_sanitized(tmp_path: Path) -> None:
    graph, mask = SMALL.build(), random_mask(SMALL)
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for width in (7, 64, 256):
                x = values((31, width), dtype, 1)
                for transpose in (False, True):
                    given = everything(graph, dtype, transpose, width)
                    aggregate(graph, x, dtype, mask, mean=True, **given)
                edge_dot(graph, x, x, mask)
        x = values((110, 64), torch.float32, 1)
        aggregate(BINS.build(), x, torch.float32, mean=True)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
