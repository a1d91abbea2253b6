"""Distinct pairs of a node and a relation: against Python's sets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kgrec_fast.relation_pairs import head_runs, node_pairs

sys.path.insert(0, str(Path(__file__).parent / "ops"))
from graph_helpers import CASES


@pytest.mark.parametrize("case", [name for name in CASES if name != "hub row"])
def test_pairs_are_the_distinct_ones(case: str) -> None:
    graph = CASES[case].build()
    for pairs, nodes, size in zip(
        node_pairs(graph), (graph.head, graph.col), (graph.num_rows, graph.num_cols), strict=True
    ):
        of_edges = list(zip(nodes.tolist(), graph.rel.tolist(), strict=True))
        made = pairs.graph.edge_index.t().tolist()
        assert [tuple(p) for p in made] == sorted(set(of_edges))
        assert [tuple(made[i]) for i in pairs.of_edge.tolist()] == of_edges
        assert (pairs.graph.num_rows, pairs.graph.num_cols) == (size, graph.num_relations)
    assert node_pairs(graph) is graph.node_pairs


@pytest.mark.parametrize("case", [name for name in CASES if name != "hub row"])
def test_runs_are_numbered_by_relation(case: str) -> None:
    graph = CASES[case].build()
    runs = head_runs(graph)
    assert len(runs.counts) == graph.num_relations
    relation = torch.arange(graph.num_relations).repeat_interleave(torch.tensor(runs.counts).long())
    pairs = list(zip(relation.tolist(), runs.head.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    ends, tails = runs.graph.edge_index  # in the row order of the graph
    assert [pairs[i] for i in ends.tolist()] == list(
        zip(graph.rel.tolist(), graph.head.tolist(), strict=True)
    )
    assert torch.equal(tails, graph.col.long())
    assert head_runs(graph) is runs
