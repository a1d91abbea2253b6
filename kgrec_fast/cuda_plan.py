"""The plan of the work of CUDA kernels over one order of the edges; made once, with the graph.

A plan is a list of tensors, all int32, that follow the graph's own in what an op takes
(`csrc/ops.cpp` has the order, `csrc/common/graph_view.h` what a kernel sees). It depends on the
graph alone, so that every sum has one order and results are the same bits in every run.

**Rows** (`plan_rows`, for columns too). Every row is in exactly one of three bins:

    short_row [S]      rows of at most SHORT_ROW edges, none included: a group of lanes each
    long_row  [L]      rows of at most CHUNK edges: a warp each
    chunk     [C, 3]   (row, begin, end), at most CHUNK edges of a longer row: a warp each, which
                       writes a partial result; the chunks of a row are of like size
    hub       [H, 3]   (row, first chunk, end chunk): whose partial results a second kernel merges

`short_row` and `long_row` begin with the longest rows, ties in row order: lanes that work side by
side have as many edges each, and what is started last is soon done.

**Runs** (`plan_runs`, row order of a graph with relations). Where the gradients of the relations do
not fit into shared memory, a row pass writes the share of each run to a place of its own in a
workspace, and the places of each relation are added up. A *run* is, here, a stretch of edges of one
relation within one short row, long row or chunk. So that the workspace of a large graph has no more
than num_rows places (`workspace_rows`), the work is cut into *tiles*, each of which has all places
for itself: for each tile a row pass over its rows and chunks, then its sums.

    run_place [E]      the place of each edge's run; those of one row or chunk are in a row
    run_tile [K+1, 5]  where each tile begins in short_row, long_row, chunk, run_piece and run_sum
    run_perm  [U]      the places of all runs by (tile, relation, place)
    run_piece [P+1]    pointers into run_perm: at most PIECE runs of one tile and relation. A first
                       kernel adds these up, and can leave the sum in the first place of the piece,
                       which nobody else reads
    run_sum   [G, 3]   (relation, first piece, end piece), each relation at most once a tile: a
                       second kernel adds these up, in order, to what the tiles before have given

A run without an unmasked edge has its place all the same, to be written (zeros) or left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SHORT_ROW = 16
"""Edges that a group of lanes takes without help."""
CHUNK = 128
"""Edges that a warp takes without help."""
PIECE = 64
"""Runs that are added up in one go."""
MIN_WORKSPACE = 2**16
"""Places in a workspace that are never too many. Equal to kMinWorkspaceRows in C++."""


class RowPlan(NamedTuple):
    """See the module; all int32."""

    short_row: Tensor
    long_row: Tensor
    chunk: Tensor
    hub: Tensor


class RunPlan(NamedTuple):
    """See the module; all int32."""

    run_place: Tensor
    run_tile: Tensor
    run_perm: Tensor
    run_piece: Tensor
    run_sum: Tensor


def workspace_rows(num_rows: int, num_runs: int, min_workspace: int = MIN_WORKSPACE) -> int:
    """Places that the runs of any tile fit into; the bindings compute the same."""
    return min(num_runs, max(num_rows, min_workspace))


def plan_rows(ptr: Tensor) -> RowPlan:
    """The plan of rows with the pointers `ptr`, int64 [N + 1]; O(N log N) and on its device."""
    degree = ptr.diff()
    is_hub = degree > CHUNK
    row = is_hub.nonzero().flatten()
    count = -(-degree[row] // CHUNK)
    last = count.cumsum(0)
    hub = torch.stack([row, last - count, last], 1)
    row, count, first, size = (
        x.repeat_interleave(count) for x in (row, count, last - count, degree[row])
    )
    number = torch.arange(row.numel(), device=ptr.device) - first
    begin = ptr[row] + size * number // count
    end = ptr[row] + size * (number + 1) // count
    return RowPlan(
        _longest_first(degree, degree <= SHORT_ROW),
        _longest_first(degree, (degree > SHORT_ROW) & ~is_hub),
        torch.stack([row, begin, end], 1).int(),
        hub.int(),
    )


def _longest_first(degree: Tensor, chosen: Tensor) -> Tensor:
    row = chosen.nonzero().flatten()
    return row[torch.sort(degree[row], descending=True, stable=True).indices].int()


def plan_runs(
    ptr: Tensor,
    rel: Tensor,
    num_relations: int,
    rows: RowPlan,
    min_workspace: int = MIN_WORKSPACE,
) -> RunPlan:
    """The plan of the runs of a row order; O(E log E) and on its device.

    Args:
        ptr: int64 [N + 1], its pointers.
        rel: int32 [E], relations of its edges, or [0] where it has none.
        num_relations: more than any of these.
        rows: its `plan_rows`.
        min_workspace: at least 2 * CHUNK; smaller ones make more tiles, for tests.
    """
    device, num_edges = ptr.device, rel.numel()
    if num_edges == 0:
        none = torch.zeros(0, dtype=torch.int32, device=device)
        return RunPlan(none, none.new_zeros(1, 5), none, none.new_zeros(1), none.new_zeros(0, 3))

    # Items of work in the order of the bins, and the runs of each.
    short, long, chunk = rows.short_row.long(), rows.long_row.long(), rows.chunk.long()
    begin = torch.cat([ptr[short], ptr[long], chunk[:, 1]])
    size = torch.cat([ptr[short + 1], ptr[long + 1], chunk[:, 2]]) - begin
    used = (size > 0).nonzero().flatten()
    used = used[begin[used].argsort()]  # those with edges, in order of the edges
    is_first = torch.zeros(num_edges, dtype=torch.bool, device=device)
    is_first[1:] = rel[1:] != rel[:-1]
    is_first[begin[used]] = True
    number = is_first.cumsum(0) - 1  # of each edge's run, in order of the edges
    runs = torch.zeros_like(size)
    runs[used] = number[begin[used] + size[used] - 1] - number[begin[used]] + 1
    before = runs.cumsum(0) - runs

    # Tiles: where one is too little, the last item of each may reach CHUNK - 1 places too far.
    most = max(ptr.numel() - 1, min_workspace)
    step = most if int(number[-1]) < most else most - (CHUNK - 1)
    tiles = int(before[used].max()) // step + 1
    item = torch.searchsorted(before, torch.arange(tiles, device=device) * step)
    tile = (before // step).clamp(max=tiles - 1)
    shift = before - before[item[tile]]
    shift[used] -= number[begin[used]]
    place = number + shift[used].repeat_interleave(size[used])

    # The runs by tile, relation and place.
    group = tile[used].repeat_interleave(size[used])[is_first] * num_relations + rel[is_first]
    key = torch.sort(group * most + place[is_first]).values
    group, count = torch.unique_consecutive(key // most, return_counts=True)
    pieces = -(-count // PIECE)
    end_piece = pieces.cumsum(0)
    first_piece = end_piece - pieces
    start, first = (x.repeat_interleave(pieces) for x in (count.cumsum(0) - count, first_piece))
    piece = start + PIECE * (torch.arange(start.numel(), device=device) - first)

    item = torch.cat([item, item.new_tensor([begin.numel()])])
    of_tile = torch.searchsorted(group, torch.arange(tiles + 1, device=device) * num_relations)
    starts = [
        item.clamp(max=short.numel()),
        (item - short.numel()).clamp(0, long.numel()),
        (item - short.numel() - long.numel()).clamp(min=0),
        torch.cat([first_piece, end_piece[-1:]])[of_tile],
        of_tile,
    ]
    return RunPlan(
        place.int(),
        torch.stack(starts, 1).int(),
        (key % most).int(),
        torch.cat([piece, piece.new_tensor([key.numel()])]).int(),
        torch.stack([group % num_relations, first_piece, end_piece], 1).int(),
    )


def plan_row_order(ptr: Tensor, rel: Tensor, num_relations: int) -> tuple[Tensor, ...]:
    """All nine tensors for row order: `RowPlan`, then `RunPlan`."""
    rows = plan_rows(ptr)
    return (*rows, *plan_runs(ptr, rel, num_relations, rows))
