"""KGRec in plain PyTorch on edge lists, method by method as published.

This module answers the question "what should the fast model compute?". It draws its random choices
on the host, as the usual implementations do, and stands on the layers of
:mod:`kgrec_fast.models.reference_layers`. It shares no code with
:class:`kgrec_fast.models.KGRec`, which makes it the oracle of that model's tests, and it is the
baseline of the train-step benchmark.

Every random choice of a step can be put in from outside (:class:`StepChoice`), so that two models
can be run under the same choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kgrec_fast.models.reference_layers import (
    EdgeFunctions,
    ReferenceAttnHGCN,
    ReferenceContrast,
)

__all__ = [
    "EdgeFunctions",
    "ReferenceAttnHGCN",
    "ReferenceContrast",
    "ReferenceKGRec",
    "StepChoice",
]


@dataclass(frozen=True)
class StepChoice:
    """The random choices of one training step; what is None is drawn.

    Ids are positions in the edge list (or interaction list) that the model was built with.

    Attributes:
        sampled_edges: int64 [S], the KG edges kept in step 1.
        kept_interactions: int64 [M'], the interactions that survive dropout.
        masked_edges: int64, the sampled edges that are masked and reconstructed.
        contrast_edges: int64, the sampled edges in the KG view.
        contrast_interactions: int64, the kept interactions in the user-item view.
        permutation: int64 [n_items], who is whose negative in the contrast.
        dropout: Which elements message dropout keeps, a bool tensor of the shape of the
            embeddings under each key ``"{view}/{side}/{hop}"``, where view/side is one of
            ``rec/entity``, ``rec/user``, ``ui/item``, ``ui/user``, ``kg/entity``.
    """

    sampled_edges: Tensor | None = None
    kept_interactions: Tensor | None = None
    masked_edges: Tensor | None = None
    contrast_edges: Tensor | None = None
    contrast_interactions: Tensor | None = None
    permutation: Tensor | None = None
    dropout: Mapping[str, Tensor] | None = field(default=None, repr=False)


class ReferenceKGRec(nn.Module):
    """KGRec as published, on edge lists; see :class:`kgrec_fast.models.KGRec`.

    Host-side draws (edges, masked edges) come from numpy's global generator, the others from
    torch's (as published): seed both.

    Args:
        n_users: Number of users.
        n_items: Number of items.
        n_entities: Number of nodes of the KG; items are the first of them.
        n_relations: Number of relations, the interaction being one of them.
        edge_index: int64 [2, E], head and tail of each KG edge.
        edge_type: int64 [E], its relation, from 0.
        inter_edge: int64 [2, M], user and item of each interaction.
        inter_edge_w: float [M], their weights; None means 1 / (degree of the user + 1e-7).
        functions: What scatters.
        **hyper: The hyper-parameters of :class:`kgrec_fast.models.KGRec`.
    """

    edge_index: Tensor
    edge_type: Tensor
    inter_edge: Tensor
    inter_edge_w: Tensor

    def __init__(
        self,
        n_users: int,
        n_items: int,
        n_entities: int,
        n_relations: int,
        edge_index: Tensor,
        edge_type: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor | None = None,
        *,
        functions: EdgeFunctions | None = None,
        embedding_size: int = 64,
        reg_weight: float = 1e-5,
        context_hops: int = 2,
        node_dropout_rate: float = 0.5,
        mess_dropout_rate: float = 0.1,
        mae_coef: float = 0.1,
        mae_msize: int = 256,
        cl_coef: float = 0.01,
        cl_tau: float = 1.0,
        cl_drop: float = 0.5,
        samp_func: str = "torch",
    ) -> None:
        super().__init__()
        self.n_users, self.n_items, self.n_entities = n_users, n_items, n_entities
        self.n_relations = n_relations
        self.reg_weight, self.mae_coef, self.cl_coef = reg_weight, mae_coef, cl_coef
        self.node_dropout_rate = node_dropout_rate
        self.mae_msize, self.cl_drop, self.samp_func = mae_msize, cl_drop, samp_func
        self.functions = functions or EdgeFunctions()

        if inter_edge_w is None:
            degree = torch.bincount(inter_edge[0], minlength=n_users)
            inter_edge_w = (1 / (degree.float() + 1e-7))[inter_edge[0]]
        self.register_buffer("edge_index", edge_index, persistent=False)
        self.register_buffer("edge_type", edge_type, persistent=False)
        self.register_buffer("inter_edge", inter_edge, persistent=False)
        self.register_buffer("inter_edge_w", inter_edge_w, persistent=False)

        self.user_embedding = nn.Embedding(n_users, embedding_size)
        self.entity_embedding = nn.Embedding(n_entities, embedding_size)
        self.gcn = ReferenceAttnHGCN(
            embedding_size, context_hops, n_users, n_relations, mess_dropout_rate, self.functions
        )
        self.contrast_fn = ReferenceContrast(embedding_size, tau=cl_tau)
        nn.init.xavier_uniform_(self.user_embedding.weight)
        nn.init.xavier_uniform_(self.entity_embedding.weight)
        for layer in self.contrast_fn.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def edge_sampling(
        self, edge_index: Tensor, edge_type: Tensor, sampling_rate: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """floor(rate * E) of the edges, without replacement."""
        edges = edge_index.shape[1]
        chosen = np.random.choice(edges, size=int(edges * sampling_rate), replace=False)  # noqa: NPY002
        return edge_index[:, chosen], edge_type[chosen]

    def relation_aware_edge_sampling(self, sampling_rate: float = 0.5) -> tuple[Tensor, Tensor]:
        """floor(rate * n_r) of the edges of each relation."""
        parts = []
        for relation in range(self.n_relations - 1):
            of_relation = self.edge_type == relation
            parts.append(
                self.edge_sampling(
                    self.edge_index[:, of_relation], self.edge_type[of_relation], sampling_rate
                )
            )
        return torch.cat([p[0] for p in parts], dim=1), torch.cat([p[1] for p in parts])

    def node_dropout(self, inter_edge: Tensor, inter_edge_w: Tensor) -> tuple[Tensor, Tensor]:
        """Bernoulli dropout of interactions; what stays is scaled up."""
        if not self.training:
            return inter_edge, inter_edge_w
        keep = 1 - self.node_dropout_rate
        kept = torch.rand_like(inter_edge_w) < keep
        return inter_edge[:, kept], inter_edge_w[kept] / keep

    def mae_edge_mask_adapt_mixed(
        self, edge_index: Tensor, edge_type: Tensor, topk_edge_id: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Split the edges: masked are the given ones and as many random ones."""
        edges = edge_index.shape[1]
        mask = np.zeros(edges, dtype=bool)
        mask[topk_edge_id.cpu().numpy()] = True
        mask[np.random.choice(edges, size=topk_edge_id.shape[0], replace=False)] = True  # noqa: NPY002
        masked = torch.from_numpy(mask).to(edge_index.device)
        return (
            edge_index[:, ~masked],
            edge_type[~masked],
            edge_index[:, masked],
            edge_type[masked],
            masked,
        )

    def adaptive_kg_drop_cl(
        self, edge_index: Tensor, edge_type: Tensor, edge_attn_score: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Drop the floor(cl_drop * E) edges with the lowest scores."""
        dropped = int(self.cl_drop * edge_attn_score.shape[0])
        _, lowest = torch.topk(-edge_attn_score, dropped, sorted=False)
        keep = torch.ones_like(edge_attn_score, dtype=torch.bool)
        keep[lowest] = False
        return edge_index[:, keep], edge_type[keep]

    def adaptive_ui_drop_cl(
        self, item_attn_mean: Tensor, inter_edge: Tensor, inter_edge_w: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw floor((1 - cl_drop) * M) interactions, weighted by the noisy scores of items."""
        keep = 1 - self.cl_drop
        count = int(keep * inter_edge_w.shape[0])
        score = item_attn_mean[inter_edge[1]]
        noise = -torch.log(-torch.log(torch.rand_like(score)))
        weight = F.softmax(score + noise, dim=0)
        if self.samp_func == "np":
            p = weight.double().cpu().numpy()
            drawn = np.random.choice(p.shape[0], size=count, replace=False, p=p / p.sum())  # noqa: NPY002
            chosen = torch.from_numpy(drawn).to(inter_edge.device)
        else:
            chosen = torch.multinomial(weight, count, replacement=False)
        return inter_edge[:, chosen], inter_edge_w[chosen] / keep

    def create_mae_loss(
        self, node_pair_emb: Tensor, masked_edge_emb: Tensor | None = None
    ) -> Tensor:
        """Mean of -log sigmoid(<head, tail * relation>) of pairs [m, 2, D]."""
        head, tail = node_pair_emb[:, 0, :], node_pair_emb[:, 1, :]
        if masked_edge_emb is not None:
            tail = tail * masked_edge_emb
        return -torch.log(torch.sigmoid((tail * head).sum(1))).mean()

    def item_scores(self, edge_index: Tensor, score: Tensor) -> Tensor:
        """Score [n_items] of each item: half the mean by head, half the mean by tail."""
        means = []
        for end in edge_index:
            mean = self.functions.scatter_mean(score, end, dim=0, dim_size=self.n_entities)
            mean[mean == 0.0] = 1.0
            means.append(mean)
        return (0.5 * means[0] + 0.5 * means[1])[: self.n_items]

    def forward(self, choice: StepChoice | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Propagate; returns (users, entities, reconstruction loss, contrast loss)."""
        choice = choice or StepChoice()
        user_emb, entity_emb = self.user_embedding.weight, self.entity_embedding.weight

        edge_index, edge_type = self.edge_index, self.edge_type
        inter_edge, inter_edge_w = self.inter_edge, self.inter_edge_w
        if choice.sampled_edges is not None:
            edge_index, edge_type = self._edges(choice.sampled_edges)
        elif self.node_dropout_rate > 0:
            edge_index, edge_type = self.relation_aware_edge_sampling(self.node_dropout_rate)
        if choice.kept_interactions is not None:
            inter_edge, inter_edge_w = self._interactions(choice.kept_interactions)
        elif self.node_dropout_rate > 0:
            inter_edge, inter_edge_w = self.node_dropout(inter_edge, inter_edge_w)

        score = self.gcn.norm_attn_computer(entity_emb, edge_index, edge_type)
        item_score = self.item_scores(edge_index, score)
        noisy = score - torch.log(-torch.log(torch.rand_like(score)))

        if choice.masked_edges is not None:
            masked = self._among(choice.sampled_edges, choice.masked_edges)
            enc_index, enc_type = edge_index[:, ~masked], edge_type[~masked]
            masked_index, masked_type = edge_index[:, masked], edge_type[masked]
        else:
            _, top = torch.topk(noisy, self.mae_msize, sorted=False)
            enc_index, enc_type, masked_index, masked_type, _ = self.mae_edge_mask_adapt_mixed(
                edge_index, edge_type, top
            )
        user_gcn_emb, entity_gcn_emb = self.gcn(
            user_emb,
            entity_emb,
            enc_index,
            enc_type,
            inter_edge,
            inter_edge_w,
            dropout=choice.dropout,
        )
        mae_loss = self.create_mae_loss(
            entity_gcn_emb[masked_index.t()], self.gcn.relation_embedding(masked_type)
        )

        if choice.contrast_edges is not None:
            kg_index, kg_type = self._edges(choice.contrast_edges)
        else:
            kg_index, kg_type = self.adaptive_kg_drop_cl(edge_index, edge_type, noisy)
        if choice.contrast_interactions is not None:
            ui_edge, ui_w = self._interactions(choice.contrast_interactions)
            ui_w = ui_w / (1 - self.cl_drop)
        else:
            ui_edge, ui_w = self.adaptive_ui_drop_cl(item_score, inter_edge, inter_edge_w)
        items = self.n_items
        view_ui = self.gcn.forward_ui(user_emb, entity_emb[:items], ui_edge, ui_w, choice.dropout)
        view_kg = self.gcn.forward_kg(entity_emb, kg_index, kg_type, choice.dropout)[:items]
        cl_loss = self.contrast_fn(view_ui, view_kg, choice.permutation)
        return user_gcn_emb, entity_gcn_emb, mae_loss, cl_loss

    def _edges(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.edge_index[:, ids], self.edge_type[ids]

    def _interactions(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        keep = 1 - self.node_dropout_rate if self.training else 1.0
        return self.inter_edge[:, ids], self.inter_edge_w[ids] / keep

    def _among(self, sampled: Tensor | None, ids: Tensor) -> Tensor:
        if sampled is None:
            sampled = torch.arange(self.edge_type.shape[0], device=ids.device)
        return torch.isin(sampled, ids)

    def calculate_loss(
        self, batch: Mapping[str, Tensor], choice: StepChoice | None = None
    ) -> Tensor:
        """Total loss (scalar) of a batch of (user, item, negative item)."""
        users, entities, mae_loss, cl_loss = self.forward(choice)
        user = users[batch["user_id"]]
        positive = entities[batch["item_id"]]
        negative = entities[batch["neg_item_id"]]
        gap = (user * positive).sum(1) - (user * negative).sum(1)
        bpr = -torch.log(1e-10 + torch.sigmoid(gap)).mean()
        squares = torch.stack([x.pow(2).sum() for x in (user, positive, negative)])
        reg = squares.sum() / 2 / user.shape[0]
        return bpr + self.reg_weight * reg + self.mae_coef * mae_loss + self.cl_coef * cl_loss

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Users and entities propagated over the whole graphs."""
        propagated: tuple[Tensor, Tensor] = self.gcn(
            self.user_embedding.weight,
            self.entity_embedding.weight,
            self.edge_index,
            self.edge_type,
            self.inter_edge,
            self.inter_edge_w,
        )
        return propagated

    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores [B] of pairs."""
        users, entities = self.embeddings()
        return (users[batch["user_id"]] * entities[batch["item_id"]]).sum(1)

    def full_sort_predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Scores [B * n_items] of all items for each user."""
        users, entities = self.embeddings()
        return (users[batch["user_id"]] @ entities[: self.n_items].t()).view(-1)
