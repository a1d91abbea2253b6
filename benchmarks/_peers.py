"""What an op is measured against, and why something it should be measured against is absent."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks import _spmm
from benchmarks._measured_op import SCATTERED, Call, MeasuredOp
from benchmarks._ops import PLAIN
from kgrec_fast.graph import RelGraph

REFERENCE, COMPILED = "reference", "torch.compile(reference)"
SPARSE = "torch.sparse (CSR)"
SEGMENTS = "torch_scatter.segment_csr"
OWN_NUMBERS = "torch:"  # baselines whose names begin so draw other random numbers


@dataclass(frozen=True)
class Peer:
    """An implementation that is not ours.

    Attributes:
        name: For the report.
        call: With the leaves of the op; None where it cannot be called here.
        note: Why it cannot.
        compares: Whether it computes the same numbers.
    """

    name: str
    call: Call | None
    note: str = ""
    compares: bool = True


@dataclass(frozen=True)
class _Library:
    """A peer that some ops have, from a package that may be absent.

    Attributes:
        name: For the report.
        packages: Names it can be imported under; none for torch itself.
        make: The call, for a graph, a number of heads and the package's name.
        cuda_only: Whether it is asked for on CUDA alone.
    """

    name: str
    packages: tuple[str, ...]
    make: Callable[[RelGraph, int, str], Call]
    cuda_only: bool = False

    def peer(self, graph: RelGraph, heads: int) -> Peer:
        package = next(filter(importlib.util.find_spec, self.packages), "")
        if self.packages and not package:
            return Peer(self.name, None, f"{self.packages[0]} is not installed")
        try:
            return Peer(self.name, self.make(graph, heads, package))
        except (ImportError, OSError, RuntimeError) as error:
            return Peer(self.name, None, why(error))


def why(error: BaseException) -> str:
    """An error in one line, short enough for a table."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first}"[:160]


# -- libraries ------------------------------------------------------------------------------------


def _segment_csr(reduce: str) -> _Library:
    def make(graph: RelGraph, heads: int, package: str) -> Call:
        from torch_scatter import segment_csr

        return lambda x: segment_csr(x, graph.rowptr, reduce=reduce)

    return _Library(SEGMENTS, ("torch_scatter",), make)


def _pyg_lib_softmax(graph: RelGraph, heads: int, package: str) -> Call:
    from pyg_lib.ops import softmax_csr

    return lambda x: softmax_csr(x, graph.rowptr, 0)


def _dgl_graph(graph: RelGraph) -> object:
    import dgl

    # Messages go from tails to heads, edges in row order.
    return dgl.graph((graph.col.long(), graph.head.long()), num_nodes=graph.num_rows)


def _dgl_attention(graph: RelGraph, heads: int, package: str) -> Call:
    from dgl import ops

    edges = _dgl_graph(graph)

    def attention(query: Tensor, value: Tensor) -> Tensor:
        width = query.shape[1] // heads
        query, value = (x.view(-1, heads, width) for x in (query, value))
        score = ops.u_dot_v(edges, query, query) * width**-0.5
        out: Tensor = ops.u_mul_e_sum(edges, value, ops.edge_softmax(edges, score))
        return out.flatten(1)

    return attention


def _dgl_aggregate(graph: RelGraph, heads: int, package: str) -> Call:
    from dgl import ops

    edges, order = _dgl_graph(graph), graph.perm.long()
    return lambda x, weight: ops.u_mul_e_sum(edges, x, weight[order].unsqueeze(1))


def _dgl_edge_dot(graph: RelGraph, heads: int, package: str) -> Call:
    from dgl import ops

    edges = _dgl_graph(graph)
    return lambda row_side, col_side: ops.u_dot_v(edges, col_side, row_side).squeeze(1)


def _dgl_softmax(graph: RelGraph, heads: int, package: str) -> Call:
    from dgl import ops

    edges = _dgl_graph(graph)
    return lambda score: ops.edge_softmax(edges, score)


def _turbo_gnn_attention(graph: RelGraph, heads: int, package: str) -> Call:
    library = importlib.import_module(package)
    ends = torch.stack([graph.col.long(), graph.head.long()])
    adjacency = library.AdjacencyForwardBackwardWithNodeBuckets.from_edge_list(
        ends, num_nodes=graph.num_rows, index_dtype=torch.int32
    ).to(graph.device)

    def attention(query: Tensor, value: Tensor) -> Tensor:
        width = query.shape[1] // heads
        q, v = (x.view(-1, heads, width) for x in (query, value))
        out: Tensor = library.graph_transformer_aggr(adjacency, query, q, q, v, scale=width**-0.5)
        return out

    return attention


_PYG_LIB = _Library("pyg-lib", ("pyg_lib",), _pyg_lib_softmax)


def _dgl(make: Callable[[RelGraph, int, str], Call]) -> _Library:
    return _Library("DGL", ("dgl",), make, cuda_only=True)


def _sparse(make: Callable[[RelGraph], Call]) -> _Library:
    return _Library(SPARSE, (), lambda graph, heads, package: make(graph))


LIBRARIES: dict[str, Sequence[_Library]] = {
    "relation_attention, no relations": (
        _Library("turbo-gnn", ("turbo_gnn", "skewgnn"), _turbo_gnn_attention, cuda_only=True),
        _dgl(_dgl_attention),
    ),
    "relation_mean, no relations": (_sparse(_spmm.mean),),
    "weighted_aggregate": (_sparse(_spmm.aggregate), _dgl(_dgl_aggregate)),
    "weighted_aggregate, transposed": (_sparse(lambda g: _spmm.aggregate(g, transpose=True)),),
    "weighted_aggregate, mean of rows": (_sparse(_spmm.mean),),
    "edge_dot": (_dgl(_dgl_edge_dot),),
    "segment_sum": (_segment_csr("sum"),),
    "segment_mean": (_segment_csr("mean"),),
    "segment_softmax": (_PYG_LIB, _dgl(_dgl_softmax)),
}


def peers_of(op: MeasuredOp, graph: RelGraph, heads: int, no_scatter: str = "") -> list[Peer]:
    """Everything that an op can be measured against on the graph's device.

    Args:
        op: The op.
        graph: What it was made for.
        heads: Attention heads.
        no_scatter: Why torch_scatter + PyG cannot be used, if they cannot.
    """
    own = op.baseline.startswith(OWN_NUMBERS)
    found = [Peer(op.baseline, op.usual, compares=not own)]
    if op.baseline == PLAIN:
        found.append(Peer(SCATTERED, None, no_scatter))
    found += [
        library.peer(graph, heads)
        for library in LIBRARIES.get(op.name, ())
        if graph.device.type == "cuda" or not library.cuda_only
    ]
    found.append(Peer(REFERENCE, op.reference))
    if op.leaves:  # what has none draws, by integers that a compiler has little to fuse in
        found.append(Peer(COMPILED, _compiled(op.reference)))
    return found


def _compiled(call: Call) -> Call:
    """Compiled when it is first called: not even the compiler is imported before."""

    @cache
    def compiled() -> Call:
        from torch._functorch import config

        # Backward is timed by itself, again and again over what one forward kept.
        config.donated_buffer = False
        return torch.compile(call, dynamic=False)

    return lambda *leaves: compiled()(*leaves)
