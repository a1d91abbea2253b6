"""The graph layers of KGRec under the interface of the paper's code."""

from __future__ import annotations

from logging import getLogger

import torch
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.nn._item_attention import user_softmax
from kgrec_fast.nn.edge_layer import EdgeLayer
from kgrec_fast.nn.hops import HopGraphs
from kgrec_fast.nn.propagation import padded

Edges = Tensor | RelGraph | HopGraphs
Interactions = Tensor | InteractionGraph


class AttnHGCN(EdgeLayer):
    """:class:`kgrec_fast.nn.AttnHGCN` as the paper's code has it.

    What differs from there: relation ids of raw edges count from 1 (0 is the interaction, which is
    no edge of the knowledge graph), :meth:`forward` returns entities before users, and message
    dropout is asked for by ``mess_dropout``. Numbers and gradients are those of the published
    layer, rounding apart, but for the draws of dropout and for rows of zeros, whose gradient is
    zero.

    N nodes (items first), U users, D the width, E edges of the knowledge graph, M interactions.
    Where the arguments say ``edge_index, edge_type`` there may also stand a
    :class:`~kgrec_fast.graph.RelGraph` (or :class:`~kgrec_fast.nn.HopGraphs`) and None, where they
    say ``inter_edge`` an :class:`~kgrec_fast.graph.InteractionGraph`. Raw tensors are sorted into a
    graph that is kept as long as the same tensors come back: edges newly drawn at each step pay for
    sorting at each step.

    Args:
        channel: D, an even number.
        n_hops: Hops of the ``forward*`` methods.
        n_users: Number of users, U.
        n_relations: Number of relations, the interaction being one of them.
        node_dropout_rate: Kept as an attribute; as published, the layer makes no use of it.
        mess_dropout_rate: Probability that message dropout drops an element, in [0, 1).

    Attributes:
        relation_emb: [n_relations - 1, D].
        W_Q: [D, D], the projection shared by queries and keys.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    first_relation = 1

    relation_emb: nn.Parameter

    def __init__(
        self,
        channel: int,
        n_hops: int,
        n_users: int,
        n_relations: int,
        node_dropout_rate: float = 0.5,
        mess_dropout_rate: float = 0.1,
    ) -> None:
        if channel < 1 or channel % 2:
            raise ValueError(f"channel is {channel}, expected a positive multiple of 2")
        super().__init__(channel, n_hops, n_users, n_relations, mess_dropout_rate)
        self.node_dropout_rate = node_dropout_rate
        self.logger = getLogger()

    def _add_parameters(self) -> None:
        # In the published order, which is that of the optimizer's state.
        size = self.embedding_size
        self.relation_emb = nn.Parameter(torch.empty(self.n_relations - 1, size))
        self.W_Q = nn.Parameter(torch.empty(size, size))

    @property
    def relation(self) -> Tensor:
        return self.relation_emb

    # -- all hops ---------------------------------------------------------------------------------

    def forward(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Edges,
        edge_type: Tensor | None,
        inter_edge: Interactions,
        inter_edge_w: Tensor | None,
        mess_dropout: bool = True,
        item_attn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Propagates users and entities; each hop's result is normalised and added up.

        Args:
            user_emb: [U, D].
            entity_emb: [N, D].
            edge_index: int64 [2, E], heads and tails.
            edge_type: int64 [E], relations from 1.
            inter_edge: int64 [2, M], users and items.
            inter_edge_w: [M], weights of the interactions.
            mess_dropout: False switches message dropout off in training mode too.
            item_attn: Attention [at least n_items] of each item, or None. Interactions are then
                weighted by its softmax over the user's interactions, times their number.

        Returns:
            Entities [N, D], then users [U, D].

        Raises:
            TypeError, ValueError: An argument is not what is expected; the message names it.
        """
        hops = self._hops(entity_emb, edge_index, edge_type)
        inter = self._interactions(user_emb, entity_emb, inter_edge, "entity_emb")
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        if item_attn is not None:
            attention = user_softmax(item_attn, inter, None)
            weight = attention if weight is None else weight * attention
        rng = self._rng(entity_emb) if mess_dropout else None
        users, entities = self.propagate(user_emb, entity_emb, hops, inter, weight, rng=rng)
        return entities, users

    def forward_ui(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Interactions,
        inter_edge_w: Tensor | None,
        mess_dropout: bool = True,
    ) -> Tensor:
        """The user-item view of the items [n_items, D], on the interactions alone.

        Arguments as in :meth:`forward`, with ``item_emb`` [n_items, D].
        """
        inter = self._interactions(user_emb, item_emb, inter_edge, "item_emb")
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        rng = self._rng(item_emb) if mess_dropout else None
        return self.ui_messages(user_emb, item_emb, inter, weight, rng=rng)

    def forward_kg(
        self,
        entity_emb: Tensor,
        edge_index: Edges,
        edge_type: Tensor | None,
        mess_dropout: bool = True,
    ) -> Tensor:
        """The knowledge-graph view of the entities [N, D], a mean in place of attention.

        Arguments as in :meth:`forward`.
        """
        hops = self._hops(entity_emb, edge_index, edge_type)
        return self.propagate_kg(
            entity_emb, hops, rng=self._rng(entity_emb) if mess_dropout else None
        )

    # -- one hop ----------------------------------------------------------------------------------

    def non_attn_agg(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Edges,
        edge_type: Tensor | None,
        inter_edge: Interactions,
        inter_edge_w: Tensor | None,
        relation_emb: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`shared_layer_agg` with a mean in place of attention."""
        graph = self._hops(entity_emb, edge_index, edge_type).first
        entity_agg = ops.relation_mean(entity_emb, relation_emb, graph)
        user_agg = self._user_agg(user_emb, entity_emb, inter_edge, inter_edge_w)
        return padded(entity_agg, entity_emb.shape[0]), user_agg

    def shared_layer_agg(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Edges,
        edge_type: Tensor | None,
        inter_edge: Interactions,
        inter_edge_w: Tensor | None,
        relation_emb: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One hop of :meth:`forward`: relation attention, and weighted sums of items for the users.

        Arguments as there, and ``relation_emb`` [n_relations - 1, D]. Returns entities [N, D], then
        users [U, D].
        """
        graph = self._hops(entity_emb, edge_index, edge_type).first
        entity_agg, _ = ops.projected_attention(
            entity_emb, self.W_Q, relation_emb, graph, self.n_heads, return_lse=True
        )
        user_agg = self._user_agg(user_emb, entity_emb, inter_edge, inter_edge_w)
        return padded(entity_agg, entity_emb.shape[0]), user_agg

    def ui_agg(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Interactions,
        inter_edge_w: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Weighted sums of items for the users [U, D], and of users for the items [n_items, D]."""
        inter = self._interactions(user_emb, item_emb, inter_edge, "item_emb")
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        user_agg = ops.weighted_aggregate(item_emb, weight, inter)
        return user_agg, ops.weighted_aggregate(user_emb, weight, inter, transpose=True)

    def kg_agg(self, entity_emb: Tensor, edge_index: Edges, edge_type: Tensor | None) -> Tensor:
        """Mean [N, D] over the edges of each head of x_t * rel_r."""
        graph = self._hops(entity_emb, edge_index, edge_type).first
        agg = ops.relation_mean(entity_emb, self.relation, graph)
        return padded(agg, entity_emb.shape[0])

    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Edges,
        edge_type: Tensor | None = None,
        print: bool = False,
        return_logits: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """:meth:`rationale_scores` under its published name.

        Args:
            entity_emb, edge_index, edge_type: As there.
            print: Whether to log the standard deviation of the scores.
            return_logits: Whether to return the logits as well.

        Returns:
            Scores [E], or scores and logits.
        """
        scores, logits = self.rationale_scores(entity_emb, edge_index, edge_type)
        if print:
            self.log_spread(scores)
        return (scores, logits) if return_logits else scores

    def log_spread(self, scores: Tensor) -> None:
        """Logs the standard deviation of rationale scores, as published at each epoch's start."""
        self.logger.info(f"edge_attn_score std: {scores.std()}")

    def _user_agg(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        inter_edge: Interactions,
        inter_edge_w: Tensor | None,
    ) -> Tensor:
        inter = self._interactions(user_emb, entity_emb, inter_edge, "entity_emb")
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        return ops.weighted_aggregate(entity_emb, weight, inter)
