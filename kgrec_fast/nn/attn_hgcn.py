"""The graph layers of KGRec."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.nn._arguments import Mask, resolve_weight
from kgrec_fast.nn._item_attention import user_softmax
from kgrec_fast.nn.edge_layer import EdgeLayer
from kgrec_fast.nn.hops import HopGraphs
from kgrec_fast.nn.propagation import padded
from kgrec_fast.ops._common import prepare_mask


class AttnHGCN(EdgeLayer):
    """Attentive aggregation over a knowledge graph and over interactions (section 3.2 of KGRec).

    N nodes (items first), U users, D the embedding size, E edges of the KG, M interactions. One hop
    of the KG is, for each head h and each of two attention heads of width d = D / 2,

        a_e = softmax over the edges e = (h, r, t) of h of  <W_Q x_h, W_Q x_t * rel_r> / sqrt(d)
        y_h = sum over e of  a_e (x_t * rel_r)

    Graphs and raw edges. Where the arguments say ``edge_index, edge_type`` there stand either two
    tensors (int64 [2, E] heads and tails, int64 [E] relations from 0), or a
    :class:`~kgrec_fast.graph.RelGraph` of at most N rows and columns (or a
    :class:`~kgrec_fast.nn.HopGraphs`, which makes later hops cheaper) and None. Where they say
    ``inter_edge, inter_edge_w`` there stand int64 [2, M] (users and items) or an
    :class:`~kgrec_fast.graph.InteractionGraph`, and the weights [M] in the order in which the
    interactions were given; None takes the graph's own weights, or 1. Raw tensors are sorted into a
    graph that a small cache keeps as long as the same tensors come back: edges newly drawn at each
    step pay for sorting, so prefer ``edge_mask`` and ``inter_mask``, subsets of a fixed graph (an
    :class:`~kgrec_fast.graph.EdgeMask`, or bool [E] or [M] in the caller's order). A layer with a
    mask computes what it would on the edges that remain.

    Message dropout happens in training mode only. It draws two numbers from torch's default
    generator a call, so that ``torch.manual_seed`` governs it.

    Args:
        embedding_size: D, an even number.
        n_hops: Hops of the ``forward*`` methods.
        n_users: Number of users, U.
        n_relations: Number of relations, the interaction being one of them, which has no embedding.
        mess_dropout_rate: Probability that message dropout drops an element, in [0, 1).

    Attributes:
        relation_embedding: Embedding with weight [n_relations - 1, D].
        W_Q: [D, D], the projection shared by queries and keys. It is Xavier-initialised, where
            hopwise's port leaves it as uninitialised memory: two of its fresh models held numbers
            of at most 1e-25 (with them scores and their gradient vanish), one of four training runs
            stopped with NaN, and the largest entries of the other three were 0.01, 0.5 and 4,082 in
            the end. No gain in quality was seen after 30 epochs, and none is claimed.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    # -- all hops ---------------------------------------------------------------------------------

    def forward(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
        item_attn: Tensor | None = None,
        *,
        edge_mask: Mask = None,
        inter_mask: Mask = None,
        dropout: bool = True,
        rng: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Propagates users and entities; each hop's result is normalised and added up.

        Args:
            user_emb: [U, D].
            entity_emb: [N, D].
            edge_index, edge_type: The knowledge graph, see the class.
            inter_edge, inter_edge_w: The interactions, see the class.
            item_attn: Attention [at least n_items] of each item, or None. Interactions are then
                weighted by its softmax over the user's interactions, times their number.
            edge_mask: Which edges of the knowledge graph count.
            inter_mask: Which interactions count.
            dropout: False switches message dropout off in training mode too.
            rng: int64 [2], seed and step of the dropout; drawn where it is None.

        Returns:
            Users [U, D] and entities [N, D].

        Raises:
            TypeError, ValueError: An argument is not what is expected; the message names it.
        """
        hops = self._hops(entity_emb, edge_index, edge_type)
        inter = self._interactions(user_emb, entity_emb, inter_edge, "entity_emb")
        inter_mask = prepare_mask(inter, inter_mask, "inter_mask")
        weight = resolve_weight(inter, inter_edge_w, entity_emb)
        if item_attn is not None:
            attention = user_softmax(item_attn, inter, inter_mask)
            weight = attention if weight is None else weight * attention
        return self.propagate(
            user_emb,
            entity_emb,
            hops,
            inter,
            weight,
            edge_mask=prepare_mask(hops.first, edge_mask),
            inter_mask=inter_mask,
            rng=self._rng(entity_emb, rng) if dropout else None,
        )

    def forward_ui(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
        *,
        inter_mask: Mask = None,
        rng: Tensor | None = None,
    ) -> Tensor:
        """The user-item view of the items: like :meth:`forward`, on the interactions alone.

        Args:
            user_emb: [U, D].
            item_emb: [n_items, D].
            inter_edge, inter_edge_w, inter_mask, rng: As in :meth:`forward`.

        Returns:
            Items [n_items, D].
        """
        inter = self._interactions(user_emb, item_emb, inter_edge, "item_emb")
        inter_mask = prepare_mask(inter, inter_mask, "inter_mask")
        weight = resolve_weight(inter, inter_edge_w, item_emb)
        return self.ui_messages(
            user_emb,
            item_emb,
            inter,
            weight,
            inter_mask=inter_mask,
            rng=self._rng(item_emb, rng),
        )

    def forward_kg(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
        rng: Tensor | None = None,
    ) -> Tensor:
        """The KG view of the entities: like :meth:`forward`, with a mean in place of attention.

        Args:
            entity_emb: [N, D].
            edge_index, edge_type, edge_mask, rng: As in :meth:`forward`.

        Returns:
            Entities [N, D].
        """
        hops = self._hops(entity_emb, edge_index, edge_type)
        mask = prepare_mask(hops.first, edge_mask)
        return self.propagate_kg(entity_emb, hops, mask, self._rng(entity_emb, rng))

    # -- one hop ----------------------------------------------------------------------------------

    def shared_layer_agg(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
        *,
        edge_mask: Mask = None,
        inter_mask: Mask = None,
    ) -> tuple[Tensor, Tensor]:
        """One hop of :meth:`forward`: relation attention, and weighted sums of items for the users.

        Arguments as in :meth:`forward`. Returns entities [N, D], then users [U, D].
        """
        graph = self._hops(entity_emb, edge_index, edge_type).first
        inter = self._interactions(user_emb, entity_emb, inter_edge, "entity_emb")
        weight = resolve_weight(inter, inter_edge_w, entity_emb)
        inter_mask = prepare_mask(inter, inter_mask, "inter_mask")
        entity_agg = self._attend(entity_emb, graph, prepare_mask(graph, edge_mask))
        user_agg = ops.weighted_aggregate(entity_emb, weight, inter, edge_mask=inter_mask)
        return padded(entity_agg, entity_emb.shape[0]), user_agg

    def ui_agg(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
        *,
        inter_mask: Mask = None,
    ) -> tuple[Tensor, Tensor]:
        """Weighted sums of items for the users, and of users for the items, both from the old.

        Arguments as in :meth:`forward_ui`. Returns users [U, D], then items [n_items, D].
        """
        inter = self._interactions(user_emb, item_emb, inter_edge, "item_emb")
        inter_mask = prepare_mask(inter, inter_mask, "inter_mask")
        weight = resolve_weight(inter, inter_edge_w, item_emb)
        user_agg = ops.weighted_aggregate(item_emb, weight, inter, edge_mask=inter_mask)
        item_agg = ops.weighted_aggregate(
            user_emb, weight, inter, transpose=True, edge_mask=inter_mask
        )
        return user_agg, item_agg

    def kg_agg(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """Mean over the edges of each head of x_t * rel_r; arguments as in :meth:`forward_kg`."""
        graph = self._hops(entity_emb, edge_index, edge_type).first
        agg = ops.relation_mean(entity_emb, self.relation, graph, edge_mask)
        return padded(agg, entity_emb.shape[0])

    @overload
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None = None,
        return_logits: Literal[False] = False,
        *,
        edge_mask: Mask = None,
    ) -> Tensor: ...

    @overload
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None = None,
        *,
        return_logits: Literal[True],
        edge_mask: Mask = None,
    ) -> tuple[Tensor, Tensor]: ...

    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph | HopGraphs,
        edge_type: Tensor | None = None,
        return_logits: bool = False,
        *,
        edge_mask: Mask = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """:meth:`rationale_scores` under its published name.

        Returns:
            Scores [E], or with ``return_logits`` scores and logits.
        """
        scores, logits = self.rationale_scores(entity_emb, edge_index, edge_type, edge_mask)
        return (scores, logits) if return_logits else scores
