"""The attention of KGAT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast.graph import EdgeMask, RelGraph
from kgrec_fast.nn._arguments import Mask, check_edge_values, check_size, resolve_graph
from kgrec_fast.nn._edges import attended_reference, edge_softmax
from kgrec_fast.nn.propagation import padded
from kgrec_fast.ops._common import kept_edges
from kgrec_fast.relation_pairs import head_runs


class KGATAttention(nn.Module):
    r"""KGAT's attention, which measures in the space of a relation how far a tail is from a head.

    Wang, He, Cao, Liu, Chua: "KGAT: Knowledge Graph Attention Network for Recommendation", KDD
    2019, equations 3 to 5. For an edge e = (h, r, t), W_r the projection of a relation,

        s_e = < W_r x_t, tanh(W_r x_h + rel_r) >
        a_e = softmax of s over the edges of h
        y_h = sum over e of  a_e x_t

    The score is <x_t, W_r' tanh(W_r x_h + rel_r)>: no tail is projected, and heads are, once for
    every distinct (h, r). These P rows, at most as many as edges, are the only ones beyond nodes:
    a nonlinear function of each pair is in the formula. What follows in the paper, one of three
    aggregators of x_h and y_h, is made of PyTorch's own layers.

    Published implementations make the weights without gradient, once an epoch, and propagate by
    them until the next: ``with torch.no_grad(): a = layer.attention(...)``, then
    ``layer(..., attention=a)``. Left to itself the layer makes them anew, with their gradient.

    Args:
        embedding_size: The width D.
        relation_size: K, the width of relation embeddings, and of the space of a relation.
        n_relations: R, a projection each; relation ids count from 0.

    Attributes:
        relation_embedding: Embedding with weight [R, K].
        trans_w: Embedding with weight [R, D * K]: W_r, transposed, row by row. Both have the names
            and shapes of hopwise's and RecBole's KGAT.

    Raises:
        ValueError: An argument is not above 0; the message names it.
    """

    def __init__(self, embedding_size: int, relation_size: int, n_relations: int) -> None:
        super().__init__()
        self.embedding_size = check_size("embedding_size", embedding_size)
        self.relation_size = check_size("relation_size", relation_size)
        self.n_relations = check_size("n_relations", n_relations)
        self.relation_embedding = nn.Embedding(self.n_relations, self.relation_size)
        self.trans_w = nn.Embedding(self.n_relations, self.embedding_size * self.relation_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform values, those of a projection by its own two sizes."""
        nn.init.xavier_uniform_(self.relation_embedding.weight)
        for projection in self._projections():
            nn.init.xavier_uniform_(projection.data)

    def extra_repr(self) -> str:
        return (
            f"{self.embedding_size}, relation_size={self.relation_size}, "
            f"n_relations={self.n_relations}"
        )

    def forward(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        edge_mask: Mask = None,
    ) -> Tensor:
        """Sums of the tails of every node, weighted by attention.

        Args:
            entity_emb: [N, D]; in KGAT users and entities, which are nodes of one graph.
            edge_index, edge_type, edge_mask: As in :class:`~kgrec_fast.nn.AttnHGCN`.
            attention: [E], weights to take, in the caller's order of edges; made where it is None.

        Returns:
            [N, D], 0 for nodes without an unmasked edge.

        Raises:
            TypeError, ValueError: An argument is not what is expected; the message names it.
        """
        graph, mask = self._resolve(entity_emb, edge_index, edge_type, edge_mask)
        if attention is None:
            order, weight = "row", self._weights(entity_emb, graph, mask)
        else:
            check_edge_values("attention", attention, graph, entity_emb)
            order, weight = "caller", attention
        agg = ops.weighted_aggregate(entity_emb, weight, graph, edge_mask=mask, edge_order=order)
        return padded(agg, entity_emb.shape[0])

    def attention(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """The weights a_e alone: [E] in the caller's order, 0 for masked edges.

        Arguments as in :meth:`forward`.
        """
        graph, mask = self._resolve(entity_emb, edge_index, edge_type, edge_mask)
        weight = self._weights(entity_emb, graph, mask)
        if mask is not None:  # not a product: NaN would spread
            weight = weight.masked_fill(~mask.row, 0)
        return graph.to_caller_order(weight)

    def reference(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """:meth:`forward` in plain PyTorch, with a projection of both ends of every edge."""
        graph, mask = self._resolve(entity_emb, edge_index, edge_type, edge_mask)
        _, head, tail, rel = kept_edges(graph, mask)
        size = (self.embedding_size, self.relation_size)
        projection = self.trans_w(rel).unflatten(1, size)  # [E, D, K]
        of_head, of_tail = (
            torch.bmm(entity_emb[ends].unsqueeze(1), projection).squeeze(1) for ends in (head, tail)
        )
        score = of_tail * torch.tanh(of_head + self.relation_embedding(rel))
        score = score.sum(1, keepdim=True)
        return attended_reference(entity_emb, score, head, tail, entity_emb.shape[0])

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
            self.trans_w.weight,
        )

    def _weights(self, x: Tensor, graph: RelGraph, mask: EdgeMask | None) -> Tensor:
        """Attention [E] in row order; masked edges have no number to use."""
        runs = head_runs(graph)
        wanted = []
        for count, rows, projection, relation in zip(
            runs.counts,
            x.index_select(0, runs.head).split(runs.counts),
            self._projections(),
            self.relation_embedding.weight.unbind(0),
            strict=False,  # relations beyond the graph's have no edge
        ):
            if count:
                wanted.append(torch.tanh(rows @ projection + relation) @ projection.t())
        if not wanted:
            wanted = [x[:0]]
        # What a head wants of a tail, [P, D], and how much of it each tail has.
        kept = None if mask is None else mask.row
        score = ops.edge_dot(torch.cat(wanted), x, runs.graph, kept)
        return edge_softmax(score, graph, mask)

    def _projections(self) -> tuple[Tensor, ...]:
        """[D, K] for each relation."""
        shape = (self.embedding_size, self.relation_size)
        projections: tuple[Tensor, ...] = self.trans_w.weight.unflatten(1, shape).unbind(0)
        return projections
