"""The least that an op has to move, in bytes and in seconds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kgrec_fast.graph import RelGraph

LEGEND = {
    "E": "edges",
    "N": "rows: nodes that may be heads",
    "n": "rows with an edge",
    "M": "columns: nodes that may be tails",
    "K": "runs of edges with equal head and relation, in row order",
    "L": "runs of edges with equal tail and relation, in column order",
    "R": "relations",
    "D": "width of a row",
    "H": "attention heads",
    "s": "bytes of an element",
    "a": "bytes of a number that is summed up (4; 8 for float64)",
}


def names_of(graph: RelGraph, dtype: torch.dtype, width: int, heads: int) -> dict[str, int]:
    """The value of every name of `LEGEND`."""

    def runs(ids: Tensor, relations: Tensor) -> int:
        if ids.numel() == 0:
            return 0
        return 1 + int(((ids.diff() != 0) | (relations.diff() != 0)).sum())

    colptr, _, col_rel, _, _ = graph.columns()
    tails = torch.arange(graph.num_cols, device=graph.device).repeat_interleave(colptr.diff())
    return {
        "E": graph.num_edges,
        "N": graph.num_rows,
        "n": int((graph.rowptr.diff() > 0).sum()),
        "M": graph.num_cols,
        "K": runs(graph.head, graph.rel),
        "L": runs(tails, col_rel),
        "R": graph.num_relations,
        "D": width,
        "H": heads,
        "s": dtype.itemsize,
        "a": 8 if dtype == torch.float64 else 4,
    }


def least_bytes(formula: str, names: Mapping[str, int]) -> int:
    """The value of a formula over the names of `LEGEND`."""
    return int(eval(formula, {"__builtins__": {}}, dict(names)))


def floor_seconds(formula: str, names: Mapping[str, int], bytes_per_second: float) -> float:
    """The traffic floor: the least time in which a machine could move what an op has to move.

    That is the value of the op's formula in bytes, over the bandwidth that a copy of a buffer too
    large for any cache reached in the same run, with the same threads, bytes read and written
    counted both. The formula gives no credit for caches: every row that an edge names is read once
    for that edge. What is read or written once a row, a run or a relation is counted as often;
    arithmetic, allocation and calls cost nothing. "forward+backward" is the sum of the two, for
    what backward reads again it reads again. So an op may come out faster than its floor where its
    operands fit a cache: a share above 1 says that they did.
    """
    return least_bytes(formula, names) / bytes_per_second
