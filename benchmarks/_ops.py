"""The ops that `run` measures: operands, the usual composition, the least traffic."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import baselines
from benchmarks._draws import draws
from benchmarks._graphs import without_relations
from benchmarks._measured_op import MeasuredOp, measured
from kgrec_fast.graph import RelGraph
from kgrec_fast.models.reference import EdgeFunctions

WIDTH, HEADS = 64, 2
DROPOUT = 0.1
L2_WEIGHT = 1e-5
SLOTS = 512  # masked edges of a step
RANKED_USERS, BEST_ITEMS = 64, 20
PLAIN = "gather and index_add (torch)"  # where torch_scatter is not installed


def measured_ops(
    graph: RelGraph, functions: EdgeFunctions | None, width: int = WIDTH, heads: int = HEADS
) -> list[MeasuredOp]:
    """Every op on a graph with as many rows as columns.

    Args:
        graph: On the device.
        functions: torch_scatter's and PyG's, or None: then what scatters is plain PyTorch.
        width: D.
        heads: H, a divisor of D.
    """
    usual = _Usual(graph, functions or EdgeFunctions(), width, heads)
    found = [*_on_graphs(graph, usual), *_without_relations(graph, usual), *_on_rows(graph, usual)]
    if functions is None:
        found = [replace(op, baseline=PLAIN) for op in found]
    return [*found, *_on_nodes(graph, width), *_losses(graph, width), *draws(graph)]


class _Usual:
    """Each op as it is usually written: gather by edge, compute, scatter."""

    def __init__(self, graph: RelGraph, functions: EdgeFunctions, width: int, heads: int) -> None:
        # In the graph's own order: that of an edge list is to be nobody's disadvantage.
        self.head, self.tail, self.types = (t.long() for t in (graph.head, graph.col, graph.rel))
        self.order = graph.perm.long()
        self.rows, self.functions = graph.num_rows, functions
        self.width, self.heads = width, heads
        self.head_shape = (-1, heads, width // heads)

    def projected_attention(self, x: Tensor, weight: Tensor, relation: Tensor) -> Tensor:
        edges = torch.stack([self.head, self.tail])
        return baselines.relation_attention(
            x, weight, relation, edges, self.types, self.heads, self.functions
        )

    def relation_attention(self, query: Tensor, value: Tensor, relation: Tensor) -> Tensor:
        rel = relation[self.types]
        score = (query[self.head] * query[self.tail] * rel).view(self.head_shape).sum(-1)
        weight = self.softmax(score / math.sqrt(self.head_shape[2]))
        message = (value[self.tail] * rel).view(self.head_shape) * weight.unsqueeze(-1)
        return self.sum(message.view(-1, self.width))

    def attention_and_mean(
        self, x: Tensor, weight: Tensor, relation: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.projected_attention(x, weight, relation), self.relation_mean(x, relation)

    def rationale_scores(self, query: Tensor, relation: Tensor) -> tuple[Tensor, Tensor]:
        product = query[self.head] * query[self.tail] * relation[self.types]
        logit = product.view(self.head_shape).sum(-1).mean(-1) / math.sqrt(self.head_shape[2])
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

    def mean_of_rows(self, x: Tensor) -> Tensor:
        return self.mean(x[self.tail])

    def attention_without_relations(self, query: Tensor, value: Tensor) -> Tensor:
        score = (query[self.head] * query[self.tail]).view(self.head_shape).sum(-1)
        weight = self.softmax(score / math.sqrt(self.head_shape[2]))
        message = value[self.tail].view(self.head_shape) * weight.unsqueeze(-1)
        return self.sum(message.view(-1, self.width))

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
    width, heads = usual.width, usual.heads
    nodes, relation = (graph.num_rows, width), (graph.num_relations, width)
    edges = (graph.num_edges,)
    return [
        measured(
            "relation_attention",
            (nodes, nodes, relation),
            lambda *x: (*x, graph, heads),
            usual.relation_attention,
            ATTENTION,
            ATTENTION_BACKWARD,
        ),
        measured(
            "projected_attention",
            (nodes, (width, width), relation),
            lambda *x: (*x, graph, heads),
            usual.projected_attention,
            f"{ATTENTION} + 2*N*D*s + D*D*s",
            f"{ATTENTION_BACKWARD} + 5*N*D*s + 2*D*D*s",
        ),
        measured(
            "attention_and_mean",
            (nodes, (width, width), relation),
            lambda *x: (*x, graph, heads),
            usual.attention_and_mean,
            f"{ATTENTION} + 2*N*D*s + D*D*s + {MEAN}",
            f"{ATTENTION_BACKWARD} + 5*N*D*s + 2*D*D*s + {MEAN_BACKWARD} + M*D*s + 3*R*D*s",
        ),
        measured(
            "rationale_scores",
            (nodes, relation),
            lambda *x: (*x, graph, heads),
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


def _without_relations(graph: RelGraph, usual: _Usual) -> list[MeasuredOp]:
    """What libraries without relations compute too: a plain mean, a plain attention."""
    nodes, plain = (graph.num_rows, usual.width), without_relations(graph)
    inverse = graph.rowptr.diff().clamp(min=1).reciprocal()

    def ones(like: Tensor) -> Tensor:
        return like.new_ones(1, usual.width)

    return [
        measured(
            "relation_attention, no relations",
            (nodes, nodes),
            lambda *x: (*x, ones(x[0]), plain, usual.heads),
            usual.attention_without_relations,
            "E*(2*D*s + 4) + n*D*s + N*(D*s + H*a + 8)",
            "E*(4*D*s + 8 + 2*H*a) + n*(3*D*s + H*a) + N*(D*s + 8) + M*(3*D*s + 8)",
        ),
        measured(
            "relation_mean, no relations",
            (nodes,),
            lambda x: (x, ones(x), plain),
            usual.mean_of_rows,
            "E*(D*s + 4) + N*(D*s + a + 8)",
            "E*(D*s + a + 4) + n*a + N*8 + M*(D*s + 8)",
        ),
        measured(
            "weighted_aggregate, mean of rows",
            (nodes,),
            lambda x: (x, None, graph, False, None, inverse.to(x.dtype)),
            usual.mean_of_rows,
            "E*(D*s + 4) + N*(D*s + a + 8)",
            "E*(D*s + a + 4) + N*8 + M*(D*s + 8)",
        ),
    ]


def _on_rows(graph: RelGraph, usual: _Usual) -> list[MeasuredOp]:
    """Segment and scatter ops: the same sums of edge tensors, by pointers or by an index.

    The index is in the caller's order of edges. Backward reads a row a segment, or, by an index, a
    row an edge.
    """
    rows, index = graph.num_rows, graph.edge_index[0]
    wide, narrow = ((graph.num_edges, usual.width),), ((graph.num_edges, usual.heads),)
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


def _on_nodes(graph: RelGraph, width: int) -> list[MeasuredOp]:
    """What looks at no edge; torch has something of its own for it."""
    nodes = (graph.num_rows, width)
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
            ((RANKED_USERS, width), nodes),
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


def _losses(graph: RelGraph, width: int) -> list[MeasuredOp]:
    """Losses as models write them; at tau 1 the published contrast does not overflow."""
    nodes, relation = (graph.num_rows, width), (graph.num_relations, width)
    slots = (SLOTS, width)
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
