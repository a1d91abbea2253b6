"""The graphs that are measured: the knowledge graph of Alibaba-iFashion, and generated ones."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from benchmarks._harness import ROOT
from kgrec_fast.data.kgat import load_kg_final
from kgrec_fast.data.shapes import SHAPES, EdgeList, GraphShape, generate
from kgrec_fast.graph import RelGraph

ALIBABA = "alibaba-fashion"
# 200,000 edges of 20,000 nodes: the degrees of all are 10; they are spread; one is everyone's.
DEGREES = {
    "uniform degrees": GraphShape(200_000, 20_000, 32, 10, 20_000, 10, 2.0, least_degree=10),
    "spread degrees": GraphShape(200_000, 20_000, 32, 400, 20_000, 6, 2.0),
    "power-law degrees": GraphShape(200_000, 20_000, 32, 20_000, 20_000, 2, 2.0),
}
# 100 million edges do not fit the baselines; the shape is kept at a hundredth of its size.
PRODUCT = SHAPES["product"].scaled(0.01)
GENERATED = {**SHAPES, **DEGREES, "product": PRODUCT}
GRAPHS = (ALIBABA, "news", "music", "product", *DEGREES)
QUICK_EDGES = 600


def load(name: str, quick: bool = False) -> tuple[EdgeList, str]:
    """The edges of a graph, and where they come from.

    alibaba-fashion is read from `alibaba-fashion/kg_final.txt` under the folder that the
    environment variable KGREC_FAST_DATA names (default: `../shared/data`), with inverse edges.
    Where it is absent, and for all other names, the graph is generated.

    Args:
        name: One of `GRAPHS`, or one of them, a colon and a share: "alibaba-fashion:0.01" is
            generated in its shape with a hundredth of its edges and nodes.
        quick: Some hundred edges of that shape instead.

    Raises:
        ValueError: There is no graph of that name, or the share is not in (0, 1].
    """
    known, _, share = name.partition(":")
    if known not in GRAPHS:
        raise ValueError(f"name is {name!r}, expected one of {', '.join(GRAPHS)}")
    shape = GENERATED[known]
    if quick:
        scale = QUICK_EDGES / shape.num_edges
    elif share:
        scale = float(share)
    else:
        scale = 1.0
        if known == ALIBABA and (edges := _read(known)) is not None:
            return edges, "kg_final.txt"
    return generate(shape.scaled(scale)), f"generated, {scale:.2g} of its size"


def _read(name: str) -> EdgeList | None:
    folder = Path(os.environ.get("KGREC_FAST_DATA", ROOT.parent / "shared" / "data"))
    path = folder / name / "kg_final.txt"
    if not path.is_file() and folder.name == name:
        path = folder / "kg_final.txt"
    if not path.is_file():
        print(f"{path} is absent: a graph of the same shape is generated instead")
        return None
    edge_index, edge_type = load_kg_final(path)
    return EdgeList(edge_index, edge_type, int(edge_index.max()) + 1, int(edge_type.max()) + 1)


def build(edges: EdgeList, device: torch.device | str = "cpu") -> RelGraph:
    """The graph with both orders of its edges, sorted on the device."""
    graph = RelGraph.from_edges(
        edges.edge_index.to(device),
        edges.edge_type.to(device),
        num_nodes=edges.num_nodes,
        num_relations=edges.num_relations,
    )
    graph.columns()
    return graph


def without_relations(graph: RelGraph) -> RelGraph:
    """The same edges, in the same order of the caller, with one relation for all of them."""
    types = torch.zeros_like(graph.edge_type)
    return build(EdgeList(graph.edge_index, types, graph.num_rows, 1), graph.device)
