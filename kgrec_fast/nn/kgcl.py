"""The relational aggregation of KGCL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast._numbers import check_number
from kgrec_fast.graph import EdgeMask, RelGraph
from kgrec_fast.nn._arguments import Mask, check_embedding, check_size, resolve_graph
from kgrec_fast.nn._edges import attended, attended_reference, edge_softmax, gather
from kgrec_fast.nn.propagation import padded
from kgrec_fast.ops._common import accumulate_dtype, kept_edges
from kgrec_fast.relation_pairs import node_pairs


class KGCLAggregation(nn.Module):
    r"""One hop of KGCL: attention whose scores compare both ends of an edge with its relation.

    Yang, Huang, Xia, Li: "Knowledge Graph Contrastive Learning for Recommendation", SIGIR 2022,
    equation 1. For an edge e = (h, r, t), with ``fc`` a linear map of both ends side by side,

        s_e = LeakyReLU( <fc([x_h ; x_t]), rel_r> )
        a_e = softmax of s over the edges of h
        y_h = x_h + sum over e of  a_e x_t

    The score is <x_h, W_h' rel_r> + <x_t, W_t' rel_r> + <b, rel_r>, W_h and W_t the halves of
    ``fc``: each part is made once for every distinct pair of a node and a relation, and no tensor
    of edges times width exists. ``fc`` has the name and shape of the published ``RGAT``'s (whose
    further parameters ``W`` and ``a`` are in no formula: load its state with ``strict=False``).

    Args:
        embedding_size: The width D.
        negative_slope: Of the leaky ReLU.

    Raises:
        ValueError: ``embedding_size`` is not above 0.
    """

    def __init__(self, embedding_size: int, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.embedding_size = check_size("embedding_size", embedding_size)
        self.negative_slope = check_number("negative_slope", negative_slope)
        self.fc = nn.Linear(2 * self.embedding_size, self.embedding_size)

    def extra_repr(self) -> str:
        return f"{self.embedding_size}, negative_slope={self.negative_slope}"

    def forward(
        self,
        entity_emb: Tensor,
        relation_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """Aggregates once; what follows a hop is :func:`kgrec_fast.ops.dropout_normalize_add`.

        Args:
            entity_emb: [N, D].
            relation_emb: [R, D], a row for every relation id.
            edge_index, edge_type, edge_mask: As in :class:`~kgrec_fast.nn.AttnHGCN`.

        Returns:
            Entities [N, D]; those without an unmasked edge are as they were.

        Raises:
            TypeError, ValueError: An argument is not what is expected; the message names it.
        """
        graph, mask = self._resolve(entity_emb, relation_emb, edge_index, edge_type, edge_mask)
        heads, tails = node_pairs(graph)
        of_head, of_tail = (relation_emb @ half for half in self.fc.weight.chunk(2, 1))
        # The products of a pair: of its node's row with its relation's.
        score = gather(_column(ops.edge_dot(entity_emb, of_head, heads.graph)), heads.of_edge)
        score = score + gather(
            _column(ops.edge_dot(entity_emb, of_tail, tails.graph)), tails.of_edge
        )
        score = score + gather(_column(relation_emb @ self.fc.bias), graph.rel.long())
        score = F.leaky_relu(score, self.negative_slope)
        agg = attended(entity_emb, edge_softmax(score, graph, mask), graph, mask)
        return entity_emb + padded(agg, entity_emb.shape[0])

    def reference(
        self,
        entity_emb: Tensor,
        relation_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """:meth:`forward` in plain PyTorch, with rows for every edge, as published."""
        graph, mask = self._resolve(entity_emb, relation_emb, edge_index, edge_type, edge_mask)
        _, head, tail, rel = kept_edges(graph, mask)
        both = self.fc(torch.cat([entity_emb[head], entity_emb[tail]], 1))
        score = F.leaky_relu((both * relation_emb[rel]).sum(1, keepdim=True), self.negative_slope)
        return entity_emb + attended_reference(entity_emb, score, head, tail, entity_emb.shape[0])

    def _resolve(
        self,
        entity_emb: Tensor,
        relation_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None,
        edge_mask: Mask,
    ) -> tuple[RelGraph, EdgeMask | None]:
        check_embedding("relation_emb", relation_emb, self.embedding_size, self.fc.weight)
        return resolve_graph(
            entity_emb,
            self.embedding_size,
            edge_index,
            edge_type,
            relation_emb.shape[0],
            edge_mask,
            self.fc.weight,
        )


def _column(x: Tensor) -> Tensor:
    """[n, 1] in the type of sums."""
    return x.to(accumulate_dtype(x.dtype)).unsqueeze(1)
