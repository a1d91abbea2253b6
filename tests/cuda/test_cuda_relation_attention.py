"""Relation attention of the CUDA kernels, forward and backward, on the CPU, against float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from attention_calls import Gradients, Problem, attention, attention_backward, relation_gradient
from emulator import ORDERS, recording, run_sanitized
from graph_args import run_arguments
from graph_cases import BINS, DTYPES, MANY_CHUNKS, SMALL, same_bits, sums, values
from graph_helpers import CASES, Case, assert_as_good_as, operands, random_mask
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.cuda_plan import CHUNK, SHORT_ROW
from kgrec_fast.ops.relation_attention import relation_attention_reference
from kgrec_fast.ops.relation_mean import relation_mean_reference

SHARED_BYTES = 48 << 10
SUMS_WARPS = 4
SMALL_WORKSPACE = 2 * CHUNK


class Results(NamedTuple):
    out: Tensor
    lse: Tensor
    gradients: Gradients


def problem(case: Case, width: int, heads: int, dtype: torch.dtype, masked: bool) -> Problem:
    mask = random_mask(case) if masked else None
    return Problem(case.build(), *operands(case, width, dtype), heads, mask)


def given_gradients(p: Problem) -> tuple[Tensor, Tensor]:
    """Of out, and of the log-sum-exp."""
    dtype, rows = p.query.dtype, p.graph.num_rows
    return values((rows, p.query.size(1)), dtype, 5), values((rows, p.num_heads), sums(dtype), 6)


def kernels(p: Problem, in_shared: bool, **how: Any) -> Results:
    forward = {name: how[name] for name in how if name != "min_workspace"}
    out, lse = attention(p, **forward)
    gradients = attention_backward(p, out, lse, *given_gradients(p), in_shared=in_shared, **how)
    return Results(out, lse, gradients)


def reference(p: Problem, dtype: torch.dtype) -> list[Tensor]:
    """out, lse, and the gradients of query, value and relation, computed in `dtype`."""
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in (p.query, p.value, p.relation)]
    out, lse = relation_attention_reference(
        *leaves, p.graph, p.num_heads, p.mask, True, p.zero_edges
    )
    grad_out, grad_lse = given_gradients(p)
    has_edge = lse.isfinite()
    total = (out * grad_out.to(out.dtype)).sum()
    total = total + torch.where(has_edge, lse, 0).mul(grad_lse.to(lse.dtype)).sum()
    total.backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return [out.detach(), lse.detach(), *gradients]


def assert_good(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """As good as plain PyTorch's; in float64, which has no better oracle, close to it."""
    if ours.dtype == torch.float64 and exact.numel() > 0:
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-13 * float(exact.abs().max()))
    else:
        assert_as_good_as(ours, theirs, exact)


def check(p: Problem, in_shared: bool, **how: Any) -> Results:
    """Results are as good as plain PyTorch's in the same type."""
    ours = kernels(p, in_shared, **how)
    dtype, g = p.query.dtype, p.graph
    theirs, exact = reference(p, dtype), reference(p, torch.float64)
    assert torch.equal(ours.lse.isfinite(), exact[1].isfinite())
    assert bool((ours.lse[~ours.lse.isfinite()] == -math.inf).all())
    has_edge = exact[1].isfinite()
    assert_good(ours.out.to(dtype), theirs[0], exact[0])
    assert_good(ours.lse[has_edge], theirs[1][has_edge], exact[1][has_edge])
    nodes = max(g.num_rows, g.num_cols)
    sizes = (nodes, g.num_cols, g.num_relations)
    for got, their, right, size in zip(ours.gradients, theirs[2:], exact[2:], sizes, strict=False):
        assert_good(got.to(dtype), their[:size], right[:size])
    return ours


def places(case: Case, width: int, dtype: torch.dtype = torch.float32) -> Sequence[bool]:
    """Where the gradients of relations can be added up: False the workspace, True shared memory."""
    size = case.num_relations * width * sums(dtype).itemsize
    return (False, True) if SUMS_WARPS * size <= SHARED_BYTES else (False,)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_cases(name: str, masked: bool) -> None:
    case = CASES[name]
    for in_shared in places(case, 64):
        check(problem(case, 64, 2, torch.float32, masked), in_shared)


def test_there_are_more_relations_than_shared_memory_holds() -> None:
    assert places(CASES["many relations"], 64) == (False,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_shared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_bins(dtype: torch.dtype, in_shared: bool, masked: bool) -> None:
    """Short and long rows and columns, and hubs that are cut into chunks."""
    p = problem(BINS, 64, 2, dtype, masked)
    for ptr in (p.graph.rowptr, p.graph.columns()[0]):
        degree = ptr.diff()
        assert int(degree.max()) > 2 * CHUNK
        assert bool(((degree > SHORT_ROW) & (degree <= CHUNK)).any())
    check(p, in_shared)


@pytest.mark.parametrize(("width", "dtype"), [(32, torch.float32), (7, torch.bfloat16)])
def test_chunks_that_a_block_adds_up(width: int, dtype: torch.dtype) -> None:
    p = problem(MANY_CHUNKS, width, 1, dtype, masked=True)
    check(p, in_shared=False)
    check(p._replace(zero_edges=torch.arange(MANY_CHUNKS.num_rows) % 3), in_shared=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 7])
@pytest.mark.parametrize("case", [BINS, SMALL, CASES["one edge"], CASES["empty rows"]])
def test_edges_beside_the_graph(dtype: torch.dtype, width: int, case: Case) -> None:
    """Also beside hubs, single edges (whose score has a gradient then) and rows without any."""
    p = problem(case, width, 1, dtype, masked=case.num_rows > 1)
    rows = torch.arange(case.num_rows)
    check(p._replace(zero_edges=(rows % 3 + (case.num_rows == 1)) * 2), in_shared=False)
    none = kernels(p._replace(zero_edges=torch.zeros(case.num_rows)), in_shared=False)
    assert same_bits(none.out, kernels(p, in_shared=False).out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("width", "heads"),
    [(w, h) for w in (32, 64, 128, 256) for h in (1, 2, 4, 8)]
    + [(7, 1), (30, 2), (64, 64), (96, 3), (270, 2), (1, 1)],
)
def test_shapes(dtype: torch.dtype, width: int, heads: int) -> None:
    check(problem(SMALL, width, heads, dtype, masked=True), in_shared=False)


def test_work_in_tiles() -> None:
    """More runs than the workspace has places."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(300, (2, 9000), generator=generator)
    edge_index[0, :3000] = 5
    case = Case(edge_index, torch.randint(80, (9000,), generator=generator), 300, 300, 80)
    p = problem(case, 32, 2, torch.float32, masked=True)
    assert run_arguments(p.graph, SMALL_WORKSPACE)["run_tile"].size(0) > 3
    check(p, in_shared=False, min_workspace=SMALL_WORKSPACE)


@pytest.mark.parametrize(("dtype", "groups"), [(torch.float32, 4), (torch.bfloat16, 8)])
@pytest.mark.parametrize("first_part_masked", [False, True])
def test_runs_that_groups_of_a_warp_share(
    dtype: torch.dtype, groups: int, first_part_masked: bool
) -> None:
    """Rows of one relation, of two, and of many; the share of each run has one place."""
    size = 8 * groups
    head = torch.arange(3).repeat_interleave(size)
    edge = torch.arange(size)
    types = torch.cat([torch.zeros(size), edge * 2 // size, edge // 3]).long()
    tail = torch.randint(50, (3 * size,), generator=torch.Generator().manual_seed(0))
    case = Case(torch.stack([head, tail]), types, 50, 50, int(types.max()) + 1)
    p = problem(case, 32, 2, dtype, masked=False)
    if first_part_masked:
        p = p._replace(mask=edge.repeat(3) >= size // groups)
    for in_shared in (False, True):
        check(p, in_shared)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_shared", [False, True])
def test_order_and_grid_do_not_matter(dtype: torch.dtype, in_shared: bool) -> None:
    p = problem(BINS, 64, 2, dtype, masked=True)
    expected = kernels(p, in_shared)
    for order, seed in ORDERS:
        results = kernels(p, in_shared, order=order, seed=seed, max_blocks=seed % 3)
        assert same_bits(results.out, expected.out)
        assert same_bits(results.lse, expected.lse)
        for one, other in zip(results.gradients[:3], expected.gradients[:3], strict=True):
            assert same_bits(one, other)


@pytest.mark.parametrize("width", [64, 135])
def test_orders_with_other_shapes(width: int) -> None:
    """The general kernel, and one with more groups a warp."""
    p = problem(SMALL, width, 1, torch.float32, masked=True)
    expected = kernels(p, False)
    for order, seed in ORDERS:
        results = kernels(p, False, order=order, seed=seed, max_blocks=seed % 3)
        assert same_bits(results.out, expected.out)
        for one, other in zip(results.gradients[:3], expected.gradients[:3], strict=True):
            assert same_bits(one, other)


@pytest.mark.parametrize("masked", [False, True])
def test_single_edges_have_a_weight_of_one(masked: bool) -> None:
    """Exactly, so that their score has the gradient of the log-sum-exp and no other."""
    generator = torch.Generator().manual_seed(0)
    long = 40
    head = torch.cat([torch.arange(20), torch.full((long,), 20)])
    tail = torch.randint(21, (head.numel(),), generator=generator)
    types = torch.randint(4, (head.numel(),), generator=generator)
    case = Case(torch.stack([head, tail]), types, 21, 21, 4)
    p = problem(case, 64, 2, torch.float32, masked=False)
    if masked:
        mask = torch.ones(head.numel(), dtype=torch.bool)
        mask[20:] = False
        mask[20 + long // 2] = True
        p = p._replace(mask=mask)
    edge = kernels(p, False).gradients.edge
    _, grad_lse = given_gradients(p)
    single = torch.arange(20) if not masked else torch.arange(21)
    kept = p.graph.edge_mask(p.mask).row if p.mask is not None else torch.ones(60, dtype=torch.bool)
    rows = p.graph.head.long()
    chosen = torch.isin(rows, single) & kept
    assert int(chosen.sum()) == single.numel()
    assert bool((edge[chosen][..., 0] == 1).all())
    assert torch.equal(edge[chosen][..., 1], grad_lse[rows[chosen]])


def test_scores_far_apart() -> None:
    """Of some 10^4: exponentials are taken against the highest one."""
    p = problem(BINS, 64, 2, torch.float32, masked=True)
    p = p._replace(query=p.query * 40)
    out, lse = attention(p)
    assert float(lse.abs().max()) > 1e4
    exact = relation_attention_reference(
        p.query.double(), p.value.double(), p.relation.double(), p.graph, 2, p.mask
    )
    theirs = relation_attention_reference(p.query, p.value, p.relation, p.graph, 2, p.mask)
    assert_good(out, theirs, exact)


def test_masked_nan_stays_away() -> None:
    p = problem(SMALL, 64, 2, torch.float32, masked=False)
    p.query[20], p.value[20] = math.nan, math.nan
    results = kernels(p._replace(mask=SMALL.edge_index[1] != 20), False)
    assert results.out.isfinite().all()
    assert results.gradients.relation.isfinite().all()
    assert results.gradients.value.isfinite().all()


def test_nan_is_not_lost() -> None:
    p = problem(SMALL, 64, 2, torch.float32, masked=False)
    tail = int(SMALL.edge_index[1, 0])
    p.query[tail, 3] = math.nan
    out, _ = attention(p)
    rows = SMALL.edge_index[0, SMALL.edge_index[1] == tail]
    assert out[rows, :32].isnan().all()
    assert out[rows[rows != tail], 32:].isfinite().all()


@pytest.mark.parametrize("begin", [3, 8])
def test_strided_rows(begin: int) -> None:
    """From column 8 on vectors can be loaded, from 3 on the general kernel serves."""
    p = problem(SMALL, 80, 2, torch.float32, masked=True)
    part = slice(begin, begin + 64)
    check(
        p._replace(
            query=p.query[:, part], value=p.value[:, part], relation=p.relation[:, part].clone()
        ),
        in_shared=False,
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("masked", [False, True])
def test_relation_gradient_of_a_mean(name: str, masked: bool) -> None:
    case = CASES[name]
    for in_shared in places(case, 64):
        check_mean(problem(case, 64, 1, torch.float32, masked), in_shared)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 64, 128, 256, 7, 135])
@pytest.mark.parametrize("in_shared", [False, True])
def test_relation_gradient_of_a_mean_in_other_shapes(
    dtype: torch.dtype, width: int, in_shared: bool
) -> None:
    check_mean(problem(BINS if width == 64 else SMALL, width, 1, dtype, masked=True), in_shared)


def check_mean(p: Problem, in_shared: bool, **how: Any) -> Tensor:
    grad_out, _ = given_gradients(p)
    mask = None if p.mask is None else p.graph.edge_mask(p.mask).row
    heads = p.graph.head.long() if mask is None else p.graph.head.long()[mask]
    count = torch.bincount(heads, minlength=p.graph.num_rows).clamp(min=1)
    inverse = (1 / count.double()).to(sums(grad_out.dtype))
    ours = relation_gradient(p, grad_out, inverse, in_shared=in_shared, **how)

    def plain(dtype: torch.dtype) -> Tensor:
        relation = p.relation.to(dtype, copy=True).requires_grad_()
        relation_mean_reference(p.value.to(dtype), relation, p.graph, p.mask).backward(
            grad_out.to(dtype)
        )
        assert relation.grad is not None
        return relation.grad[: p.graph.num_relations]

    dtype = grad_out.dtype
    assert_good(ours.to(dtype), plain(dtype), plain(torch.float64))
    return ours


@pytest.mark.parametrize("in_shared", [False, True])
def test_order_does_not_matter_to_the_gradient_of_a_mean(in_shared: bool) -> None:
    p = problem(BINS, 32, 1, torch.bfloat16, masked=True)
    expected = check_mean(p, in_shared)
    for order, seed in ORDERS:
        how = {"order": order, "seed": seed, "max_blocks": seed % 3}
        assert same_bits(check_mean(p, in_shared, **how), expected)


def test_each_edge_reads_its_rows_once() -> None:
    """Of query, value and relation a row an edge; the last is in the nearest cache most times."""
    heads = torch.arange(64).repeat_interleave(8)
    types = torch.arange(512) // 4  # two runs a row
    cols = torch.arange(512) * 7 % 64
    graph = RelGraph.from_edges(torch.stack([heads, cols]), types, num_nodes=64, num_relations=128)
    x, relation = values((64, 64), torch.float32, 1), values((128, 64), torch.float32, 2)
    traffic: list[Any] = []
    attention(Problem(graph, x, x.clone(), relation, 2), traffic)
    names = ("query", "value", "relation")
    read = {name: sum(t.bytes for t in traffic if t.array == name) for name in names}
    assert read == {"query": (512 + 64) * 256, "value": 512 * 256, "relation": 512 * 256}


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for width, heads in ((7, 1), (64, 2), (256, 8)):
                p = problem(SMALL, width, heads, dtype, masked=True)
                kernels(p, in_shared=False)
                kernels(p, in_shared=True)
        p = problem(SMALL, 64, 2, torch.float32, masked=True)
        kernels(p._replace(zero_edges=torch.ones(SMALL.num_rows)), in_shared=False)
        check_mean(problem(SMALL, 64, 1, torch.float32, masked=True), False)
        kernels(problem(BINS, 64, 2, torch.float32, masked=True), in_shared=False)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
