"""Relational graph attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast._numbers import check_number
from kgrec_fast.graph import EdgeMask, RelGraph
from kgrec_fast.nn._arguments import Mask, check_size, resolve_graph
from kgrec_fast.nn._edges import attended, attended_reference, edge_softmax, gather
from kgrec_fast.nn.propagation import padded
from kgrec_fast.ops._common import check_heads, kept_edges


class RGATAttention(nn.Module):
    r"""Additive attention over typed edges, in several heads.

    The attention of Veličković and others ("Graph Attention Networks", ICLR 2018) with a part for
    the relation, as relational graph attention networks have it (Busbridge, Sherburn, Cavallo,
    Hammerla, 2019; there each relation has a projection of its own, here they share one). With
    z = W x, per attention head k and its slice of width D / H,

        s_e = LeakyReLU( <a_h, z_h> + <a_t, z_t> + <a_r, rel_r> )    for an edge e = (h, r, t)
        a_e = softmax of s over the edges of h
        y_h = sum over e of  a_e z_t

    Only numbers per attention head are made for edges, [E, H].

    Args:
        embedding_size: The width D.
        num_heads: H, a divisor of D.
        n_relations: R; relation ids count from 0.
        negative_slope: Of the leaky ReLU.

    Attributes:
        W: [D, D].
        relation_embedding: Embedding with weight [R, D].
        att_head, att_tail, att_relation: [H, D / H], a_h, a_t and a_r of each attention head.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    def __init__(
        self, embedding_size: int, num_heads: int, n_relations: int, negative_slope: float = 0.2
    ) -> None:
        super().__init__()
        embedding_size = check_size("embedding_size", embedding_size)
        num_heads = check_heads(num_heads, embedding_size)
        n_relations = check_size("n_relations", n_relations)
        self.embedding_size, self.num_heads, self.n_relations = (
            embedding_size,
            num_heads,
            n_relations,
        )
        self.negative_slope = check_number("negative_slope", negative_slope)
        width = embedding_size // num_heads
        self.W = nn.Parameter(torch.empty(embedding_size, embedding_size))
        self.relation_embedding = nn.Embedding(n_relations, embedding_size)
        self.att_head, self.att_tail, self.att_relation = (
            nn.Parameter(torch.empty(num_heads, width)) for _ in range(3)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform values."""
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter)

    def extra_repr(self) -> str:
        return (
            f"{self.embedding_size}, num_heads={self.num_heads}, "
            f"n_relations={self.n_relations}, negative_slope={self.negative_slope}"
        )

    def forward(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """Attends once.

        Args:
            entity_emb: [N, D].
            edge_index, edge_type, edge_mask: As in :class:`~kgrec_fast.nn.AttnHGCN`.

        Returns:
            [N, D], 0 for nodes without an unmasked edge.

        Raises:
            TypeError, ValueError: An argument is not what is expected; the message names it.
        """
        graph, mask = self._resolve(entity_emb, edge_index, edge_type, edge_mask)
        z = entity_emb @ self.W
        of_head, of_tail, of_relation = self._parts(z)
        score = gather(of_head, graph.head.long()) + gather(of_tail, graph.col.long())
        score = score + gather(of_relation, graph.rel.long())
        weight = edge_softmax(F.leaky_relu(score, self.negative_slope), graph, mask)
        return padded(attended(z, weight, graph, mask), entity_emb.shape[0])

    def reference(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """:meth:`forward` in plain PyTorch, with rows for every edge."""
        graph, mask = self._resolve(entity_emb, edge_index, edge_type, edge_mask)
        _, head, tail, rel = kept_edges(graph, mask)
        z = entity_emb @ self.W
        rows = torch.cat([z[head], z[tail], self.relation_embedding(rel)], 1)  # [E, 3 D]
        a = torch.stack([self.att_head, self.att_tail, self.att_relation])  # [3, H, D / H]
        score = (rows.unflatten(1, a.shape) * a).sum((1, 3))
        score = F.leaky_relu(score, self.negative_slope)
        return attended_reference(z, score, head, tail, entity_emb.shape[0])

    def _resolve(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None,
        edge_mask: Mask,
    ) -> tuple[RelGraph, EdgeMask | None]:
        return resolve_graph(
            entity_emb,
            self.embedding_size,
            edge_index,
            edge_type,
            self.n_relations,
            edge_mask,
            self.W,
        )

    def _parts(self, z: Tensor) -> list[Tensor]:
        """The three parts of a score, [N, H], [N, H] and [R, H]."""
        relation = self.relation_embedding.weight
        pairs = ((z, self.att_head), (z, self.att_tail), (relation, self.att_relation))
        # [H, D], each attention head's part in its own columns.
        return [F.linear(x, torch.block_diag(*a.unsqueeze(1))) for x, a in pairs]
