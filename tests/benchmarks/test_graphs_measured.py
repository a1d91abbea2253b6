"""Graphs of the benchmarks: where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import _graphs
from kgrec_fast.data.shapes import measure_shape


def test_alibaba_is_read_with_inverse_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KGREC_FAST_DATA", str(tmp_path))
    small = _graphs.GENERATED["alibaba-fashion"].scaled(0.002)
    monkeypatch.setitem(_graphs.GENERATED, "alibaba-fashion", small)
    edges, source = _graphs.load("alibaba-fashion")
    assert source.startswith("generated")
    assert edges.edge_type.numel() == small.num_edges
    assert "is absent" in capsys.readouterr().out
    (tmp_path / "alibaba-fashion").mkdir()
    (tmp_path / "alibaba-fashion" / "kg_final.txt").write_text("0 0 2\n1 1 2\n0 0 2\n")
    edges, source = _graphs.load("alibaba-fashion")
    assert source == "kg_final.txt"
    assert edges.edge_index.tolist() == [[0, 1, 2, 2], [2, 2, 0, 1]]
    assert edges.edge_type.tolist() == [0, 1, 2, 3]
    assert (edges.num_nodes, edges.num_relations) == (3, 4)


@pytest.mark.parametrize(
    ("name", "median", "largest"),
    [("uniform degrees", 10, 10), ("spread degrees", 6, 400), ("power-law degrees", 2, 20_000)],
)
def test_degrees_are_those_promised(name: str, median: int, largest: int) -> None:
    shape = measure_shape(_graphs.load(name)[0])
    assert shape["edges"] == 200_000
    assert (shape["median_degree"], shape["max_degree"]) == (median, largest)


def test_a_share_of_a_graph_and_a_name_that_is_none() -> None:
    edges, source = _graphs.load("alibaba-fashion:0.01")
    assert edges.edge_type.numel() == 5583
    assert edges.num_nodes == 892
    assert source == "generated, 0.01 of its size"
    with pytest.raises(ValueError, match="name is 'moon', expected one of alibaba-fashion, "):
        _graphs.load("moon")


def test_edges_without_relations_keep_their_order() -> None:
    edges = _graphs.load("news", quick=True)[0]
    graph = _graphs.build(edges)
    plain = _graphs.without_relations(graph)
    assert plain.num_relations == 1
    assert torch.equal(plain.edge_index, graph.edge_index)
    assert torch.equal(plain.rowptr, graph.rowptr)
