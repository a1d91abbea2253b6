"""The ops that `gpu_kernels` measures: operands, the usual composition, the least traffic.

The least number of bytes gives no credit for caches: every row that an edge names is read once for
that edge. What is read or written once a row, a run or a relation is counted as often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baselines
from benchmarks._gpu_draws import draws
from benchmarks._measured_op import MeasuredOp, measured
from kgrec_fast.graph import RelGraph
from kgrec_fast.models.reference import EdgeFunctions

WIDTH, HEADS = 64, 2
HEAD_SHAPE = (-1, HEADS, WIDTH // HEADS)
DROPOUT = 0.1
L2_WEIGHT = 1e-5
SLOTS = 512  # masked edges of a step
RANKED_USERS, BEST_ITEMS = 64, 20
REFERENCE = "reference ops (torch)"

LEGEND = {
    "E": "edges",
    "N": "rows: nodes that may be heads",
    "n": "rows with an edge",
    "M": "columns: nodes that may be tails",
    "K": "runs of edges with equal head and relation, in row order",
    "L": "runs of edges with equal tail and relation, in column order",
    "R": "relations",
    "D": "width of a row",
    "H": "attention heads",
    "s": "bytes of an element",
    "a": "bytes of a number that is summed up (4; 8 for float64)",
}


def names_of(graph: RelGraph, dtype: torch.dtype) -> dict[str, int]:
    """The value of every name of `LEGEND`."""

    def runs(ids: Tensor, relations: Tensor) -> int:
        if ids.numel() == 0:
            return 0
        return 1 + int(((ids.diff() != 0) | (relations.diff() != 0)).sum())

    colptr, _, col_rel, _, _ = graph.columns()
    tails = torch.arange(graph.num_cols, device=graph.device).repeat_interleave(colptr.diff())
    return {
        "E": graph.num_edges,
        "N": graph.num_rows,
        "n": int((graph.rowptr.diff() > 0).sum()),
        "M": graph.num_cols,
        "K": runs(graph.head, graph.rel),
        "L": runs(tails, col_rel),
        "R": graph.num_relations,
        "D": WIDTH,
        "H": HEADS,
        "s": dtype.itemsize,
        "a": 8 if dtype == torch.float64 else 4,
    }


def least_bytes(formula: str, names: Mapping[str, int]) -> int:
    """The value of a formula over the names of `LEGEND`."""
    return int(eval(formula, {"__builtins__": {}}, dict(names)))


def measured_ops(graph: RelGraph, functions: EdgeFunctions | None) -> list[MeasuredOp]:
    """Every op on a graph with as many rows as columns, D = 64 and two heads.

    Args:
        graph: On the device.
        functions: torch_scatter's and PyG's, or None: then references are the baseline.
    """
    usual = _Usual(graph, functions or EdgeFunctions())
    found = [*_on_graphs(graph, usual), *_on_rows(graph, usual)]
    if functions is None:
        found = [replace(op, usual=op.reference, baseline=REFERENCE) for op in found]
    return [*found, *_on_nodes(graph), *_losses(graph), *draws(graph)]


class _Usual:
    """Each op as it is usually written: gather by edge, compute, scatter."""

    def __init__(self, graph: RelGraph, functions: EdgeFunctions) -> None:
        # In the graph's own order: that of an edge list is to be nobody's disadvantage.
        self.head, self.tail, self.types = (t.long() for t in (graph.head, graph.col, graph.rel))
        self.order = graph.perm.long()
        self.rows, self.functions = graph.num_rows, functions

    def projected_attention(self, x: Tensor, weight: Tensor, relation: Tensor) -> Tensor:
        edges = torch.stack([self.head, self.tail])
        return baselines.relation_attention(
            x, weight, relation, edges, self.types, HEADS, self.functions
        )

    def relation_attention(self, query: Tensor, value: Tensor, relation: Tensor) -> Tensor:
        rel = relation[self.types]
        score = (query[self.head] * query[self.tail] * rel).view(HEAD_SHAPE).sum(-1)
        weight = self.softmax(score / math.sqrt(HEAD_SHAPE[2]))
        message = (value[self.tail] * rel).view(HEAD_SHAPE) * weight.unsqueeze(-1)
        return self.sum(message.view(-1, WIDTH))

    def attention_and_mean(self, x: Tensor, weight: Tensor, relation: Tensor) -> tuple:
        return self.projected_attention(x, weight, relation), self.relation_mean(x, relation)

    def rationale_scores(self, query: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        product = query[self.head] * query[self.tail] * relation[self.types]
        logit = product.view(HEAD_SHAPE).sum(-1).mean(-1) / math.sqrt(HEAD_SHAPE[2])
        degree = torch.bincount(self.head, minlength=self.rows).to(logit.dtype)
        return self.softmax(logit) * degree[self.head], logit

    def edge_score_means(self, score: Tensor) -> Tensor:
        return self.functions.scatter_mean(score, self.tail, dim=0, dim_size=self.rows)

    def relation_mean(self, x: Tensor, relation: Tensor) -> Tensor:
        return self.mean(x[self.tail] * relation[self.types])

    def weighted_aggregate(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.sum(x[self.tail] * weight[self.order].unsqueeze(1))

    def weighted_aggregate_transposed(self, x: Tensor, weight: Tensor) -> Tensor:
        message = x[self.head] * weight[self.order].unsqueeze(1)
        return self.functions.scatter_sum(message, self.tail, dim=0, dim_size=self.rows)

    def edge_dot(self, row_side: Tensor, col_side: Tensor) -> Tensor:
        return (row_side[self.head] * col_side[self.tail]).sum(1)

    def sum(self, src: Tensor, index: Tensor | None = None) -> Tensor:
        index = self.head if index is None else index
        return self.functions.scatter_sum(src, index, dim=0, dim_size=self.rows)

    def mean(self, src: Tensor, index: Tensor | None = None) -> Tensor:
        index = self.head if index is None else index
        return self.functions.scatter_mean(src, index, dim=0, dim_size=self.rows)

    def softmax(self, src: Tensor, index: Tensor | None = None) -> Tensor:
        index = self.head if index is None else index
        return self.functions.softmax(src, index, num_nodes=self.rows)


ATTENTION = "E*(2*D*s + 8) + K*D*s + n*D*s + N*(D*s + H*a + 8)"
ATTENTION_BACKWARD = (
    "E*(4*D*s + 16 + 2*H*a) + (K + L)*D*s + n*(3*D*s + H*a) + N*(D*s + 8) + M*(3*D*s + 8) + R*D*s"
)
MEAN = "E*(D*s + 8) + K*D*s + N*(D*s + a + 8)"
MEAN_BACKWARD = "E*(2*D*s + a + 16) + L*D*s + n*(D*s + a) + N*8 + M*(D*s + 8) + R*D*s"


def _on_graphs(graph: RelGraph, usual: _Usual) -> list[MeasuredOp]:
    nodes, relation = (graph.num_rows, WIDTH), (graph.num_relations, WIDTH)
    edges = (graph.num_edges,)
    return [
        measured(
            "relation_attention",
            (nodes, nodes, relation),
            lambda *x: (*x, graph, HEADS),
            usual.relation_attention,
            ATTENTION,
            ATTENTION_BACKWARD,
        ),
        measured(
            "projected_attention",
            (nodes, (WIDTH, WIDTH), relation),
            lambda *x: (*x, graph, HEADS),
            usual.projected_attention,
            f"{ATTENTION} + 2*N*D*s + D*D*s",
            f"{ATTENTION_BACKWARD} + 5*N*D*s + 2*D*D*s",
        ),
        measured(
            "attention_and_mean",
            (nodes, (WIDTH, WIDTH), relation),
            lambda *x: (*x, graph, HEADS),
            usual.attention_and_mean,
            f"{ATTENTION} + 2*N*D*s + D*D*s + {MEAN}",
            f"{ATTENTION_BACKWARD} + 5*N*D*s + 2*D*D*s + {MEAN_BACKWARD} + M*D*s + 3*R*D*s",
        ),
        measured(
            "rationale_scores",
            (nodes, relation),
            lambda *x: (*x, graph, HEADS),
            usual.rationale_scores,
            "E*(D*s + 8 + 2*a) + K*D*s + n*D*s + N*8",
            edge_order="row",
        ),
        measured(
            "edge_score_means",
            (edges,),
            lambda x: (x, graph),
            usual.edge_score_means,
            "E*(4 + s) + M*(8 + s)",
            edge_order="row",
        ),
        measured(
            "relation_mean",
            (nodes, relation),
            lambda *x: (*x, graph),
            usual.relation_mean,
            MEAN,
            MEAN_BACKWARD,
        ),
        measured(
            "weighted_aggregate",
            (nodes, edges),
            lambda *x: (*x, graph),
            usual.weighted_aggregate,
            "E*(D*s + 4 + a) + N*(D*s + 8)",
            "E*(2*D*s + 12 + 2*a) + n*D*s + N*8 + M*(D*s + 8)",
        ),
        measured(
            "weighted_aggregate, transposed",
            (nodes, edges),
            lambda *x: (*x, graph, True),
            usual.weighted_aggregate_transposed,
            "E*(D*s + 8 + a) + M*(D*s + 8)",
            "E*(2*D*s + 8 + 2*a) + n*D*s + N*(D*s + 16)",
            function="weighted_aggregate",
        ),
        measured(
            "edge_dot",
            (nodes, nodes),
            lambda *x: (*x, graph),
            usual.edge_dot,
            "E*(D*s + 4 + a) + n*D*s + N*8",
            "E*(2*D*s + 12 + 2*a) + N*(D*s + 8) + M*(D*s + 8)",
            edge_order="row",
        ),
    ]


def _on_rows(graph: RelGraph, usual: _Usual) -> list[MeasuredOp]:
    """Segment and scatter ops: the same sums of edge tensors, by pointers or by an index.

    The index is in the caller's order of edges. Backward reads a row a segment, or, by an index, a
    row an edge.
    """
    rows, index = graph.num_rows, graph.edge_index[0]
    wide, narrow = ((graph.num_edges, WIDTH),), ((graph.num_edges, HEADS),)
    summed = "E*D*s + N*D*s"
    found = []
    for kind in ("sum", "mean"):
        by_hand = getattr(usual, kind)
        found += [
            measured(
                f"segment_{kind}",
                wide,
                lambda x: (x, graph.rowptr),
                by_hand,
                f"{summed} + N*8",
                f"{summed} + N*8",
            ),
            measured(
                f"scatter_{kind}",
                wide,
                lambda x: (x, index, 0, None, rows),
                partial(by_hand, index=index),
                f"{summed} + E*8",
                "2*E*D*s + E*8",
            ),
        ]
    return [
        *found,
        measured(
            "segment_softmax",
            narrow,
            lambda x: (x, graph.rowptr),
            usual.softmax,
            "2*E*H*s + N*8",
            "3*E*H*s + N*8",
        ),
        measured(
            "scatter_softmax",
            narrow,
            lambda x: (x, index, None, rows),
            partial(usual.softmax, index=index),
            "2*E*H*s + E*8",
            "3*E*H*s + E*8",
        ),
    ]


def _dropout(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    y = F.normalize(F.dropout(x, DROPOUT))
    return y, residual + y


def _best_items(user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    values, items = torch.topk(user @ item.T, min(BEST_ITEMS, item.size(0)))
    return values, items


def _on_nodes(graph: RelGraph) -> list[MeasuredOp]:
    """What looks at no edge; torch has something of its own for it."""
    nodes = (graph.num_rows, WIDTH)
    rng = torch.tensor([20, 26], device=graph.device)
    return [
        measured(
            "dropout_normalize_add",
            (nodes, nodes),
            lambda *x: (*x, DROPOUT, rng),
            _dropout,
            "4*N*D*s + N*a",
            "4*N*D*s + N*a",
            baseline="torch: dropout, normalize, add",
        ),
        measured(
            "topk_items",
            ((RANKED_USERS, WIDTH), nodes),
            lambda *x: (*x, BEST_ITEMS),
            _best_items,
            f"({RANKED_USERS} + N)*D*s + {RANKED_USERS}*(2*N*a + {BEST_ITEMS}*(a + 8))",
            baseline="product and topk of torch",
        ),
    ]


def _contrast(z1: Tensor, z2: Tensor, permutation: Tensor) -> Tensor:
    z1, z2 = F.normalize(z1), F.normalize(z2)
    own = torch.exp((z1 * z2).sum(1))
    forth, back = torch.exp((z1 * z2[permutation]).sum(1)), torch.exp((z2 * z1[permutation]).sum(1))
    return -torch.log(own / (2 * own + forth + back))


def _bpr(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    gap = (user * (positive - negative)).sum(1)
    squares = user.square().sum() + positive.square().sum() + negative.square().sum()
    ranking = -torch.log(1e-10 + torch.sigmoid(gap)).mean()
    return ranking + L2_WEIGHT / 2 * squares / user.shape[0]


def _losses(graph: RelGraph) -> list[MeasuredOp]:
    """Losses as models write them; at tau 1 the published contrast does not overflow."""
    nodes, relation = (graph.num_rows, WIDTH), (graph.num_relations, WIDTH)
    slots = (SLOTS, WIDTH)
    permutation = torch.arange(graph.num_rows, device=graph.device).roll(graph.num_rows // 2)
    ids = torch.arange(SLOTS, device=graph.device) % graph.num_relations
    published = "published form (torch)"
    return [
        measured(
            "contrast_loss",
            (nodes, nodes),
            lambda *x: (*x, permutation, 1.0),
            partial(_contrast, permutation=permutation),
            "4*N*D*s + N*(9*a + 12)",
            "8*N*D*s + N*(26*a + 12)",
            baseline=published,
        ),
        measured(
            "bpr_loss",
            (nodes, nodes, nodes),
            lambda *x: (*x, L2_WEIGHT),
            _bpr,
            "3*N*D*s + N*a",
            "6*N*D*s + N*a",
            baseline=published,
        ),
        measured(
            "reconstruction_loss",
            (slots, slots, relation),
            lambda *x: (*x, ids),
            lambda head, tail, rel: F.softplus(-(head * (tail * rel[ids])).sum(1)).mean(),
            f"{SLOTS}*(3*D*s + a + 8)",
            f"{SLOTS}*(7*D*s + 2*a + 16) + R*D*s",
            baseline=published,
        ),
    ]
