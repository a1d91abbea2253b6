"""The hops of a propagation: what the layer of KGRec is made of."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast._numbers import check_int, check_number
from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.nn._arguments import check_size
from kgrec_fast.nn._row_graphs import (
    interactions_of,
    pays,
    triples_of,
    unmasked_interactions,
    unmasked_triples,
)
from kgrec_fast.nn._rows import narrowed_mask, only_rows, readers, within
from kgrec_fast.nn._streams import MAX_HOPS, dropout_stream
from kgrec_fast.nn.hops import HopGraphs
from kgrec_fast.ops._common import accumulate_dtype


class Propagation(nn.Module):
    """Parameters and hops of :class:`~kgrec_fast.nn.AttnHGCN`, on prepared graphs and masks.

    Its methods return the messages of all hops added up, [A, D] for the first A nodes, outside of
    which no node has edges. So nothing of the size of all nodes is written where few have edges.
    They validate nothing.
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
        embedding_size = check_int("embedding_size", embedding_size)
        if embedding_size < 1 or embedding_size % self.n_heads:
            raise ValueError(
                f"embedding_size is {embedding_size}, expected a positive multiple of "
                f"{self.n_heads} (the number of attention heads)"
            )
        n_hops = check_int("n_hops", n_hops)
        if not 0 <= n_hops <= MAX_HOPS:
            raise ValueError(f"n_hops is {n_hops}, expected it in [0, {MAX_HOPS}]")
        n_users = check_size("n_users", n_users)
        n_relations = check_int("n_relations", n_relations)
        if n_relations < 2:
            raise ValueError(
                f"n_relations is {n_relations}, expected at least 2: "
                "the interaction and one relation of the knowledge graph"
            )
        mess_dropout_rate = check_number("mess_dropout_rate", mess_dropout_rate)
        if not 0 <= mess_dropout_rate < 1:
            raise ValueError(f"mess_dropout_rate is {mess_dropout_rate}, expected it in [0, 1)")
        self.embedding_size = embedding_size
        self.n_hops = n_hops
        self.n_users = n_users
        self.n_relations = n_relations
        self.mess_dropout_rate = mess_dropout_rate
        self.d_k = embedding_size // self.n_heads
        self._add_parameters()
        self.reset_parameters()

    W_Q: nn.Parameter

    def _add_parameters(self) -> None:
        """Makes the parameters. Layers with other names override this, and :attr:`relation`."""
        self.relation_embedding = nn.Embedding(self.n_relations - 1, self.embedding_size)
        self.W_Q = nn.Parameter(torch.empty(self.embedding_size, self.embedding_size))

    @property
    def relation(self) -> Tensor:
        """[n_relations - 1, D], the embeddings of the relations."""
        return self.relation_embedding.weight

    def reset_parameters(self) -> None:
        """Xavier-uniform values for the relation embeddings and for ``W_Q``."""
        nn.init.xavier_uniform_(self.relation)
        nn.init.xavier_uniform_(self.W_Q)

    def extra_repr(self) -> str:
        return (
            f"{self.embedding_size}, n_hops={self.n_hops}, n_users={self.n_users}, "
            f"n_relations={self.n_relations}, mess_dropout_rate={self.mess_dropout_rate}"
        )

    def messages(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        hops: HopGraphs,
        inter: InteractionGraph,
        weight: Tensor | None,
        *,
        edge_mask: EdgeMask | None = None,
        inter_mask: EdgeMask | None = None,
        rng: Tensor | None = None,
        residuals: tuple[Tensor | None, Tensor | None] = (None, None),
        query: Tensor | None = None,
        item_emb: Tensor | None = None,
        user_ids: Tensor | None = None,
        entity_ids: Tensor | None = None,
        first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`AttnHGCN.forward` adds to the embeddings, for those who add it themselves.

        Args:
            user_emb: [U, D].
            entity_emb: [N, D].
            hops: The knowledge graph, A rows.
            inter, weight: The interactions and their weights in the caller's order. What is the
                same for all interactions of a user may be left out: the sums are normalised.
            edge_mask: Which edges of ``hops.first`` count.
            inter_mask: Which interactions count.
            rng: int64 [2], seed and step of message dropout; None for none.
            residuals: What the messages are added to, [U, D] and [A, D] (of the rows wanted where
                these are given); None for zero.
            query: [N, D] ``entity_emb @ W_Q``, where it is known already; no gradient flows
                through it, see :func:`kgrec_fast.ops.projected_attention`.
            item_emb: [n_items, D], the first rows of ``entity_emb``, where they are apart already.
            user_ids: int64, the users wanted, for whom alone work is done; None for all.
            entity_ids: int64, the entities wanted: for the others the last hop does no work. The
                last row of ``hops`` has no edges then, where A < N: it stands for all beyond.
            first: The attention of the first hop, where it is known already (:meth:`first_hops`).

        Returns:
            Sums of the messages to users [U, D] and to entities [A, D], or of those wanted. Without
            hops the residuals, or zero.
        """
        graph, outer = hops.first, None
        items = entity_emb if item_emb is None else item_emb
        user_sum, entity_sum = residuals
        few_users = few_heads = False
        if user_ids is not None:  # no hop reads the users of the one before
            few_users = pays(inter, user_ids)
            if few_users:
                inter, weight = interactions_of(inter, weight, user_ids, inter_mask)
                inter_mask = None
            else:
                inter_mask = narrowed_mask(inter, inter_mask, user_ids)
        inter, weight, inter_mask = unmasked_interactions(inter, weight, inter_mask)
        for hop in range(self.n_hops):
            ids = entity_ids if hop == self.n_hops - 1 else None
            if hop == 1:
                outer = hops.count_outer(edge_mask, accumulate_dtype(entity_emb.dtype))
                edge_mask = hops.later_mask(edge_mask)
                graph = hops.first if hops.later is None else hops.later
            if hop > 0:
                entity_emb = items = padded(entity_emb, max(graph.num_cols, inter.num_cols))
                query = None
            active = hops.active if hop > 0 else None
            if ids is not None and hop > 0:
                known = entity_sum is entity_emb
                if entity_sum is not None and not known:
                    entity_sum = entity_sum.index_select(0, within(ids, entity_sum))
                read = within(ids, entity_emb)
                few_heads = pays(graph, ids)
                if few_heads:
                    outer = None if outer is None else outer.index_select(0, read)
                    graph, read = triples_of(graph, read, edge_mask)
                    edge_mask = active = None
                # One gradient for the sum so far and for what this hop reads.
                if few_heads:  # whose tails are among the chosen rows, after them
                    chosen, items, _ = readers(entity_emb, read)
                    _, entity_emb, (chosen,) = readers(chosen, None, ids.numel())
                else:
                    chosen, entity_emb, (items,) = readers(entity_emb, read, inter.num_cols)
                entity_sum = chosen if known else entity_sum
            if ids is not None and not few_heads:
                edge_mask = narrowed_mask(graph, edge_mask, ids)
            if hop == 0 and first is not None:
                entity_agg = first
            else:
                entity_agg = self._attend(entity_emb, graph, edge_mask, query, outer, active)
            user_agg = ops.weighted_aggregate(items, weight, inter, edge_mask=inter_mask)
            if user_ids is not None and not few_users:
                user_agg = only_rows(user_agg, user_ids)
            if ids is not None and not few_heads:
                entity_agg = only_rows(entity_agg, within(ids, entity_agg))
            entity_emb, entity_sum = self._finish(
                entity_agg, entity_sum, rng, "rec/entity", hop, ids
            )
            _, user_sum = self._finish(user_agg, user_sum, rng, "rec/user", hop, user_ids)
        if user_sum is None:
            rows = user_emb.shape[0] if user_ids is None else user_ids.shape[0]
            user_sum = user_emb.new_zeros(rows, user_emb.shape[1])
        if entity_sum is None:
            rows = graph.num_rows if entity_ids is None else entity_ids.shape[0]
            entity_sum = entity_emb.new_zeros(rows, entity_emb.shape[1])
        return user_sum, entity_sum

    def ui_messages(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter: InteractionGraph,
        weight: Tensor | None,
        *,
        user_weight: Tensor | None = None,
        inter_mask: EdgeMask | None = None,
        rng: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """:meth:`AttnHGCN.forward_ui`.

        Args:
            user_emb, item_emb, inter, inter_mask, rng: As there.
            weight: Weights of the interactions in the caller's order, or None.
            user_weight: In their place [U], where all interactions of a user weigh the same.
            residual: [n_items, D], what the messages are added to; None for ``item_emb``.
        """
        item_res = item_emb if residual is None else residual
        inter, weight, inter_mask = unmasked_interactions(inter, weight, inter_mask)
        for hop in range(self.n_hops):
            item_agg = ops.weighted_aggregate(
                user_emb, weight, inter, True, inter_mask, row_weight=user_weight
            )
            if hop + 1 < self.n_hops:  # nothing reads the users of the last hop
                # A factor that a user's interactions share is gone with normalisation.
                user_agg = ops.weighted_aggregate(item_emb, weight, inter, edge_mask=inter_mask)
                user_emb, _ = self._finish(user_agg, None, rng, "ui/user", hop)
                del user_agg  # a matrix of all users
            item_emb, item_res = self._finish(item_agg, item_res, rng, "ui/item", hop)
        return item_res

    def kg_messages(
        self,
        entity_emb: Tensor,
        hops: HopGraphs,
        *,
        edge_mask: EdgeMask | None = None,
        rng: Tensor | None = None,
        residual: Tensor | None = None,
        first_rows: int | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """What :meth:`AttnHGCN.forward_kg` adds to the embeddings, for those who add it themselves.

        Args:
            entity_emb, hops, edge_mask, rng: As in :meth:`messages`.
            residual: [A, D], what the messages are added to; None for zero.
            first_rows: How many rows of the result are wanted, at most A; None for all.
            first: The mean of the first hop, where it is known already (:meth:`first_hops`).

        Returns:
            Sum of the messages to entities [A, D], or the first rows of it.
        """
        graph, total, relation = hops.first, residual, self.relation
        rows = graph.num_rows if first_rows is None else first_rows
        mask, has_leading = edge_mask, hops.leading is not None and hops.leading.num_rows == rows
        for hop in range(self.n_hops):
            last = hop == self.n_hops - 1
            if hop == 1:
                mask = None if last and has_leading else hops.later_mask(edge_mask)
                graph = hops.first if hops.later is None else hops.later
            narrows = last and rows < graph.num_rows
            if narrows and total is entity_emb:  # one gradient for both
                _, entity_emb, (total,) = readers(entity_emb, None, rows)
            elif narrows and total is not None:
                total = total[:rows]
            if hop > 0:
                # What the graph of the later hops leaves out leads to nodes that are zero by now.
                # Without it a mean changes its length alone, and _finish makes that one.
                entity_emb = padded(entity_emb, graph.num_cols)
            if last and hop > 0 and has_leading:
                assert hops.leading is not None
                mask, graph = hops.leading_mask(edge_mask), hops.leading
            if hop == 0 and first is not None:
                agg = first
            else:
                agg = ops.relation_mean(entity_emb, relation, graph, mask)
            if last and rows < agg.shape[0]:
                agg = agg[:rows]
            entity_emb, total = self._finish(agg, total, rng, "kg/entity", hop)
        return torch.zeros_like(entity_emb[:rows]) if total is None else total

    def first_hops(
        self,
        entity_emb: Tensor,
        hops: HopGraphs,
        edge_mask: EdgeMask | None,
        mean_mask: EdgeMask | None,
        query: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the first hops of :meth:`messages` and :meth:`kg_messages` read of the same
        embeddings, [A, D] each, with one gradient for both; None where they are also the last.
        """
        if self.n_hops < 2:
            return None, None
        graph, edge_mask = unmasked_triples(hops.first, edge_mask)
        return ops.attention_and_mean(
            entity_emb,
            self.W_Q,
            self.relation,
            graph,
            self.n_heads,
            edge_mask,
            mean_mask,
            query,
            mean_graph=hops.first,
        )

    # -- parts ------------------------------------------------------------------------------------

    def _attend(
        self,
        x: Tensor,
        graph: RelGraph,
        edge_mask: EdgeMask | None,
        query: Tensor | None = None,
        outer: Tensor | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Relation attention [A, D].

        ``query`` is ``x @ W_Q`` where it is known. ``outer`` [A] counts edges to zero nodes beside
        the graph. ``active`` are the rows of ``x`` outside of which it is zero, where they are few.
        """
        relation, heads = self.relation, self.n_heads
        if active is not None:
            part = x.index_select(0, active) @ self.W_Q
            query = part.new_zeros(x.shape).index_copy(0, active, part)
            out = ops.relation_attention(
                query, x, relation, graph, heads, edge_mask, zero_edges=outer
            )
        else:
            out = ops.projected_attention(
                x, self.W_Q, relation, graph, heads, edge_mask, query=query, zero_edges=outer
            )
        return cast(Tensor, out)

    def _finish(
        self,
        x: Tensor,
        total: Tensor | None,
        rng: Tensor | None,
        place: str,
        hop: int,
        row_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Message dropout and rows of length one; these, and their sum with ``total``.

        ``row_ids`` are the nodes that the rows belong to, where these are not all of them in order.
        """
        stream, training = dropout_stream(place, hop), rng is not None
        rate = self.mess_dropout_rate
        return ops.dropout_normalize_add(x, total, rate, rng, stream, training, row_ids)


def padded(x: Tensor, rows: int) -> Tensor:
    """``x`` with at least that many rows, zeros below."""
    return x if x.shape[0] >= rows else F.pad(x, (0, 0, 0, rows - x.shape[0]))
