"""Generated graphs have the shape asked for; measured here with plain Python counting."""

from __future__ import annotations

from collections import Counter
from statistics import median

import pytest
import torch

from kgrec_fast.data import SHAPES, EdgeList, GraphShape, measure_shape, shaped_graph
from kgrec_fast.data.shapes import generate


def measure(graph: EdgeList) -> dict[str, float]:
    heads = graph.edge_index[0].tolist()
    kinds = graph.edge_type.tolist()
    degree = Counter(heads)
    degrees = [degree[node] for node in range(graph.num_nodes)]
    return {
        "edges": len(heads),
        "nodes": graph.num_nodes,
        "relations": graph.num_relations,
        "relations_used": len(set(kinds)),
        "nodes_without_edges": degrees.count(0),
        "median_degree": median(degrees),
        "max_degree": max(degrees),
        "runs": len(set(zip(heads, kinds, strict=True))),
    }


@pytest.mark.parametrize(
    ("name", "edges", "nodes", "relations", "middle", "largest", "edges_per_run"),
    [
        ("alibaba-fashion", 558_310, 89_196, 102, 4, 2_518, 5.2),
        ("news", 297_058, 49_545, 1_024, 0, 464, 1.4),
        ("music", 929_134, 58_266, 18, 8, 20_000, 6.0),
    ],
)
def test_named_shapes(
    name: str,
    edges: int,
    nodes: int,
    relations: int,
    middle: int,
    largest: int,
    edges_per_run: float,
) -> None:
    graph = shaped_graph(name)
    found = measure(graph)
    assert (found["edges"], found["nodes"], found["relations"]) == (edges, nodes, relations)
    assert (found["median_degree"], found["max_degree"]) == (middle, largest)
    assert found["nodes_without_edges"] == (28_905 if name == "news" else 0)
    assert found["edges"] / found["runs"] == pytest.approx(edges_per_run, rel=0.01)
    assert found["relations_used"] >= 0.9 * relations
    reported = measure_shape(graph)
    assert {key: reported[key] for key in found} == found


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("scale", [0.002, 0.01])
def test_scaled(name: str, scale: float) -> None:
    whole, found = SHAPES[name], measure(shaped_graph(name, scale, seed=1))
    assert found["edges"] == round(scale * whole.num_edges)
    assert found["nodes"] == round(scale * whole.num_nodes)
    assert found["max_degree"] >= min(whole.max_degree, round(scale * whole.max_degree))
    assert found["edges"] / found["runs"] == pytest.approx(whole.edges_per_run, rel=0.03)
    if whole.active_nodes == whole.num_nodes:
        assert found["median_degree"] == pytest.approx(whole.active_median, abs=1)


@pytest.mark.parametrize("edges", [2000, 2100, 2400, 3000, 3003, 3010, 5000])
@pytest.mark.parametrize("middle", [3, 3.5])
def test_sizes_are_exact(edges: int, middle: float) -> None:
    """Whatever is left over by rounding the degrees, too many or too few."""
    found = measure(generate(GraphShape(edges, 600, 9, 200, 500, middle, 2.0)))
    assert found["edges"] == edges
    assert found["max_degree"] == 200
    assert found["nodes_without_edges"] == 100
    assert found["runs"] == pytest.approx(edges / 2, rel=0.03)


def test_product_keeps_its_hub() -> None:
    found = measure(shaped_graph("product", 0.005))
    assert found["max_degree"] == 5_000
    assert found["median_degree"] == 5
    assert found["relations_used"] >= 4_900


def test_tails() -> None:
    music = shaped_graph("music", 0.05)
    head, tail = music.edge_index
    assert torch.equal(torch.bincount(head), torch.bincount(tail))
    news = shaped_graph("news")
    assert torch.bincount(news.edge_index[1]).max() < 464
    alone = torch.bincount(news.edge_index[0], minlength=news.num_nodes) == 0
    assert alone[news.edge_index[1]].float().mean() > 0.5  # such nodes are tails all the same


def test_ids_are_in_range_and_edges_unsorted() -> None:
    graph = shaped_graph("news", 0.1, seed=3)
    assert graph.edge_index.dtype == graph.edge_type.dtype == torch.int64
    assert graph.edge_index.min() >= 0
    assert graph.edge_index.max() < graph.num_nodes
    assert graph.edge_type.min() >= 0
    assert graph.edge_type.max() < graph.num_relations
    assert (graph.edge_index[0].diff() < 0).any()


def test_seed() -> None:
    one, same, other = (shaped_graph("music", 0.01, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.edge_index, same.edge_index)
    assert torch.equal(one.edge_type, same.edge_type)
    assert not torch.equal(one.edge_index, other.edge_index)


def test_one_node_and_equal_degrees() -> None:
    single = generate(GraphShape(5, 1, 2, 5, 1, 5, 2.5, least_degree=5))
    assert single.edge_index.tolist() == [[0] * 5, [0] * 5]
    even = generate(GraphShape(40, 10, 3, 4, 10, 4, 2.0, least_degree=4))
    assert torch.bincount(even.edge_index[0]).tolist() == [4] * 10


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_edges": 0}, "num_edges: expected a positive number, got 0"),
        ({"active_nodes": 11}, "active_nodes: expected at most num_nodes = 10, got 11"),
        ({"active_median": 9}, "active_median: expected"),
        ({"edges_per_run": 0.5}, "edges_per_run: expected at least 1, got 0.5"),
        ({"num_edges": 1000}, "num_edges: 1000 edges do not fit 10 nodes of degree 1 to 8"),
    ],
)
def test_bad_shape(change: dict, reason: str) -> None:
    good = {
        "num_edges": 40,
        "num_nodes": 10,
        "num_relations": 3,
        "max_degree": 8,
        "active_nodes": 10,
        "active_median": 4,
        "edges_per_run": 2.0,
    }
    assert generate(GraphShape(**good)).edge_index.shape == (2, 40)
    with pytest.raises(ValueError, match=reason):
        generate(GraphShape(**{**good, **change}))


def test_bad_name_scale_and_seed() -> None:
    with pytest.raises(ValueError, match="name: expected one of alibaba-fashion, news, music"):
        shaped_graph("books")
    with pytest.raises(ValueError, match=r"scale: expected a number in \(0, 1\], got 2"):
        shaped_graph("news", 2)
    with pytest.raises(ValueError, match="seed: expected"):
        shaped_graph("news", 0.01, seed=-1)
