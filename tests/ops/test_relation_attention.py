"""Relation attention: against loops over edges, float64 gradients, every case, type and ISA."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import CASES, assert_as_good_as, loop_attention, operands, random_mask
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.ops import relation_attention, relation_attention_reference

EXACT = {"rtol": 1e-11, "atol": 1e-12}
SHAPES = [(1, 1), (6, 3), (32, 2), (64, 1), (64, 2), (64, 8), (100, 2), (128, 4), (256, 2)]


def run(function, tensors: tuple[Tensor, ...], graph: RelGraph, heads: int, mask=None):
    """Output, log-sum-exp and the gradients of both, for fixed random output gradients."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out, lse = function(*leaves, graph, heads, mask, return_lse=True)
    generator = torch.Generator().manual_seed(5)
    grad_out = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    grad_lse = torch.randn(lse.shape, generator=generator, dtype=torch.float64).to(lse.dtype)
    # Nothing depends on the log-sum-exp of an empty row.
    finite = torch.isfinite(lse)
    loss = (out * grad_out).sum() + (torch.where(finite, lse, 0) * grad_lse).sum()
    grads = torch.autograd.grad(loss, leaves)
    return [out.detach(), torch.where(finite, lse, 0).detach(), *grads], finite


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", [c for c in CASES if c != "hub row"])
def test_reference_and_native_equal_the_loops(case: str, masked: bool, isa: str) -> None:
    case = CASES[case]
    mask = random_mask(case) if masked else None
    query, value, relation = operands(case, 6)
    out, lse = loop_attention(case, query.numpy(), value.numpy(), relation.numpy(), 3, mask)
    for function in (relation_attention, relation_attention_reference):
        got = function(query, value, relation, case.build(), 3, mask, return_lse=True)
        torch.testing.assert_close(got[0], torch.from_numpy(out), **EXACT)
        torch.testing.assert_close(got[1], torch.from_numpy(lse), **EXACT)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference_in_float64(case: str, masked: bool, isa: str) -> None:
    case = CASES[case]
    mask = random_mask(case) if masked else None
    tensors, graph = operands(case, 64), case.build()
    ours, finite = run(relation_attention, tensors, graph, 2, mask)
    exact, wanted_finite = run(relation_attention_reference, tensors, graph, 2, mask)
    assert torch.equal(finite, wanted_finite)
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_as_exact_as_pytorch_in_every_type(shape, dtype: torch.dtype, isa: str) -> None:
    width, heads = shape
    for name in ("bipartite", "hub row"):
        case = CASES[name]
        tensors, graph, mask = operands(case, width, dtype), case.build(), random_mask(case)
        ours, _ = run(relation_attention, tensors, graph, heads, mask)
        theirs, _ = run(relation_attention_reference, tensors, graph, heads, mask)
        exact, _ = run(
            relation_attention_reference, tuple(x.double() for x in tensors), graph, heads, mask
        )
        for results in zip(ours, theirs, exact, strict=True):
            assert_as_good_as(*results)


@pytest.mark.parametrize("vectors", [101, 102, 104, 108])
def test_one_wide_head_is_not_taken_for_two_narrow_ones(vectors: int, isa: str) -> None:
    case = CASES["bipartite"]
    width = vectors * {"baseline": 2, "avx2": 4, "avx512": 8}[isa]  # whole vectors of float64
    tensors, graph, mask = operands(case, width), case.build(), random_mask(case)
    ours, _ = run(relation_attention, tensors, graph, 1, mask)
    exact, _ = run(relation_attention_reference, tensors, graph, 1, mask)
    for got, wanted in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradcheck(shape, isa: str) -> None:
    case, (width, heads) = CASES["duplicates"], shape
    graph = case.build()
    leaves = [x.requires_grad_() for x in operands(case, width)]
    torch.autograd.gradcheck(
        lambda *x: relation_attention(*x, graph, heads, return_lse=True), leaves, atol=1e-6
    )


def test_one_edge_has_weight_one_and_no_score_gradient() -> None:
    graph = RelGraph.from_edges(torch.tensor([[0], [1]]), torch.tensor([0]))
    tensors = [torch.randn(n, 8).requires_grad_() for n in (2, 2, 1)]
    query, value, relation = tensors
    out = relation_attention(*tensors, graph, 2)
    assert torch.equal(out[0], value[1] * relation[0])
    out.sum().backward()
    assert torch.equal(query.grad, torch.zeros_like(query))


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("place", [0, 12345, 19999])
def test_one_edge_of_a_row_that_parts_share(place: int, others: int, isa: str) -> None:
    edges = 20000
    graph = RelGraph.from_edges(
        torch.stack([torch.zeros(edges, dtype=torch.int64), torch.arange(edges) % 50]),
        torch.zeros(edges, dtype=torch.int64),
    )
    assert int((graph.part[0] == 0).sum()) > 2  # a row in more than two parts
    mask = torch.zeros(edges, dtype=torch.bool)
    mask[place] = True
    mask[7001 : 7001 + others] = True
    tensors = [x.requires_grad_() for x in (torch.randn(50, 8), torch.randn(50, 8))]
    relation = torch.randn(1, 8, requires_grad=True)
    relation_attention(*tensors, relation, graph, 2, mask).sum().backward()
    assert bool((tensors[0].grad == 0).all()) == (others == 0)


def test_large_scores_do_not_overflow() -> None:
    case = CASES["bipartite"]
    tensors = tuple(30 * x for x in operands(case, 64, torch.float32))
    ours, _ = run(relation_attention, tensors, case.build(), 2)
    assert all(bool(x.isfinite().all()) for x in ours)


def test_nan_and_infinity_keep_their_meaning(isa: str) -> None:
    case = CASES["duplicates"]
    for bad in (float("nan"), float("inf")):
        query, value, relation = operands(case, 64, torch.float32)
        value[1] = bad  # the tail of the edges of row 0
        out = relation_attention(query, value, relation, case.build(), 2)
        assert not bool(out[0].isfinite().any())
        assert bool(out[1].isfinite().all())
        query[1] = float("nan")
        assert bool(relation_attention(query, value, relation, case.build(), 2).isnan().all())


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_equal_from_run_to_run_and_for_every_number_of_threads(dtype, isa: str) -> None:
    case = CASES["hub row"]
    tensors, graph, mask = operands(case, 64, dtype), case.build(), random_mask(case)
    first, _ = run(relation_attention, tensors, graph, 2, mask)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        again, _ = run(relation_attention, tensors, graph, 2, mask)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_strided_operands_equal_contiguous_ones() -> None:
    case = CASES["bipartite"]
    graph = case.build()
    dense = operands(case, 64, torch.float32)
    wide = tuple(torch.cat([torch.randn(len(x), 5), x], 1)[:, 5:] for x in dense)
    turned = tuple(x.t().contiguous().t() for x in dense)
    wanted, _ = run(relation_attention, dense, graph, 2)
    for views in (wide, turned):
        assert not views[0].is_contiguous()
        got = relation_attention(*views, graph, 2)
        assert torch.equal(got, wanted[0])
    # A gradient that is a broadcast view.
    leaves = [x.clone().requires_grad_() for x in dense]
    relation_attention(*leaves, graph, 2).sum().backward()
    exact = [x.clone().requires_grad_() for x in dense]
    relation_attention_reference(*exact, graph, 2).sum().backward()
    for a, b in zip(leaves, exact, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_keeps_nothing_of_size_edges_times_width() -> None:
    case = CASES["hub row"]
    leaves = [x.requires_grad_() for x in operands(case, 64, torch.float32)]
    graph = case.build()
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        relation_attention(*leaves, graph, 2)
    assert max(sizes) <= max(2 * graph.num_edges, 64 * len(leaves[0]))  # heads, not widths


@pytest.mark.parametrize("masked", [False, True])
def test_weights_that_are_not_kept_are_made_piece_by_piece(masked: bool) -> None:
    # 16 heads in float64 are 128 bytes an edge, 41,000 edges a piece; a hub lies across the cuts.
    generator = torch.Generator().manual_seed(7)
    nodes, edges = 3000, 150_000
    edge_index = torch.randint(nodes, (2, edges), generator=generator)
    edge_index[0, :60_000] = 1500
    graph = RelGraph.from_edges(
        edge_index, torch.randint(5, (edges,), generator=generator), num_nodes=nodes
    )
    mask = torch.rand(edges, generator=generator) < 0.7 if masked else None
    tensors = [torch.randn(n, 16, generator=generator).double() for n in (nodes, nodes, 5)]
    passing = relation_attention(*tensors, graph, 16, mask, return_lse=True)
    kept = relation_attention(
        *(t.requires_grad_() for t in tensors), graph, 16, mask, return_lse=True
    )
    for got, wanted in zip(passing, kept, strict=True):
        assert torch.equal(got, wanted)
    exact = relation_attention_reference(*tensors, graph, 16, mask)
    torch.testing.assert_close(passing[0], exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(masked: bool, dtype: torch.dtype) -> None:
    case = CASES["bipartite"]
    graph = case.build()
    mask = graph.edge_mask(random_mask(case)) if masked else None
    masks = (mask.row, mask.col) if mask else (None, None)
    leaves = [x.requires_grad_() for x in operands(case, 8, dtype)]
    beside = torch.arange(case.num_rows).to(dtype) if masked else None
    arguments = (*leaves, graph.tensors(columns=True), *masks, 2, True, beside)
    torch.library.opcheck(torch.ops.kgrec_fast.relation_attention.default, arguments)
    detached = [x.detach() for x in leaves]
    out, lse, weight = torch.ops.kgrec_fast.relation_attention(*detached, *arguments[3:])
    backward = torch.ops.kgrec_fast.relation_attention_backward.default
    rest = (*detached, out, lse, weight, *arguments[3:-2], beside)
    torch.library.opcheck(backward, (out, lse, *rest))
    torch.library.opcheck(backward, (out, None, *rest))


@pytest.mark.parametrize("name", CASES)
def test_no_gradient_of_the_log_sum_exp_is_zeros(name: str) -> None:
    case = CASES[name]
    graph, (query, value, relation) = case.build(), operands(case, 8, torch.float32)
    tensors, native = graph.tensors(columns=True), torch.ops.kgrec_fast
    mask = graph.edge_mask(random_mask(case))  # some rows have one edge left
    out, lse, weight = native.relation_attention(
        query, value, relation, tensors, mask.row, mask.col, 2, True, None
    )
    none, zeros = (
        native.relation_attention_backward(
            out, grad_lse, query, value, relation, None, lse, weight, tensors, mask.row, mask.col,
            2, None,
        )
        for grad_lse in (None, torch.zeros_like(lse))
    )  # fmt: skip
    assert all(map(torch.equal, none, zeros))


def test_double_backward_raises() -> None:
    case = CASES["bipartite"]
    leaves = [x.requires_grad_() for x in operands(case, 8)]
    out = relation_attention(*leaves, case.build(), 2)
    (grad,) = torch.autograd.grad(out.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        grad.sum().backward()


def test_compiles_without_graph_breaks() -> None:
    case = CASES["bipartite"]
    graph, tensors = case.build(), operands(case, 8, torch.float32)
    graph.columns()
    compiled = torch.compile(
        lambda *x: relation_attention(*x, graph, 2), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*tensors), relation_attention(*tensors, graph, 2))


def test_autocast_chooses_the_half_type() -> None:
    case = CASES["bipartite"]
    tensors = operands(case, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = relation_attention(*tensors, case.build(), 2)
    assert out.dtype == torch.bfloat16
    half = relation_attention(*(x.bfloat16() for x in tensors), case.build(), 2)
    assert torch.equal(out, half)


GRAPH = CASES["bipartite"].build()
Q, V, R = operands(CASES["bipartite"], 8, torch.float32)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((Q, V, R, "graph", 2), TypeError, "graph is a str, expected a RelGraph"),
        ((Q.numpy(), V, R, GRAPH, 2), TypeError, "query is a ndarray"),
        ((Q.long(), V, R, GRAPH, 2), TypeError, "query has dtype torch.int64"),
        ((Q[0], V, R, GRAPH, 2), ValueError, r"query has shape \[8\]"),
        ((Q[:30], V, R, GRAPH, 2), ValueError, "query has 30 rows, expected at least 31"),
        ((Q, V[:30], R, GRAPH, 2), ValueError, "value has 30 rows, expected at least 31"),
        ((Q, V[:, :4], R, GRAPH, 2), ValueError, "value has 4 columns, expected 8"),
        ((Q, V.double(), R, GRAPH, 2), TypeError, "value has dtype torch.float64"),
        ((Q, V, R[:5], GRAPH, 2), ValueError, "relation has 5 rows, expected at least 6"),
        ((Q, V, R.to("meta"), GRAPH, 2), ValueError, "relation is on meta, expected cpu"),
        ((Q, V, R, GRAPH, 3), ValueError, "num_heads is 3, expected a divisor of the width 8"),
        ((Q, V, R, GRAPH, 0), ValueError, "num_heads is 0"),
        ((Q, V, R, GRAPH, 2.0), TypeError, "num_heads is a float"),
        ((Q, V, R, GRAPH, 2, torch.ones(3) > 0), ValueError, r"mask has shape \[3\]"),
        (
            (Q, V, R, GRAPH, 2, CASES["wide"].build().edge_mask(torch.ones(300) > 0).row.float()),
            TypeError,
            "mask is torch.float32",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message) -> None:
    with pytest.raises(kind, match=message):
        relation_attention(*arguments)
