"""The plan of the work, followed by kernels: every edge counts once, for its row and relation."""

from __future__ import annotations

import pytest
import torch
from emulator import ORDERS, run
from graph_args import row_arguments, run_arguments
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.cuda_plan import CHUNK


def graph_of(num_edges: int, num_rows: int, num_relations: int, hub: int = 0) -> RelGraph:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(num_rows, (2, num_edges), generator=generator)
    edges[0, :hub] = num_rows // 2
    types = torch.randint(num_relations, (num_edges,), generator=generator)
    return RelGraph.from_edges(edges, types, num_nodes=num_rows, num_relations=num_relations)


GRAPHS = {
    "one edge": graph_of(1, 1, 1),
    "few edges": graph_of(60, 90, 5),
    "hub": graph_of(6000, 50, 7, hub=3 * CHUNK + 1),
    "long rows": graph_of(3000, 9, 40),
    "tiles": graph_of(9000, 700, 3000, hub=2 * CHUNK),
}


def walk(graph: RelGraph, x: Tensor, mask: Tensor | None, **how: object) -> tuple[Tensor, Tensor]:
    row_sum = torch.full((graph.num_rows,), -1)
    relation_sum = torch.zeros(graph.num_relations, dtype=torch.int64)
    run(
        "plan_walk",
        **row_arguments(graph, mask, relations=False),
        **run_arguments(graph, 2 * CHUNK),
        x=x,
        row_sum=row_sum,
        relation_sum=relation_sum,
        **how,
    )
    return row_sum, relation_sum


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_every_edge_counts_once(name: str, masked: bool, order: str, seed: int) -> None:
    graph = GRAPHS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(1000, (graph.num_edges,), generator=generator)
    mask = torch.rand(graph.num_edges, generator=generator) < 0.5 if masked else None
    row_sum, relation_sum = walk(graph, x, mask, order=order, seed=seed, max_blocks=2)
    kept = x if mask is None else x * mask[graph.perm.long()]
    for got, index in ((row_sum, graph.head), (relation_sum, graph.rel)):
        expected = torch.zeros_like(got).index_add(0, index.long(), kept)
        # Rows without edges get their zero, too.
        assert torch.equal(got, expected)


def test_there_are_tiles() -> None:
    assert run_arguments(GRAPHS["tiles"], 2 * CHUNK)["run_tile"].size(0) > 4
