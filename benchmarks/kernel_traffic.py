"""Memory traffic of the CUDA kernels of relation attention, counted without a GPU.

    python -m benchmarks.kernel_traffic [--rows N] [--json FILE]

The kernels of csrc/cuda run on the emulator of tests/cuda, which counts the distinct 32-byte
sectors that each warp asks for at each access. No caches: a sector is counted each time that it is
asked for. Results are compared with the least that each pass could do:

    forward   per unmasked edge a row each of Q and X, per run a row of Rel, per non-empty row Q, O
              and the log-sum-exp
    rows      the same, and per non-empty row dO, O and dQ, with the log-sum-exp's gradient
    sums      per run the share of the relation's gradient that the row pass left
    columns   per unmasked edge a row each of Q and dO and what the row pass left of the edge (a_e
              and ds_e: 16 bytes with two heads of float32); per run a row of Rel; per non-empty
              column dX written, dQ read and written

plus the bytes of ids, relations, positions and masks, over 32. A run is a stretch of unmasked edges
of one row (column) and relation. The rows of O, dQ and the shares are of float32 where Q is of a
half type, as they are in memory. What the row pass writes for others (16 bytes an edge, a row a
run) is not part of its least. With a mask that weighs more, for it is written of masked runs too:
the limits are for graphs without one. Forward asks for the row of Rel at each edge, which the
nearest cache has: these rows are left out there, of what is counted and of the least.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import _harness
from benchmarks._graphs import load
from kgrec_fast import RelGraph
from kgrec_fast.ops._common import accumulate_dtype

sys.path.insert(0, str(_harness.ROOT / "tests" / "cuda"))
import attention_calls as calls
from emulator import Traffic

SECTOR = 32
WIDTH = 64
HEADS = 2
LIMITS = {"forward": 1.15, "rows": 1.25, "columns": 1.25}
# Read by the kernels that add up the shares of relations, which the row pass is launched with.
OF_SUMS = {"run_perm", "run_piece", "run_sum", "grad_relation"}


class Counts(NamedTuple):
    """What the least traffic of a pass depends on, in one order of the edges."""

    edges: int
    kept: int
    runs: int  # with an unmasked edge
    all_runs: int
    rows: int  # not empty


class Pass(NamedTuple):
    name: str
    least: float  # sectors
    sectors: int
    read: int
    written: int
    bytes: int  # as lanes asked for them


def count_runs(ptr: Tensor, rel: Tensor, mask: Tensor | None) -> Counts:
    row = torch.repeat_interleave(torch.arange(ptr.numel() - 1), ptr.diff())
    key = row * (int(rel.max()) + 1) + rel if rel.numel() else row
    kept = key if mask is None else key[mask]
    kept_row = row if mask is None else row[mask]
    return Counts(
        key.numel(), kept.numel(), kept.unique().numel(), key.unique().numel(),
        kept_row.unique().numel(),
    )  # fmt: skip


def least_sectors(name: str, c: Counts, dtype: torch.dtype, masked: bool) -> float:
    """The formulas above, in sectors."""
    row = WIDTH * dtype.itemsize / SECTOR
    sums = accumulate_dtype(dtype)
    wide = WIDTH * sums.itemsize / SECTOR
    head = HEADS * sums.itemsize / SECTOR
    edge = (4 + 4 + masked) / SECTOR  # id, relation, mask
    if name == "forward":
        return c.kept * 2 * row + c.edges * edge + c.runs * row + c.rows * (row + wide + head)
    if name == "rows":
        per_row = 2 * row + 2 * wide + 2 * head
        return c.kept * 2 * row + c.edges * edge + c.runs * row + c.rows * per_row
    if name == "sums":
        return c.all_runs * (wide + 4 / SECTOR)
    per_edge = 2 * row + 2 * head + 4 / SECTOR
    return c.kept * per_edge + c.edges * edge + c.runs * row + c.rows * (2 * row + wide)


def take_rows(edge_index: Tensor, by: int, rows: int, num_nodes: int) -> Tensor:
    """The edges of `rows` random nodes (0: all) that have any, as heads (by 0) or tails (by 1)."""
    nodes = edge_index[by].unique()
    if not 0 < rows < nodes.numel():
        return torch.ones(edge_index.size(1), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.zeros(num_nodes, dtype=torch.bool)
    chosen[nodes[torch.randperm(nodes.numel(), generator=generator)[:rows]]] = True
    return chosen[edge_index[by]]


def compact(ids: Tensor) -> tuple[Tensor, int]:
    """The same ids without gaps, and how many there are."""
    nodes, index = ids.unique(return_inverse=True)
    return index, nodes.numel()


def summarize(name: str, least: float, traffic: Sequence[Traffic]) -> Pass:
    return Pass(
        name,
        least,
        sum(t.sectors for t in traffic),
        sum(t.sectors for t in traffic if not t.write),
        sum(t.sectors for t in traffic if t.write),
        sum(t.bytes for t in traffic),
    )


def is_of_sums(t: Traffic) -> bool:
    return t.array in OF_SUMS or (t.array == "work" and not t.write)


def measure(
    edge_index: Tensor,
    edge_type: Tensor,
    num_nodes: int,
    num_relations: int,
    rows: int,
    dtype: torch.dtype,
    masked: bool,
) -> list[tuple[Pass, Counts]]:
    """The passes over sampled rows, then those over sampled columns."""
    generator = torch.Generator().manual_seed(1)
    passes = []
    for by in (0, 1):
        kept = take_rows(edge_index, by, rows, num_nodes)
        ends, types = edge_index[:, kept], edge_type[kept]
        sampled, size = compact(ends[by])
        ends = torch.stack([sampled, ends[1]] if by == 0 else [ends[0], sampled])
        sizes = (size, num_nodes) if by == 0 else (num_nodes, size)
        graph = RelGraph.from_edges(
            ends, types, num_rows=sizes[0], num_cols=sizes[1], num_relations=num_relations
        )
        mask = torch.rand(types.numel(), generator=generator) < 0.5 if masked else None

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        problem = calls.Problem(
            graph, normal(num_nodes, WIDTH), normal(num_nodes, WIDTH),
            normal(num_relations, WIDTH), HEADS, mask,
        )  # fmt: skip
        forward: list[Traffic] = []
        out, lse = calls.attention(problem, forward if by == 0 else None)
        grad_out = normal(*out.shape)
        row_traffic: list[Traffic] = []
        column_traffic: list[Traffic] = []
        calls.attention_backward(
            problem, out, lse, grad_out, torch.zeros_like(lse), in_shared=False,
            row_traffic=row_traffic if by == 0 else None,
            column_traffic=column_traffic if by == 1 else None,
        )  # fmt: skip
        masks = None if mask is None else graph.edge_mask(mask)
        if by == 0:
            counts = count_runs(graph.rowptr, graph.rel, masks.row if masks else None)
            parts = {
                "forward": forward,
                "rows": [t for t in row_traffic if not is_of_sums(t)],
                "sums": [t for t in row_traffic if is_of_sums(t)],
            }
        else:
            colptr, _, rel, _, _ = graph.columns()
            counts = count_runs(colptr, rel, masks.col if masks else None)
            parts = {"columns": column_traffic}
        for name, traffic in parts.items():
            least = least_sectors(name, counts, dtype, masked)
            if name == "forward":
                traffic = [t for t in traffic if t.array != "relation"]
                least -= counts.runs * WIDTH * dtype.itemsize / SECTOR
            passes.append((summarize(name, least, traffic), counts))
    return passes


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4000, help="rows and columns, 0 for all")
    parser.add_argument("--json", type=Path, help="writes the figures to this file too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table; returns 1 where a pass asks for more than its limit."""
    options = _arguments().parse_args(arguments)
    edges, origin = load("alibaba-fashion")
    print(__doc__)
    print(f"{origin}; {options.rows or 'all'} rows, D = {WIDTH}, H = {HEADS}\n")
    table, figures, over = [], [], False
    for dtype in (torch.float32, torch.bfloat16):
        for masked in (False, True):
            for result, counts in measure(*edges, options.rows, dtype, masked):
                ratio = result.sectors / result.least
                limit = None if masked else LIMITS.get(result.name)
                over = over or (limit is not None and ratio > limit)
                name = str(dtype).removeprefix("torch.")
                figures.append(
                    {"dtype": name, "masked": masked, **result._asdict(), **counts._asdict()}
                )
                table.append([
                    name, "half" if masked else "none", result.name,
                    f"{result.read / counts.kept:.2f}", f"{result.written / counts.kept:.2f}",
                    f"{result.bytes / counts.kept:.0f}", f"{result.sectors / counts.rows:.1f}",
                    f"{result.least / counts.kept:.2f}", f"{ratio:.3f}", f"{limit or '-'}",
                ])  # fmt: skip
    columns = ["dtype", "masked", "pass", "read/edge", "written/edge", "bytes/edge", "a row"]
    print(_harness.table([*columns, "least/edge", "ratio", "limit"], table))
    if options.json:
        record = {"machine": _harness.machine(), "commit": _harness.commit(), "passes": figures}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
