"""Edges of masks by row: how many there are, and those of some rows, against loops over edges."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import CASES, Case, random_mask
from segment_helpers import backend, with_threads  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast import InteractionGraph, RelGraph
from kgrec_fast.ops._edge_masks import count_edges, edges_of_rows

native = torch.ops.kgrec_fast
each_case = pytest.mark.parametrize("name", CASES)


def masks_of(case: Case) -> tuple[Tensor, Tensor]:
    """Two masks in row order."""
    graph = case.build()
    return tuple(graph.to_row_order(random_mask(case, seed)) for seed in (1, 2))  # type: ignore[return-value]


def rows_named(case: Case) -> Tensor:
    """Some rows, two of them twice, and numbers beyond the last."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(case.num_rows + 5, (9,), generator=generator)
    return torch.cat([ids, ids[:2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_case
def test_counts(name: str, dtype: torch.dtype, backend: str) -> None:  # noqa: F811
    graph, (mask, other) = CASES[name].build(), masks_of(CASES[name])
    one = count_edges(graph, mask, None, dtype)
    both = count_edges(graph, mask, other, dtype)
    assert one.dtype == both.dtype == dtype
    expected = [[0, 0] for _ in range(graph.num_rows)]
    for row, a, b in zip(graph.head.tolist(), mask.tolist(), other.tolist(), strict=True):
        expected[row][0] += a
        expected[row][1] += a and b
    assert [one.tolist(), both.tolist()] == [[row[i] for row in expected] for i in range(2)]


def test_counts_what_is_true_whatever_its_bits() -> None:
    # Two rows, with bytes that are only read as bool.
    graph = RelGraph.from_edges(torch.zeros(2, 21).long(), torch.zeros(21).long(), num_rows=2)
    odd = (torch.arange(21, dtype=torch.uint8) * 12).view(torch.bool)
    even = torch.full((21,), 129, dtype=torch.uint8).view(torch.bool)
    assert count_edges(graph, odd, even, torch.float32).tolist() == [20, 0]


@pytest.mark.parametrize("masked", [False, True])
@each_case
def test_edges_of_rows(name: str, masked: bool, backend: str) -> None:  # noqa: F811
    case = CASES[name]
    graph, ids = case.build(), rows_named(case)
    mask = masks_of(case)[0] if masked else None
    found = edges_of_rows(graph, ids, mask)
    none = edges_of_rows(graph, ids[:0], mask)
    named = set(ids.tolist())
    kept = [True] * graph.num_edges if mask is None else mask.tolist()
    pairs = zip(graph.head.tolist(), kept, strict=True)
    assert found.tolist() == [row in named and there for row, there in pairs]
    assert none.tolist() == [False] * graph.num_edges


def test_edges_of_users() -> None:
    inter = InteractionGraph.from_edges(torch.tensor([[0, 1, 1, 3], [2, 0, 1, 2]]), num_items=3)
    assert edges_of_rows(inter, torch.tensor([3, 1]), None).tolist() == [False, True, True, True]


def test_ids_that_lie_apart() -> None:
    graph = CASES["bipartite"].build()
    pairs = torch.tensor([[1, 0], [4, 0], [2, 0]])
    wanted = edges_of_rows(graph, torch.tensor([1, 4, 2]), None)
    assert torch.equal(edges_of_rows(graph, pairs[:, 0], None), wanted)


def test_threads_do_not_matter() -> None:
    case = CASES["hub row"]
    graph, (mask, other) = case.build(), masks_of(case)
    for call in (
        lambda: count_edges(graph, mask, other, torch.float32),
        lambda: edges_of_rows(graph, rows_named(case), mask),
    ):
        first, *others = with_threads(call)
        assert all(torch.equal(first, found) for found in others)


def test_errors_name_the_argument() -> None:
    rowptr, mask, ids = torch.tensor([0, 2, 3]), torch.ones(3, dtype=torch.bool), torch.tensor([0])
    for call, message in (
        (lambda: native.count_edges(rowptr[:0], mask, None, False), "rowptr is empty"),
        (lambda: native.count_edges(rowptr, mask[:2], None, False), "rowptr is expected to rise"),
        (lambda: native.count_edges(rowptr.flip(0), mask, None, False), "rowptr is expected to"),
        (lambda: native.count_edges(rowptr, mask, mask[:2], False), "mask has 2 elements"),
        (lambda: native.edges_of_rows(rowptr, ids, mask[:2], 3), "mask has 2 elements, expected 3"),
        (lambda: native.edges_of_rows(rowptr, ids, None, 4), "rise from 0 to 4"),
        (lambda: native.edges_of_rows(rowptr, ids - 1, None, 3), r"ids\[0\] is -1, expected at"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_opcheck_and_fake_tensors() -> None:
    rowptr, mask = torch.tensor([0, 2, 3]), torch.tensor([True, False, True])
    ids = torch.tensor([1, 4])
    for wide in (False, True):
        torch.library.opcheck(native.count_edges.default, (rowptr, mask, ~mask, wide))
    torch.library.opcheck(native.edges_of_rows.default, (rowptr, ids, mask, 3))
    with FakeTensorMode() as mode:
        row, bits = mode.from_tensor(rowptr), mode.from_tensor(mask)
        assert native.count_edges(row, bits, None, True).dtype == torch.float64
        assert native.edges_of_rows(row, mode.from_tensor(ids), None, 3).shape == (3,)
