"""The plan of the work of CUDA kernels: every edge once, thresholds, sums in a fixed order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kgrec_fast import cuda_plan as plan

HEADER = Path(__file__).parents[1] / "csrc" / "common" / "graph_view.h"
SHORT, CHUNK, PIECE = plan.SHORT_ROW, plan.CHUNK, plan.PIECE
SMALLEST = 2 * CHUNK  # workspace

DEGREES = {
    "no row": [],
    "empty rows": [0, 0, 0],
    "one edge": [1],
    "thresholds": [SHORT + 1, CHUNK, 0, SHORT, CHUNK + 1, SHORT - 1, CHUNK - 1, 1],
    "one hub": [5 * CHUNK + 3],
    "hubs": [3, 2 * CHUNK, 0, 2 * CHUNK + 1, 40, 7 * CHUNK, 2],
    "many rows": [(7 * i) % 23 for i in range(3000)],
}


def pointers(degrees: list[int]) -> Tensor:
    return torch.tensor([0, *degrees], dtype=torch.int64).cumsum(0)


def sorted_relations(ptr: Tensor, num_relations: int) -> Tensor:
    """Random relations, rising within each row as in a graph."""
    generator = torch.Generator().manual_seed(0)
    rel = torch.randint(num_relations, (int(ptr[-1]),), generator=generator)
    row = torch.repeat_interleave(torch.arange(ptr.numel() - 1), ptr.diff())
    return (torch.sort(row * num_relations + rel).values % num_relations).int()


@pytest.fixture(params=DEGREES)
def ptr(request: pytest.FixtureRequest) -> Tensor:
    return pointers(DEGREES[request.param])


# -- Rows ----------------------------------------------------------------------------------------


def items_of(ptr: Tensor, rows: plan.RowPlan) -> list[tuple[int, int, int]]:
    """(row, begin, end) of every short row, long row and chunk."""
    whole = [
        (row, int(ptr[row]), int(ptr[row + 1]))
        for row in [*rows.short_row.tolist(), *rows.long_row.tolist()]
    ]
    return [*whole, *(tuple(chunk) for chunk in rows.chunk.tolist())]


def test_every_row_is_in_one_bin_and_every_edge_covered_once(ptr: Tensor) -> None:
    rows = plan.plan_rows(ptr)
    assert all(x.dtype == torch.int32 for x in rows)
    assert (rows.chunk.size(1), rows.hub.size(1)) == (3, 3)
    binned = [*rows.short_row.tolist(), *rows.long_row.tolist(), *rows.hub[:, 0].tolist()]
    assert sorted(binned) == list(range(ptr.numel() - 1))
    covered = torch.zeros(int(ptr[-1]), dtype=torch.int64)
    for row, begin, end in items_of(ptr, rows):
        assert ptr[row] <= begin <= end <= ptr[row + 1]
        covered[begin:end] += 1
    assert bool((covered == 1).all())


def test_bins_are_cut_at_the_thresholds(ptr: Tensor) -> None:
    rows = plan.plan_rows(ptr)
    degree = ptr.diff()
    assert bool((degree[rows.short_row.long()] <= SHORT).all())
    long = degree[rows.long_row.long()]
    assert bool(((long > SHORT) & (long <= CHUNK)).all())
    assert bool((degree[rows.hub[:, 0].long()] > CHUNK).all())


def test_longest_rows_come_first_ties_in_row_order(ptr: Tensor) -> None:
    degree = ptr.diff()
    for listed in plan.plan_rows(ptr)[:2]:
        order = [(-int(degree[row]), row) for row in listed.tolist()]
        assert order == sorted(order)


def test_chunks_of_a_hub_are_consecutive_and_of_like_size(ptr: Tensor) -> None:
    rows = plan.plan_rows(ptr)
    at = 0
    for row, first, end in rows.hub.tolist():
        assert first == at
        chunks = rows.chunk[first:end]
        assert chunks[:, 0].tolist() == [row] * (end - first)
        assert chunks[0, 1] == ptr[row]
        assert chunks[-1, 2] == ptr[row + 1]
        assert torch.equal(chunks[1:, 1], chunks[:-1, 2])
        size = chunks[:, 2] - chunks[:, 1]
        assert int(size.max()) <= CHUNK
        assert int(size.max() - size.min()) <= 1
        assert end - first == -(-int(ptr[row + 1] - ptr[row]) // CHUNK)
        at = end
    assert at == rows.chunk.size(0)


# -- Runs ----------------------------------------------------------------------------------------


def check_runs(ptr: Tensor, rel: Tensor, num_relations: int, min_workspace: int) -> int:
    """Plays what kernels do with the plan; returns the number of tiles."""
    rows = plan.plan_rows(ptr)
    runs = plan.plan_runs(ptr, rel, num_relations, rows, min_workspace)
    assert all(x.dtype == torch.int32 for x in runs)
    num_edges, tiles = rel.numel(), runs.run_tile.size(0) - 1
    most = plan.workspace_rows(ptr.numel() - 1, runs.run_perm.numel(), min_workspace)
    bins = (rows.short_row.numel(), rows.long_row.numel(), rows.chunk.size(0))
    ends = (*bins, runs.run_piece.numel() - 1, runs.run_sum.size(0))
    assert runs.run_tile[0].tolist() == [0] * 5
    if num_edges:
        assert runs.run_tile[-1].tolist() == list(ends)
    assert bool((runs.run_tile.diff(dim=0) >= 0).all())

    items = items_of(ptr, rows)
    starts = (0, bins[0], bins[0] + bins[1])
    total = torch.zeros(num_relations, dtype=torch.int64)
    for tile in range(tiles):
        begin, end = runs.run_tile[tile].tolist(), runs.run_tile[tile + 1].tolist()
        # The row pass: a place takes one run of one item, here the edges' bits of it.
        place: dict[int, int] = {}
        relation: dict[int, int] = {}
        for at, first, last in zip(starts, begin, end, strict=False):
            for _, low, high in items[at + first : at + last]:
                taken = set(place)
                for e in range(low, high):
                    slot = int(runs.run_place[e])
                    assert 0 <= slot < most
                    assert slot not in taken, "two items share a place"
                    assert relation.setdefault(slot, int(rel[e])) == rel[e]
                    if e > low:  # the next run has the next place
                        next_run = int(rel[e] != rel[e - 1])
                        assert slot - int(runs.run_place[e - 1]) == next_run
                    place[slot] = place.get(slot, 0) + e + 1
        # The sums.
        seen: set[int] = set()
        used: list[int] = []
        for r, first, last in runs.run_sum[begin[4] : end[4]].tolist():
            assert begin[3] <= first < last <= end[3]
            assert r not in seen, "a relation has one owner in a tile"
            seen.add(r)
            inner: list[int] = []
            for piece in range(first, last):
                low, high = runs.run_piece[piece].item(), runs.run_piece[piece + 1].item()
                assert 0 < high - low <= PIECE
                inner += runs.run_perm[low:high].tolist()
            assert inner == sorted(inner), "in the order of the places"
            assert all(relation[slot] == r for slot in inner)
            total[r] += sum(place[slot] for slot in inner)
            used += inner
        assert sorted(used) == sorted(place), "every place is added once"
    expected = torch.zeros_like(total).index_add(0, rel.long(), torch.arange(num_edges) + 1)
    assert torch.equal(total, expected)
    return tiles


@pytest.mark.parametrize("num_relations", [1, 4, 70_000])
def test_runs_add_up_to_the_relations(ptr: Tensor, num_relations: int) -> None:
    rel = sorted_relations(ptr, num_relations)
    assert check_runs(ptr, rel, num_relations, plan.MIN_WORKSPACE) <= 1


def test_many_runs_are_worked_on_in_tiles() -> None:
    ptr = pointers([*DEGREES["many rows"][:600], 3 * CHUNK, CHUNK, 9])
    rel = sorted_relations(ptr, 5000)
    assert check_runs(ptr, rel, 5000, SMALLEST) > 3
    assert check_runs(ptr, rel, 5000, plan.MIN_WORKSPACE) == 1


def test_one_relation_in_many_pieces_and_tiles() -> None:
    ptr = pointers([1] * (3 * SMALLEST))
    rel = torch.zeros(3 * SMALLEST, dtype=torch.int32)
    rows = plan.plan_rows(ptr)
    # As many runs as rows are one tile.
    runs = plan.plan_runs(ptr, rel, 3, rows, SMALLEST)
    assert runs.run_tile.tolist() == [[0] * 5, [3 * SMALLEST, 0, 0, 3 * SMALLEST // PIECE, 1]]
    assert runs.run_sum.tolist() == [[0, 0, 3 * SMALLEST // PIECE]]
    assert runs.run_perm.tolist() == list(range(3 * SMALLEST))


def test_a_graph_without_relations_has_no_runs() -> None:
    ptr = pointers([3, 4])
    tensors = plan.plan_row_order(ptr, torch.zeros(0, dtype=torch.int32), 0)
    assert len(tensors) == len(plan.RowPlan._fields) + len(plan.RunPlan._fields)
    shapes = [tuple(x.shape) for x in tensors[len(plan.RowPlan._fields) :]]
    assert shapes == [(0,), (1, 5), (0,), (1,), (0, 3)]


def test_the_workspace_is_the_one_of_the_bindings() -> None:
    match = re.search(r"kMinWorkspaceRows = (\d+);", HEADER.read_text())
    assert match is not None
    assert int(match[1]) == plan.MIN_WORKSPACE
    assert plan.workspace_rows(10, 7) == 7
    assert plan.workspace_rows(10, 10**6) == plan.MIN_WORKSPACE
    assert plan.workspace_rows(10**6, 10**7) == 10**6
