"""Relation attention from (X, W, Rel), projections included, against torch_scatter + PyG.

Both sides get the same embeddings, the graph already built. Values and gradients are compared with
a float64 reference first (with the baseline where that would not fit). Peak memory is measured in a
fresh process a side. The floor is gathering what the passes over the edges have to gather.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baselines
from benchmarks._harness import ROOT, Row, check_close, finish, interleave, parser, start
from benchmarks._memory import peaks_of_sides
from kgrec_fast import ops
from kgrec_fast.data.kgat import load_kg_final
from kgrec_fast.data.shapes import EdgeList, shaped_graph
from kgrec_fast.graph import RelGraph

GRAPHS = ("alibaba-fashion", "news", "music", "product")
DIRECTIONS = ("forward", "forward+backward")
WIDTH, HEADS = 64, 2
# 100 million edges do not fit the baseline; the shape is kept at a fiftieth of its size.
PRODUCT_SCALE = 0.02
QUICK_SCALE = 0.002
# The float64 reference takes some 10 kB an edge.
MAX_ORACLE_EDGES = 600_000


def load(name: str, quick: bool = False) -> tuple[EdgeList, str]:
    """The edges of a graph, and where they come from.

    alibaba-fashion is read from `alibaba-fashion/kg_final.txt` under the folder that the
    environment variable KGREC_FAST_DATA names (default: `../shared/data`), with inverse edges.
    Where it is absent, and for all other names, the graph is generated.
    """
    folder = Path(os.environ.get("KGREC_FAST_DATA", ROOT.parent / "shared" / "data"))
    path = folder / name / "kg_final.txt"
    if not path.is_file() and folder.name == name:
        path = folder / "kg_final.txt"
    if name == "alibaba-fashion" and not quick:
        if path.is_file():
            edge_index, edge_type = load_kg_final(path)
            nodes, relations = int(edge_index.max()) + 1, int(edge_type.max()) + 1
            return EdgeList(edge_index, edge_type, nodes, relations), "kg_final.txt"
        print(f"{path} is absent: a graph of the same shape is generated instead")
    scale = QUICK_SCALE if quick else PRODUCT_SCALE if name == "product" else 1.0
    if quick and name == "product":
        scale /= 100
    return shaped_graph(name, scale), f"generated, scale {scale:g}"


@dataclass(frozen=True)
class Problem:
    """Leaf tensors, the gradient that comes in, and the edges."""

    x: Tensor
    w: Tensor
    relation: Tensor
    grad: Tensor
    edges: EdgeList

    @classmethod
    def make(cls, edges: EdgeList, dtype: torch.dtype = torch.float32, seed: int = 0) -> Problem:
        """Random values of a size at which the softmax is neither flat nor one-hot."""
        generator = torch.Generator().manual_seed(seed)

        def normal(rows: int, scale: float) -> Tensor:
            return scale * torch.randn(rows, WIDTH, generator=generator).to(dtype)

        x, relation = normal(edges.num_nodes, 1.0), normal(edges.num_relations, 1.0)
        w, grad = normal(WIDTH, WIDTH**-0.5), normal(edges.num_nodes, 1.0)
        return cls(x, w, relation, grad, edges)

    def double(self) -> Problem:
        """The same values in float64."""
        x, w, relation, grad = (
            t.detach().double() for t in (self.x, self.w, self.relation, self.grad)
        )
        return Problem(x, w, relation, grad, self.edges)

    def leaves(self) -> list[Tensor]:
        return [t.requires_grad_() for t in (self.x, self.w, self.relation)]


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(graph: RelGraph) -> Attention:
    """The fused op behind one projection of all nodes."""

    def attention(x: Tensor, w: Tensor, relation: Tensor) -> Tensor:
        return cast(Tensor, ops.projected_attention(x, w, relation, graph, HEADS))

    return attention


def theirs(edges: EdgeList, baseline: baselines.Baseline) -> Attention:
    """The usual composition on the edge list."""
    return partial(
        baselines.relation_attention,
        edge_index=edges.edge_index,
        edge_type=edges.edge_type,
        num_heads=HEADS,
        functions=baseline.functions,
    )


def call(attention: Attention, problem: Problem, direction: str) -> list[Tensor]:
    """One measured call: the output, and after a backward pass the three gradients."""
    if direction == "forward":
        with torch.no_grad():
            return [attention(problem.x, problem.w, problem.relation)]
    leaves = problem.leaves()
    out = attention(*leaves)
    return [out, *torch.autograd.grad(out, leaves, problem.grad)]


def build(edges: EdgeList) -> RelGraph:
    """The graph with both orders of its edges."""
    graph = RelGraph.from_edges(
        edges.edge_index,
        edges.edge_type,
        num_nodes=edges.num_nodes,
        num_relations=edges.num_relations,
    )
    graph.columns()
    return graph


def check(problem: Problem, graph: RelGraph, baseline: baselines.Baseline) -> str:
    """Values and gradients of both sides; says what they were compared with."""
    sides = ours(graph), theirs(problem.edges, baseline)
    mine, other = (call(side, problem, DIRECTIONS[1]) for side in sides)
    oracle: Sequence[Tensor | None] = [None] * len(mine)
    if graph.num_edges <= MAX_ORACLE_EDGES:
        double = problem.double()

        def reference(x: Tensor, w: Tensor, relation: Tensor) -> Tensor:
            out = ops.relation_attention_reference(x @ w, x, relation, graph, HEADS)
            return cast(Tensor, out)

        oracle = call(reference, double, DIRECTIONS[1])
    names = ("output", "gradient of X", "gradient of W", "gradient of Rel")
    worst = max(map(check_close, names, mine, other, oracle))
    against = "the baseline" if oracle[0] is None else "the float64 reference"
    return f"largest difference from {against}: {worst:.1e} of the largest value"


def prepare_call(
    side: str, name: str, direction: str, baseline: str, quick: str
) -> Callable[[], object]:
    """What `benchmarks._memory` measures: one call of one side ("ours" or "theirs")."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    small = shaped_graph("news", QUICK_SCALE)
    edges = load(name, quick == "quick")[0]
    calls = []
    for each in (small, edges):
        attention = (
            ours(build(each)) if side == "ours" else theirs(each, baselines.find_baseline(baseline))
        )
        calls.append(partial(call, attention, Problem.make(each), direction))
    calls[0]()  # thread pools and lazily loaded libraries are nobody's working memory
    return calls[1]


def graph_bytes(graph: RelGraph) -> int:
    """Bytes of a graph with both orders of its edges."""
    return sum(t.numel() * t.element_size() for t in graph.tensors(columns=True))


FLOORS = (("gather floor", "two matrices"), ("projection", "forward"), ("projection", "backward"))


def floors(problem: Problem, graph: RelGraph) -> list[Callable[[], object]]:
    """What no implementation can leave out, as named in `FLOORS`.

    The rows of two matrices at every edge's tail, 256 bytes each, in the order in which a pass over
    rows needs them, added up by head by ``embedding_bag``, one matrix after the other (both at once
    takes up to three times as long where a cache holds one of them, but not both): the memory
    traffic of two passes and next to no arithmetic. Then X W, and the two products of its gradient.
    """
    x, weight, grad = problem.x.detach(), problem.w.detach(), problem.grad
    starts, columns = graph.rowptr[:-1].int(), graph.col

    def gather() -> list[Tensor]:
        return [F.embedding_bag(columns, m, starts, mode="sum") for m in (x, grad)]

    def project() -> Tensor:
        return x @ weight

    def project_backward() -> tuple[Tensor, Tensor]:
        return grad @ weight.t(), x.t() @ grad

    return [gather, project, project_backward]


def measure(
    name: str, baseline: baselines.Baseline, quick: bool, rounds: int, budget: float, memory: bool
) -> list[Row]:
    """All rows of one graph."""
    edges, source = load(name, quick)
    begin = time.perf_counter()
    graph = build(edges)
    built = time.perf_counter() - begin
    problem = Problem.make(edges)
    shape = (
        f"{graph.num_edges:,} edges, {graph.num_rows:,} nodes, {graph.num_relations:,} relations"
    )
    print(f"{name} ({source}): {shape}")
    print(f"  graph built in {built * 1e3:.0f} ms, {graph_bytes(graph) / 1e6:.1f} MB, apart")
    print(f"  {check(problem, graph, baseline)}")
    facts = {
        "source": source,
        "edges": graph.num_edges,
        "nodes": graph.num_rows,
        "relations": graph.num_relations,
        "graph_seconds": built,
        "graph_bytes": graph_bytes(graph),
    }
    rows = []
    sides = ours(graph), theirs(edges, baseline)
    for direction in DIRECTIONS:
        measured: list[Callable[[], object]] = [
            partial(call, side, problem, direction) for side in sides
        ]
        if direction == DIRECTIONS[-1]:
            measured += floors(problem, graph)
        timings = interleave(measured, rounds=rounds, budget=budget)
        peaks: tuple[int | None, int | None] = (None, None)
        if memory:
            peaks = peaks_of_sides(
                "benchmarks.relation_attention",
                "prepare_call",
                *(name, direction, baseline.name, "quick" if quick else "full"),
            )
        rows.append(
            Row.of(
                *timings[:2],
                op="relation_attention",
                graph=name,
                direction=direction,
                baseline=baseline.name,
                memory=peaks,
                extra=facts,
            )
        )
        for timing, (op, part) in zip(timings[2:], FLOORS, strict=False):
            rows.append(Row.of(timing, op=op, graph=name, direction=part))
    return rows


def remainder(rows: Sequence[Row]) -> str:
    """How our time on each graph divides into floors and the rest.

    Forward gathers Q and X: one floor. Backward gathers X and Q by rows, Q and dO by columns: two.
    """
    lines = []
    for name in dict.fromkeys(row.graph for row in rows):
        ms = {(r.op, r.direction): r.seconds * 1e3 for r in rows if r.graph == name}
        floor = ms["gather floor", "two matrices"]
        forward, both = (ms["relation_attention", direction] for direction in DIRECTIONS)
        project, project_back = ms["projection", "forward"], ms["projection", "backward"]
        for what, total, floors, products in (
            ("forward", forward, 1, project),
            ("backward", both - forward, 2, project_back),
        ):
            rest = total - floors * floor - products
            lines.append(
                f"{name} {what}: {total:.1f} ms = {floors} x {floor:.1f} gathering + "
                f"{products:.1f} projections + {rest:.1f} arithmetic, output and the rest"
            )
    return "\n".join(lines)


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    result.add_argument(
        "--baseline", default="auto", help=f"auto, {', '.join(baselines.BASELINES)}"
    )
    result.add_argument("--rounds", type=int, default=15, help="calls of each side")
    result.add_argument("--budget", type=float, default=45.0, help="seconds for each row")
    result.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = _arguments().parse_args(arguments)
    start(options)
    baseline = baselines.find_baseline(options.baseline)
    rows: list[Row] = []
    for name in options.graphs:
        rows += measure(
            name,
            baseline,
            options.quick,
            3 if options.quick else options.rounds,
            options.budget,
            not options.no_memory,
        )
    finish(options, rows)
    print("\n" + remainder(rows))


if __name__ == "__main__":
    main()
