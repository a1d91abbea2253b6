"""The graph layers of KGRec."""

from __future__ import annotations

from typing import Literal, cast, overload

import torch
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.graph_cache import as_interaction_graph
from kgrec_fast.nn._arguments import (
    Mask,
    check_embedding,
    narrowed_mask,
    prepared_mask,
    resolve_interactions,
    resolve_rel_graph,
)
from kgrec_fast.nn._item_attention import user_softmax
from kgrec_fast.nn._streams import MAX_HOPS, draw_rng, dropout_stream


class AttnHGCN(nn.Module):
    """Attentive aggregation over a knowledge graph and over interactions (section 3.2 of KGRec).

    N nodes (items first), U users, D the embedding size, E edges of the KG, M interactions. One hop
    of the KG is, for each head h and each of two attention heads of width d = D / 2,

        a_e = softmax over the edges e = (h, r, t) of h of  <W_Q x_h, W_Q x_t * rel_r> / sqrt(d)
        y_h = sum over e of  a_e (x_t * rel_r)

    Graphs and raw edges. Where the arguments say ``edge_index, edge_type`` there stand either two
    tensors (int64 [2, E] heads and tails, int64 [E] relations from 0), or a
    :class:`~kgrec_fast.graph.RelGraph` and None. Where they say ``inter_edge, inter_edge_w`` there
    stand int64 [2, M] (users and items) or an :class:`~kgrec_fast.graph.InteractionGraph`, and the
    weights [M] in the order in which the interactions were given; None takes the graph's own
    weights, or 1. Raw tensors are sorted into a graph that a small cache keeps as long as the same
    tensors come back: edges newly drawn at each step pay for sorting, so prefer ``edge_mask`` and
    ``inter_mask``, subsets of a fixed graph (an :class:`~kgrec_fast.graph.EdgeMask`, or bool [E] or
    [M] in the caller's order). A layer with a mask computes what it would on the edges that remain.

    Message dropout happens in training mode only. It draws two numbers from torch's default
    generator a call, so that ``torch.manual_seed`` governs it.

    Args:
        embedding_size: D, an even number.
        n_hops: Hops of the ``forward*`` methods.
        n_users: U.
        n_relations: Number of relations, the interaction being one of them, which has no embedding.
        mess_dropout_rate: Probability that message dropout drops an element, in [0, 1).

    Attributes:
        relation_embedding: Embedding with weight [n_relations - 1, D].
        W_Q: [D, D], the projection shared by queries and keys. It is Xavier-initialised.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    def __init__(
        self,
        embedding_size: int,
        n_hops: int,
        n_users: int,
        n_relations: int,
        mess_dropout_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_heads = 2
        if embedding_size < 1 or embedding_size % self.n_heads:
            raise ValueError(
                f"embedding_size is {embedding_size}, expected a positive multiple of "
                f"{self.n_heads} (the number of attention heads)"
            )
        if not 0 <= n_hops <= MAX_HOPS:
            raise ValueError(f"n_hops is {n_hops}, expected it in [0, {MAX_HOPS}]")
        if n_users < 1:
            raise ValueError(f"n_users is {n_users}, expected at least 1")
        if n_relations < 2:
            raise ValueError(
                f"n_relations is {n_relations}, expected at least 2: "
                "the interaction and one relation of the knowledge graph"
            )
        if not 0 <= mess_dropout_rate < 1:
            raise ValueError(f"mess_dropout_rate is {mess_dropout_rate}, expected it in [0, 1)")
        self.embedding_size = embedding_size
        self.n_hops = n_hops
        self.n_users = n_users
        self.n_relations = n_relations
        self.mess_dropout_rate = mess_dropout_rate
        self.d_k = embedding_size // self.n_heads
        self.relation_embedding = nn.Embedding(n_relations - 1, embedding_size)
        self.W_Q = nn.Parameter(torch.empty(embedding_size, embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform values for the relation embeddings and for ``W_Q``."""
        nn.init.xavier_uniform_(self.relation_embedding.weight)
        nn.init.xavier_uniform_(self.W_Q)

    def extra_repr(self) -> str:
        return (
            f"{self.embedding_size}, n_hops={self.n_hops}, n_users={self.n_users}, "
            f"n_relations={self.n_relations}, mess_dropout_rate={self.mess_dropout_rate}"
        )

    # -- all hops ---------------------------------------------------------------------------------

    def forward(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
        item_attn: Tensor | None = None,
        *,
        edge_mask: Mask = None,
        inter_mask: Mask = None,
        query: Tensor | None = None,
        rng: Tensor | None = None,
        dropout: bool = True,
        wanted_entities: Tensor | None = None,
        wanted_users: Tensor | None = None,
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
            query: [N, D] ``entity_emb @ W_Q``, where it is known already.
            rng: int64 [2], seed and step of the dropout; drawn where it is None.
            dropout: False switches message dropout off in training mode too.
            wanted_entities: bool [N], the rows of the result that will be read; the others miss
                what the last hop adds, which saves its work. None reads all.
            wanted_users: bool [U], the same for users.

        Returns:
            Users [U, D] and entities [N, D].

        Raises:
            TypeError, ValueError: An argument is not what is expected; the message names it.
        """
        graph = self._rel_graph(entity_emb, edge_index, edge_type)
        inter = self._interactions(user_emb, entity_emb, inter_edge, "entity_emb")
        edge_mask = prepared_mask(graph, edge_mask)
        inter_mask = prepared_mask(inter, inter_mask)
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        if item_attn is not None:
            attention = user_softmax(item_attn, inter, inter_mask)
            weight = attention if weight is None else weight * attention
        rng = self._rng(entity_emb, rng) if dropout else None

        user_res, entity_res = user_emb, entity_emb
        for hop in range(self.n_hops):
            if query is None:
                query = self._project(entity_emb, graph if hop else None)
            if hop == self.n_hops - 1:
                edge_mask = narrowed_mask(graph, edge_mask, wanted_entities)
                inter_mask = narrowed_mask(inter, inter_mask, wanted_users)
            entity_agg, user_agg = self._hop(
                query, entity_emb, graph, edge_mask, inter, weight, inter_mask
            )
            entity_emb, entity_res = self._finish(entity_agg, entity_res, rng, "rec/entity", hop)
            user_emb, user_res = self._finish(user_agg, user_res, rng, "rec/user", hop)
            query = None
        return user_res, entity_res

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
        inter_mask = prepared_mask(inter, inter_mask)
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        rng = self._rng(item_emb, rng)
        item_res = item_emb
        for hop in range(self.n_hops):
            item_agg = ops.weighted_aggregate(
                user_emb, weight, inter, transpose=True, edge_mask=inter_mask
            )
            if hop + 1 < self.n_hops:  # nothing reads the users of the last hop
                user_agg = ops.weighted_aggregate(item_emb, weight, inter, edge_mask=inter_mask)
                user_emb, _ = self._finish(user_agg, user_emb, rng, "ui/user", hop)
            item_emb, item_res = self._finish(item_agg, item_res, rng, "ui/item", hop)
        return item_res

    def forward_kg(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
        rng: Tensor | None = None,
        first_rows: int | None = None,
    ) -> Tensor:
        """The KG view of the entities: like :meth:`forward`, with a mean in place of attention.

        Args:
            entity_emb: [N, D].
            edge_index, edge_type, edge_mask, rng: As in :meth:`forward`.
            first_rows: How many rows of the result are wanted; None for all.

        Returns:
            Entities [N, D], or the first of them.
        """
        graph = self._rel_graph(entity_emb, edge_index, edge_type)
        edge_mask = prepared_mask(graph, edge_mask)
        rng = self._rng(entity_emb, rng)
        entity_res = entity_emb
        for hop in range(self.n_hops):
            rows = cols = None
            if hop == self.n_hops - 1 and first_rows is not None:
                rows = torch.arange(graph.num_rows, device=graph.device) < first_rows
            if hop > 0:
                # Nodes without edges are zero by now. Leaving them out of a mean changes its
                # length alone, and _finish makes that one.
                cols = graph.rowptr.diff() > 0
            mask = narrowed_mask(graph, edge_mask, rows, cols)
            entity_agg = ops.relation_mean(entity_emb, self.relation_embedding.weight, graph, mask)
            if rows is not None:
                entity_agg, entity_res = entity_agg[:first_rows], entity_res[:first_rows]
            entity_emb, entity_res = self._finish(entity_agg, entity_res, rng, "kg/entity", hop)
        return entity_res if first_rows is None else entity_res[:first_rows]

    # -- one hop ----------------------------------------------------------------------------------

    def shared_layer_agg(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
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
        graph = self._rel_graph(entity_emb, edge_index, edge_type)
        inter = self._interactions(user_emb, entity_emb, inter_edge, "entity_emb")
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        query = self._project(entity_emb)
        return self._hop(query, entity_emb, graph, edge_mask, inter, weight, inter_mask)

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
        inter_mask = prepared_mask(inter, inter_mask)
        weight = inter.weight if inter_edge_w is None else inter_edge_w
        user_agg = ops.weighted_aggregate(item_emb, weight, inter, edge_mask=inter_mask)
        item_agg = ops.weighted_aggregate(
            user_emb, weight, inter, transpose=True, edge_mask=inter_mask
        )
        return user_agg, item_agg

    def kg_agg(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        edge_mask: Mask = None,
    ) -> Tensor:
        """Mean over the edges of each head of x_t * rel_r; arguments as in :meth:`forward_kg`."""
        graph = self._rel_graph(entity_emb, edge_index, edge_type)
        return ops.relation_mean(entity_emb, self.relation_embedding.weight, graph, edge_mask)

    @overload
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        return_logits: Literal[False] = False,
        *,
        edge_mask: Mask = None,
    ) -> Tensor: ...

    @overload
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        *,
        return_logits: Literal[True],
        edge_mask: Mask = None,
    ) -> tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None = None,
        return_logits: bool = False,
        *,
        edge_mask: Mask = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rationale scores of the edges (section 3.1 of KGRec), without gradient.

        The logit of an edge is the mean of its attention scores over the attention heads; its
        rationale score is the softmax of the logits over the edges of the head node, times their
        number.

        Args:
            entity_emb: [N, D].
            edge_index, edge_type, edge_mask: As in :meth:`forward`; but a raw ``edge_index``
                without ``edge_type`` leaves the relations out of the logits.
            return_logits: Whether to return the logits as well.

        Returns:
            Scores [E] in the caller's order of edges, or scores and logits. A masked edge has the
            score 0 and the logit -inf.
        """
        check_embedding("entity_emb", entity_emb, self.embedding_size)
        relation: Tensor | None = self.relation_embedding.weight
        if edge_type is None and not isinstance(edge_index, RelGraph):
            relation, nodes = None, entity_emb.shape[0]
            graph: RelGraph | InteractionGraph = as_interaction_graph(edge_index, nodes, nodes)
        else:
            graph = self._rel_graph(entity_emb, edge_index, edge_type)
        # Without relations any graph will do.
        scores, logits = ops.rationale_scores(
            self._project(entity_emb), relation, cast(RelGraph, graph), self.n_heads, edge_mask
        )
        return (scores, logits) if return_logits else scores

    # -- parts ------------------------------------------------------------------------------------

    def _project(self, x: Tensor, empty_outside: RelGraph | None = None) -> Tensor:
        """``x @ W_Q``. Rows without an edge in ``empty_outside`` are known to be zero in ``x``."""
        if empty_outside is None:
            return x @ self.W_Q
        rows = empty_outside.rowptr.diff().nonzero().flatten()
        if 2 * rows.numel() > x.shape[0]:
            return x @ self.W_Q
        part = x.index_select(0, rows) @ self.W_Q
        return part.new_zeros(x.shape).index_copy(0, rows, part)

    def _hop(
        self,
        query: Tensor,
        entity_emb: Tensor,
        graph: RelGraph,
        edge_mask: Mask,
        inter: InteractionGraph,
        weight: Tensor | None,
        inter_mask: Mask,
    ) -> tuple[Tensor, Tensor]:
        relation = self.relation_embedding.weight
        entity_agg = ops.relation_attention(
            query, entity_emb, relation, graph, self.n_heads, edge_mask=edge_mask
        )
        user_agg = ops.weighted_aggregate(entity_emb, weight, inter, edge_mask=inter_mask)
        return cast(Tensor, entity_agg), user_agg

    def _finish(
        self, x: Tensor, residual: Tensor, rng: Tensor | None, place: str, hop: int
    ) -> tuple[Tensor, Tensor]:
        """Message dropout, rows of length one, and their sum with the residual."""
        stream, training = dropout_stream(place, hop), rng is not None
        return ops.dropout_normalize_add(x, residual, self.mess_dropout_rate, rng, stream, training)

    def _rng(self, x: Tensor, rng: Tensor | None) -> Tensor | None:
        """Seed and step of the dropout: int64 [2]; None where nothing is dropped."""
        if not self.training or self.mess_dropout_rate == 0:
            return None
        return draw_rng(x.device) if rng is None else rng

    # -- arguments --------------------------------------------------------------------------------

    def _rel_graph(
        self, entity_emb: Tensor, edge_index: Tensor | RelGraph, edge_type: Tensor | None
    ) -> RelGraph:
        check_embedding("entity_emb", entity_emb, self.embedding_size)
        return resolve_rel_graph(edge_index, edge_type, entity_emb.shape[0], self.n_relations - 1)

    def _interactions(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Tensor | InteractionGraph,
        items_name: str,
    ) -> InteractionGraph:
        check_embedding("user_emb", user_emb, self.embedding_size)
        check_embedding(items_name, item_emb, self.embedding_size)
        return resolve_interactions(
            inter_edge, user_emb.shape[0], item_emb.shape[0], exact=items_name == "item_emb"
        )
