"""Peers compute what the op computes; libraries that are absent here by stand-ins of what their
documentation says.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks._ops import measured_ops
from benchmarks._peers import LIBRARIES, SPARSE, peers_of
from benchmarks._sides import Side, check_peer, operands, results
from kgrec_fast import RelGraph

HEADS = 2
# Duplicate edges (0 -> 1 twice), an empty row and an empty column.
GRAPH = RelGraph.from_edges(
    torch.tensor([[0, 2, 0, 0, 2, 3, 3], [1, 0, 2, 1, 3, 1, 1]]),
    torch.tensor([0, 0, 0, 1, 1, 2, 0]),
    num_nodes=5,
)


def softmax(score: Tensor, index: Tensor, size: int) -> Tensor:
    total = score.new_zeros(size, *score.shape[1:]).index_add(0, index, score.exp())
    return score.exp() / total[index]


class Edges:
    """dgl.graph: messages go from sources to destinations."""

    def __init__(self, ends: tuple[Tensor, Tensor], num_nodes: int) -> None:
        (self.source, self.target), self.num_nodes = ends, num_nodes

    def gather(self, message: Tensor) -> Tensor:
        return message.new_zeros(self.num_nodes, *message.shape[1:]).index_add(
            0, self.target, message
        )


class Adjacency:
    """turbo-gnn's graph: edge_index holds sources and destinations."""

    @classmethod
    def from_edge_list(cls, ends: Tensor, num_nodes: int, index_dtype: torch.dtype) -> Any:
        assert index_dtype == torch.int32
        return SimpleNamespace(to=lambda device: Edges((ends[0], ends[1]), num_nodes))


def transformer(g: Edges, x: Tensor, Q: Tensor, K: Tensor, V: Tensor, scale: float) -> Tensor:
    score = (Q[g.target] * K[g.source]).sum(-1, keepdim=True) * scale
    return g.gather(softmax(score, g.target, g.num_nodes) * V[g.source]).flatten(1)


DGL_OPS = {
    "u_dot_v": lambda g, u, v: (u[g.source] * v[g.target]).sum(-1, keepdim=True),
    "u_mul_e_sum": lambda g, u, e: g.gather(u[g.source] * e),
    "edge_softmax": lambda g, score: softmax(score, g.target, g.num_nodes),
}
STAND_INS: dict[str, dict[str, Any]] = {
    "dgl": {"graph": Edges},
    "dgl.ops": DGL_OPS,
    "turbo_gnn": {
        "AdjacencyForwardBackwardWithNodeBuckets": Adjacency,
        "graph_transformer_aggr": transformer,
    },
    "pyg_lib": {},
    "pyg_lib.ops": {
        "softmax_csr": lambda src, ptr, dim: softmax(
            src, torch.arange(ptr.numel() - 1).repeat_interleave(ptr.diff()), ptr.numel() - 1
        )
    },
    "torch_scatter": {
        "segment_csr": lambda src, ptr, reduce: torch.segment_reduce(
            src, reduce, offsets=ptr, axis=0, initial=0
        )
    },
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that can be absent, as stand-ins."""
    for name, content in STAND_INS.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], child, module, raising=False)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("op_name", "peer_name"),
    [(op, library.name) for op, libraries in LIBRARIES.items() for library in libraries],
)
def test_peers_compute_the_same(op_name: str, peer_name: str) -> None:
    (op,) = (op for op in measured_ops(GRAPH, None, 8, HEADS) if op.name == op_name)
    (library,) = (lib for lib in LIBRARIES[op_name] if lib.name == peer_name)
    peer = library.peer(GRAPH, HEADS)
    assert peer.call is not None, peer.note
    leaves = operands(op, torch.device("cpu"), torch.float64)
    expected = results(Side(op.reference, leaves), differentiable=True)
    found = results(Side(peer.call, leaves), differentiable=True)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    check_peer(Side(peer.call, leaves), expected, differentiable=True)


def test_what_is_absent_says_so_and_what_is_for_cuda_is_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    every = {op.name: op for op in measured_ops(GRAPH, None, 8, HEADS)}

    def peers(name: str) -> dict[str, str]:
        return {p.name: p.note for p in peers_of(every[name], GRAPH, HEADS) if not p.call}

    assert peers("segment_softmax")["pyg-lib"] == "pyg_lib is not installed"
    assert "DGL" not in peers("segment_softmax")
    assert SPARSE not in peers("weighted_aggregate")
    on_cuda = [
        library.peer(GRAPH, HEADS) for library in LIBRARIES["relation_attention, no relations"]
    ]
    assert [p.note for p in on_cuda] == ["turbo_gnn is not installed", "dgl is not installed"]
