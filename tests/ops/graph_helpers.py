"""Graphs with an awkward shape each, operands for them, and oracles that loop over edges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kgrec_fast import InteractionGraph, RelGraph


@dataclass(frozen=True)
class Case:
    """A graph as the caller gives it."""

    edge_index: Tensor
    edge_type: Tensor
    num_rows: int
    num_cols: int
    num_relations: int

    def build(self) -> RelGraph:
        return RelGraph.from_edges(
            self.edge_index,
            self.edge_type,
            num_rows=self.num_rows,
            num_cols=self.num_cols,
            num_relations=self.num_relations,
        )


def _random_case(
    num_edges: int, num_rows: int, num_cols: int, num_relations: int, seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def ids(size: int) -> Tensor:
        return torch.randint(max(size, 1), (num_edges,), generator=generator)

    edge_index = torch.stack([ids(num_rows), ids(num_cols)])
    return Case(edge_index, ids(num_relations), num_rows, num_cols, num_relations)


def _hub_row() -> Case:
    """A row and a column long enough to be shared by several parts of the work."""
    case = _random_case(30_000, 40, 50, 5)
    case.edge_index[0, :14_000] = 7
    case.edge_index[1, 10_000:24_000] = 11
    return case


def _many_relations() -> Case:
    case = _random_case(400, 30, 30, 70_000)
    case.edge_type[:3] = torch.tensor([65_535, 65_536, 69_999])
    return case


CASES = {
    "no edge": _random_case(0, 5, 5, 3),
    "no node": _random_case(0, 0, 0, 0),
    "one edge": _random_case(1, 1, 1, 1),
    "one node": _random_case(9, 1, 1, 2),
    "empty rows": _random_case(20, 60, 60, 4),
    "one relation": _random_case(200, 20, 20, 1),
    "duplicates": Case(
        torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]), torch.tensor([0, 0, 1, 1, 1]), 2, 2, 2
    ),
    "self-loops": Case(
        torch.arange(12).repeat(2, 3),
        torch.arange(36) % 3,
        num_rows=12,
        num_cols=12,
        num_relations=3,
    ),
    "bipartite": _random_case(300, 12, 31, 6),
    "wide": _random_case(300, 31, 12, 6),
    "many relations": _many_relations(),
    "hub row": _hub_row(),
}  # fmt: skip

HALF_TYPES = (torch.bfloat16, torch.float16)


def kept(case: Case, mask: Tensor | None) -> list[tuple[int, int, int, int]]:
    """(edge id, head, tail, relation) of the unmasked edges."""
    return [
        (e, int(case.edge_index[0, e]), int(case.edge_index[1, e]), int(case.edge_type[e]))
        for e in range(case.edge_type.numel())
        if mask is None or mask[e]
    ]


def loop_scores(
    query: np.ndarray, relation: np.ndarray | None, edges: list[tuple], num_heads: int
) -> np.ndarray:
    """[kept edges, heads]: sum(Q[h] * Q[t] * Rel[r]) / sqrt(d), edge by edge."""
    width = query.shape[1] // num_heads
    scores = np.zeros((len(edges), num_heads))
    for i, (_, head, tail, rel) in enumerate(edges):
        for k in range(num_heads):
            part = slice(k * width, (k + 1) * width)
            factor = 1.0 if relation is None else relation[rel, part]
            scores[i, k] = (query[head, part] * query[tail, part] * factor).sum()
    return scores / math.sqrt(width)


def loop_attention(
    case: Case,
    query: np.ndarray,
    value: np.ndarray,
    relation: np.ndarray,
    num_heads: int,
    mask: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Output and log-sum-exp of relation attention, by loops over edges in float64."""
    edges = kept(case, mask)
    scores = loop_scores(query, relation, edges, num_heads)
    width = query.shape[1] // num_heads
    total = np.zeros((case.num_rows, num_heads))
    for (_, head, _, _), score in zip(edges, scores, strict=True):
        total[head] += np.exp(score)
    out = np.zeros((case.num_rows, query.shape[1]))
    for (_, head, tail, rel), score in zip(edges, scores, strict=True):
        weight = np.repeat(np.exp(score) / total[head], width)
        out[head] += weight * value[tail] * relation[rel]
    with np.errstate(divide="ignore"):
        return out, np.log(total)


def operands(
    case: Case, width: int, dtype: torch.dtype = torch.float64, seed: int = 1, extra: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """query, value [N, D] and relation [R, D] with `extra` more rows than the graph needs."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(case.num_rows, case.num_cols) + extra
    shapes = [(rows, width), (rows, width), (case.num_relations + extra, width)]
    return tuple(  # type: ignore[return-value]
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )


def random_mask(case: Case, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(case.edge_type.numel(), generator=generator) < 0.5


def assert_as_good_as(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Our error is at most twice what plain PyTorch makes in the same dtype.

    The small term is for the dtype's own rounding of a result that PyTorch happens to hit exactly.
    """
    assert ours.dtype == theirs.dtype
    assert ours.shape == exact.shape
    if exact.numel() == 0:
        return
    scale = float(exact.abs().max())
    error = float((ours.double() - exact).abs().max())
    allowed = 2 * float((theirs.double() - exact).abs().max())
    assert error <= allowed + 4 * torch.finfo(ours.dtype).eps * scale


def assert_consistent(graph: RelGraph | InteractionGraph) -> None:
    """Pointers, orders and parts fit one another."""
    edges = graph.num_edges
    assert graph.rowptr[0] == 0
    assert graph.rowptr[-1] == edges
    rows = torch.repeat_interleave(torch.arange(graph.num_rows), graph.rowptr.diff())
    assert torch.equal(graph.head.long(), rows)
    colptr, row, rel, pos, part = graph.columns()
    cols = torch.repeat_interleave(torch.arange(graph.num_cols), colptr.diff())
    assert torch.equal(graph.col[pos].long(), cols)
    assert torch.equal(graph.head[pos], row)
    if rel.numel():
        assert torch.equal(graph.rel[pos], rel)
    assert torch.equal(pos.sort().values, torch.arange(edges, dtype=torch.int32))
    for boundaries, ptr in ((graph.part, graph.rowptr), (part, colptr)):
        assert boundaries[0, -1] == ptr.numel() - 1
        assert boundaries[1, -1] == edges
        inside, start = boundaries[1, :-1], ptr[boundaries[0, :-1]]
        assert (inside >= start).all()
