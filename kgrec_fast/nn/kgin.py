"""The relational aggregation of KGIN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kgrec_fast import ops
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.nn._arguments import (
    Mask,
    check_embedding,
    check_size,
    resolve_hops,
    resolve_interactions,
    resolve_weight,
)
from kgrec_fast.nn.propagation import padded
from kgrec_fast.ops._common import kept_edges, prepare_mask


class KGINAggregation(nn.Module):
    r"""One hop of KGIN: relational means for entities, intents for users.

    Wang, Huang, Wang, Yuan, Liu, He, Chua: "Learning Intents behind Interactions with Knowledge
    Graph for Recommendation", WWW 2021. With F intents, the embeddings l_f of which users are
    compared with, relation embeddings rel_r (``weight``) and logits a (``disen_weight_att``),

        y_h = mean over the edges (h, r, t) of h of  x_t * rel_r
        e_f = sum over r of  softmax(a_f)_r rel_r            (what an intent is made of)
        b_uf = softmax over f of  <x_u, l_f>                 (how much a user has of it)
        y_u = s_u + s_u * (sum over f of b_uf e_f),   s_u = sum of w_ui x_i over interactions

    The parameters have the names and shapes that the published ``GraphConv`` keeps for all of its
    hops, so that these load; relation ids count from 0 here, from 1 there. No tensor of edges times
    width, nor of users times intents times width, exists.

    Args:
        embedding_size: The width D.
        n_factors: F, the number of intents.
        n_relations: Number of relations, the interaction being one of them, which has no embedding.

    Raises:
        ValueError: An argument is out of its range; the message names it.
    """

    def __init__(self, embedding_size: int, n_factors: int, n_relations: int) -> None:
        super().__init__()
        self.embedding_size = check_size("embedding_size", embedding_size)
        self.n_factors = check_size("n_factors", n_factors)
        self.n_relations = check_size("n_relations", n_relations, least=2)
        self.weight = nn.Parameter(torch.empty(self.n_relations - 1, self.embedding_size))
        self.disen_weight_att = nn.Parameter(torch.empty(self.n_factors, self.n_relations - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform values."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.xavier_uniform_(self.disen_weight_att)

    def extra_repr(self) -> str:
        return f"{self.embedding_size}, n_factors={self.n_factors}, n_relations={self.n_relations}"

    def forward(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        latent_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
        *,
        edge_mask: Mask = None,
        inter_mask: Mask = None,
    ) -> tuple[Tensor, Tensor]:
        """Aggregates once; what follows a hop is :func:`kgrec_fast.ops.dropout_normalize_add`.

        Args:
            user_emb: [U, D].
            entity_emb: [N, D], items first.
            latent_emb: [F, D], the embeddings of the intents.
            edge_index, edge_type, inter_edge, inter_edge_w, edge_mask, inter_mask: As in
                :class:`~kgrec_fast.nn.AttnHGCN`.

        Returns:
            Entities [N, D], then users [U, D].

        Raises:
            TypeError, ValueError: An argument is not what is expected; the message names it.
        """
        graph, inter, weight = self._resolve(
            user_emb, entity_emb, latent_emb, edge_index, edge_type, inter_edge, inter_edge_w
        )
        entity_agg = ops.relation_mean(
            entity_emb, self.weight, graph, prepare_mask(graph, edge_mask)
        )
        inter_mask = prepare_mask(inter, inter_mask, "inter_mask")
        user_agg = ops.weighted_aggregate(entity_emb, weight, inter, edge_mask=inter_mask)
        return padded(entity_agg, entity_emb.shape[0]), self._intents(
            user_emb, latent_emb, user_agg
        )

    def reference(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        latent_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
        *,
        edge_mask: Mask = None,
        inter_mask: Mask = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward` in plain PyTorch, with a row for every edge, as published."""
        graph, inter, weight = self._resolve(
            user_emb, entity_emb, latent_emb, edge_index, edge_type, inter_edge, inter_edge_w
        )
        _, head, tail, rel = kept_edges(graph, prepare_mask(graph, edge_mask))
        nodes = entity_emb.shape[0]
        total = entity_emb.new_zeros(nodes, self.embedding_size)
        total = total.index_add(0, head, entity_emb[tail] * self.weight[rel])
        count = torch.bincount(head, minlength=nodes).clamp(min=1)

        kept, user, item, _ = kept_edges(inter, prepare_mask(inter, inter_mask, "inter_mask"))
        message = entity_emb[item]
        if weight is not None:
            message = message * weight[inter.perm[kept].long()].unsqueeze(1)
        user_agg = torch.zeros_like(user_emb).index_add(0, user, message)
        score = torch.softmax(user_emb @ latent_emb.t(), 1).unsqueeze(-1)  # [U, F, 1]
        intents = torch.softmax(self.disen_weight_att, 1) @ self.weight  # [F, D]
        return total / count.unsqueeze(1), user_agg + user_agg * (score * intents).sum(1)

    def _intents(self, user_emb: Tensor, latent_emb: Tensor, user_agg: Tensor) -> Tensor:
        """What a user's intents make of the sum over the interactions."""
        share = torch.softmax(user_emb @ latent_emb.t(), 1)
        intents = torch.softmax(self.disen_weight_att, 1) @ self.weight
        return user_agg + user_agg * (share @ intents).to(user_agg.dtype)

    def _resolve(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        latent_emb: Tensor,
        edge_index: Tensor | RelGraph,
        edge_type: Tensor | None,
        inter_edge: Tensor | InteractionGraph,
        inter_edge_w: Tensor | None,
    ) -> tuple[RelGraph, InteractionGraph, Tensor | None]:
        """The graphs and the weights of the interactions."""
        for name, x in (
            ("user_emb", user_emb),
            ("entity_emb", entity_emb),
            ("latent_emb", latent_emb),
        ):
            check_embedding(name, x, self.embedding_size, self.weight)
        if latent_emb.shape[0] != self.n_factors:
            raise ValueError(
                f"latent_emb has {latent_emb.shape[0]} rows, expected {self.n_factors}, one for "
                "each intent"
            )
        nodes = entity_emb.shape[0]
        graph = resolve_hops(edge_index, edge_type, nodes, self.n_relations - 1).first
        inter = resolve_interactions(inter_edge, user_emb.shape[0], nodes, exact=False)
        return graph, inter, resolve_weight(inter, inter_edge_w, entity_emb)
