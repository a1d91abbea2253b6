"""Graphs of prescribed shape, for benchmarks: how many edges, how unequal the degrees, how long the
runs of equal (head, relation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]

TAIL_SKEW = 0.4  # of tails that are not mirrored: hubs, but none above the largest heads


class EdgeList(NamedTuple):
    """`edge_index` int64 [2, E] (head, tail), `edge_type` int64 [E], and the sizes."""

    edge_index: Tensor
    edge_type: Tensor
    num_nodes: int
    num_relations: int


@dataclass(frozen=True)
class GraphShape:
    """What a generated graph has to look like. Degrees are numbers of edges by head.

    Attributes:
        num_edges, num_nodes, num_relations: sizes; every relation id lies below num_relations.
        max_degree: largest degree, met exactly.
        active_nodes: nodes with an edge of their own; the others are tails only.
        active_median: median degree among them, met to within one where num_edges allows it.
        edges_per_run: edges a run of equal (head, relation), on average.
        least_degree: smallest degree of an active node.
        relation_skew: the first relation of a node is r with weight (r + 1) ** -skew.
        mirrored_tails: a node is as often a tail as it is a head, as in graphs with inverse edges;
            otherwise tails are drawn by a power law over all nodes.
    """

    num_edges: int
    num_nodes: int
    num_relations: int
    max_degree: int
    active_nodes: int
    active_median: float
    edges_per_run: float
    least_degree: int = 1
    relation_skew: float = 1.0
    mirrored_tails: bool = True

    def __post_init__(self) -> None:
        for name in ("num_edges", "num_nodes", "num_relations", "max_degree", "active_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.active_nodes > self.num_nodes:
            raise ValueError(
                f"active_nodes: expected at most num_nodes = {self.num_nodes}, "
                f"got {self.active_nodes}"
            )
        if not 1 <= self.least_degree <= self.active_median <= self.max_degree:
            raise ValueError(
                "active_median: expected 1 <= least_degree <= active_median <= max_degree, got "
                f"{self.least_degree}, {self.active_median}, {self.max_degree}"
            )
        if self.edges_per_run < 1:
            raise ValueError(f"edges_per_run: expected at least 1, got {self.edges_per_run}")

    def scaled(self, scale: float) -> GraphShape:
        """The same shape with `scale` times the edges, nodes and largest degree.

        The largest degree stays at 16 times the mean or above, where it was, since a small graph
        could not hold its edges otherwise.
        """
        if not 0 < scale <= 1:
            raise ValueError(f"scale: expected a number in (0, 1], got {scale}")
        least = int(np.ceil(16 * self.num_edges / self.active_nodes))
        return replace(
            self,
            num_edges=max(1, round(scale * self.num_edges)),
            num_nodes=max(1, round(scale * self.num_nodes)),
            active_nodes=max(1, round(scale * self.active_nodes)),
            max_degree=max(round(scale * self.max_degree), min(self.max_degree, least)),
        )


SHAPES = {
    "alibaba-fashion": GraphShape(
        558_310, 89_196, 102, 2_518, 89_196, 4, 5.2, least_degree=3, relation_skew=2.5
    ),
    "news": GraphShape(
        297_058, 49_545, 1_024, 464, 20_640, 8, 1.4, relation_skew=0.7, mirrored_tails=False
    ),
    "music": GraphShape(929_134, 58_266, 18, 20_000, 58_266, 8, 6.0),
    "product": GraphShape(
        100_000_000, 20_000_000, 5_000, 1_000_000, 20_000_000, 5, 1.25, relation_skew=0.7
    ),
}
"""The shapes that `shaped_graph` knows, by name."""


def _bisect(low: float, high: float, falling: Callable[[float], float], target: float) -> float:
    """Where a falling function meets the target; either end where it does not."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if falling(middle) > target else (low, middle)
    return 0.5 * (low + high)


def _degree_sequence(shape: GraphShape) -> IntArray:
    """Degrees of the active nodes, falling: [active_nodes], their sum num_edges.

    The logarithm of the degree is a power of the logarithm of the rank between the largest and the
    median, so that one exponent sets the weight of the tail, and with it the sum.
    """
    n, half = shape.active_nodes, (shape.active_nodes + 1) // 2
    middle, peak = np.log(shape.active_median), np.log(shape.max_degree)
    x = 1.0 - np.log(np.arange(1, half + 1)) / np.log(max(half, 2))
    lower = np.linspace(shape.active_median, shape.least_degree, n - half + 1)[1:]

    def degrees(exponent: float) -> NDArray[np.float64]:
        return np.concatenate([np.exp(middle + (peak - middle) * x**exponent), lower])

    exponent = _bisect(0.05, 50.0, lambda e: degrees(e).sum(), shape.num_edges)
    result = np.maximum(np.rint(degrees(exponent)).astype(np.int64), shape.least_degree)
    return _meet_sum(result, shape)


def _meet_sum(degree: IntArray, shape: GraphShape) -> IntArray:
    """Moves what rounding left over onto nodes between the largest and the lower half, evenly."""
    while (gap := shape.num_edges - int(degree.sum())) != 0:
        free = (degree < shape.max_degree) if gap > 0 else (degree > shape.least_degree)
        free[0] = False  # keeps the largest degree as asked
        places = np.flatnonzero(free)
        if not places.size:
            raise ValueError(
                f"num_edges: {shape.num_edges} edges do not fit {shape.active_nodes} nodes "
                f"of degree {shape.least_degree} to {shape.max_degree}"
            )
        # Spread by stride, so that no part of the distribution takes it all.
        count = min(abs(gap), len(places))
        degree[places[np.arange(count) * len(places) // count]] += 1 if gap > 0 else -1
    return degree


def _runs_per_node(degree: IntArray, shape: GraphShape, rng: np.random.Generator) -> IntArray:
    """How many different relations each active node has; at most its degree."""
    limit = np.minimum(degree, shape.num_relations)
    noise = rng.random(len(degree))

    def runs(share: float) -> IntArray:
        return np.minimum(1 + np.floor(share * (degree - 1) + noise).astype(np.int64), limit)

    # Rising in the share, hence falling in its negative.
    share = -_bisect(-1.0, 0.0, lambda s: runs(-s).sum(), shape.num_edges / shape.edges_per_run)
    return runs(share)


def generate(shape: GraphShape, seed: int = 0) -> EdgeList:
    """Generates a graph of the given shape.

    Nodes, edges and relations stand in random order. Relations of one node are distinct and follow
    each other (modulo num_relations) from a first one drawn by a power law.

    Args:
        shape: see `GraphShape`.
        seed: the same seed gives the same graph.

    Raises:
        ValueError: if the shape cannot be met, for instance more edges than max_degree allows.

    Complexity: O(E) time and memory beside random permutations; no loop over nodes.
    """
    if seed < 0:
        raise ValueError(f"seed: expected a number that is not negative, got {seed}")
    rng = np.random.default_rng(seed)
    degree = _degree_sequence(shape)
    runs = _runs_per_node(degree, shape, rng)
    node = rng.permutation(shape.num_nodes)[: shape.active_nodes]

    # One edge for each run of a node, then further edges in runs drawn at random.
    owner = np.repeat(np.arange(len(degree)), degree)
    place = np.arange(shape.num_edges) - np.repeat(np.cumsum(degree) - degree, degree)
    extra = place >= runs[owner]
    place[extra] = np.floor(rng.random(int(extra.sum())) * runs[owner[extra]]).astype(np.int64)
    first = _power_law(rng, shape.num_relations, shape.relation_skew, len(degree))
    kind = (first[owner] + place) % shape.num_relations

    head = node[owner]
    if shape.mirrored_tails:
        tail = rng.permutation(head)
    else:
        tail = rng.permutation(shape.num_nodes)[
            _power_law(rng, shape.num_nodes, TAIL_SKEW, len(head))
        ]
    order = rng.permutation(len(head))
    return EdgeList(
        torch.from_numpy(np.stack([head[order], tail[order]]).astype(np.int64)),
        torch.from_numpy(rng.permutation(shape.num_relations)[kind[order]].astype(np.int64)),
        shape.num_nodes,
        shape.num_relations,
    )


def _power_law(rng: np.random.Generator, n: int, skew: float, count: int) -> IntArray:
    """`count` draws from 0 .. n - 1 with weights (k + 1) ** -skew."""
    bounds = np.cumsum(np.arange(1.0, n + 1) ** -skew)
    draws = np.searchsorted(bounds, rng.random(count) * bounds[-1], side="right")
    ranks: IntArray = np.minimum(draws, n - 1)
    return ranks


def shaped_graph(name: str, scale: float = 1.0, seed: int = 0) -> EdgeList:
    """Generates one of the named shapes: "alibaba-fashion", "news", "music" or "product".

    `scale` below 1 shrinks edges, nodes and the largest degree alike; relations stay as they are.
    "product" at full scale has 100 million edges: 2.4 GB, and a few times that on the way.

    Raises:
        ValueError: the name is unknown, or `scale` is not in (0, 1].
    """
    if name not in SHAPES:
        raise ValueError(f"name: expected one of {', '.join(SHAPES)}, got {name!r}")
    return generate(SHAPES[name].scaled(scale), seed)


def measure_shape(edges: EdgeList) -> dict[str, int | float]:
    """Measures what `GraphShape` prescribes, by one sort of the edges."""
    head, kind = edges.edge_index[0], edges.edge_type
    degree = torch.bincount(head, minlength=edges.num_nodes)
    runs = torch.unique(head * edges.num_relations + kind).numel()
    return {
        "edges": head.numel(),
        "nodes": edges.num_nodes,
        "relations": edges.num_relations,
        "relations_used": torch.unique(kind).numel(),
        "nodes_without_edges": int((degree == 0).sum()),
        "median_degree": float(np.median(degree.numpy())),
        "p99_degree": float(np.percentile(degree.numpy(), 99)),
        "max_degree": int(degree.max()),
        "runs": runs,
        "edges_per_run": head.numel() / runs,
    }
