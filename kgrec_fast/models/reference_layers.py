"""Graph layers and contrast of KGRec in plain PyTorch on edge lists, as published.

They gather one row per edge and scatter the results back. They share no code with
:mod:`kgrec_fast.ops` or :mod:`kgrec_fast.nn`, which makes them the oracle of their tests. What
scatters can be put in from outside (:class:`EdgeFunctions`), so that a benchmark can plug in the
functions of ``torch_scatter`` and ``torch_geometric``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scatter_sum(src: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None) -> Tensor:
    """Sum the slices of ``src`` [E, ...] that share an index into [dim_size, ...]."""
    size = int(index.max()) + 1 if dim_size is None else dim_size
    return src.new_zeros((size, *src.shape[1:])).index_add(dim, index, src)


def scatter_mean(src: Tensor, index: Tensor, dim: int = 0, dim_size: int | None = None) -> Tensor:
    """Mean of the slices of ``src`` [E, ...] that share an index; 0 where there is none."""
    total = scatter_sum(src, index, dim, dim_size)
    count = torch.bincount(index, minlength=total.shape[0]).clamp(min=1).to(src.dtype)
    return total / count.view(-1, *[1] * (src.dim() - 1))


def softmax(src: Tensor, index: Tensor, num_nodes: int | None = None) -> Tensor:
    """Softmax of ``src`` [E, ...] over the slices that share an index."""
    size = int(index.max()) + 1 if num_nodes is None else num_nodes
    spread = index.view(-1, *[1] * (src.dim() - 1)).expand_as(src)
    top = src.detach().new_full((size, *src.shape[1:]), -math.inf)
    top = top.scatter_reduce(0, spread, src.detach(), "amax")
    weight = (src - top[index]).exp()
    return weight / scatter_sum(weight, index, 0, size)[index]


@dataclass(frozen=True)
class EdgeFunctions:
    """The three functions that the published code takes from other libraries.

    Attributes:
        scatter_sum: Called as ``scatter_sum(src, index, dim=0, dim_size=n)``.
        scatter_mean: Called as ``scatter_mean(src, index, dim=0, dim_size=n)``.
        softmax: Called as ``softmax(src, index, num_nodes=n)``.
    """

    scatter_sum: Callable[..., Tensor] = scatter_sum
    scatter_mean: Callable[..., Tensor] = scatter_mean
    softmax: Callable[..., Tensor] = softmax


class ReferenceContrast(nn.Module):
    """Contrast of two views of the items, as published; see :class:`kgrec_fast.nn.Contrast`."""

    def __init__(self, num_hidden: int, tau: float = 0.7) -> None:
        super().__init__()
        self.tau = tau
        self.mlp1 = self._mlp(num_hidden)
        self.mlp2 = self._mlp(num_hidden)

    @staticmethod
    def _mlp(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def sim(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Cosine similarity of every row of ``z1`` [n, D] with every row of ``z2`` [m, D]."""
        return F.normalize(z1) @ F.normalize(z2).t()

    def self_sim(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Cosine similarity [n] of rows with the same number."""
        return (F.normalize(z1) * F.normalize(z2)).sum(1)

    def loss(self, z1: Tensor, z2: Tensor, permutation: Tensor | None = None) -> Tensor:
        """Loss [n] of each row; one row drawn for each is the negative, in both directions."""
        other = torch.randperm(z1.shape[0]) if permutation is None else permutation
        # A row of zeros gets no gradient, where torch's normalize has 1e12 times the incoming one.
        z1, z2 = (torch.where((z == 0).all(1, keepdim=True), z.detach(), z) for z in (z1, z2))
        positive = torch.exp(self.self_sim(z1, z2) / self.tau)
        forth = torch.exp(self.self_sim(z1, z2[other]) / self.tau)
        back = torch.exp(self.self_sim(z2, z1[other]) / self.tau)
        # The positive stands twice in the denominator: so it is in the published code.
        return -torch.log(positive / (positive + positive + forth + back))

    def forward(self, z1: Tensor, z2: Tensor, permutation: Tensor | None = None) -> Tensor:
        """Mean loss (scalar) of two views [n, D]."""
        return self.loss(self.mlp1(z1), self.mlp2(z2), permutation).mean()


class ReferenceAttnHGCN(nn.Module):
    """Graph layers of KGRec on edge lists; see :class:`kgrec_fast.nn.AttnHGCN`.

    ``dropout`` in its methods is :attr:`kgrec_fast.models.reference.StepChoice.dropout`.
    """

    def __init__(
        self,
        embedding_size: int,
        n_hops: int,
        n_users: int,
        n_relations: int,
        mess_dropout_rate: float = 0.1,
        functions: EdgeFunctions | None = None,
    ) -> None:
        super().__init__()
        self.n_hops = n_hops
        self.n_users = n_users
        self.mess_dropout_rate = mess_dropout_rate
        self.n_heads = 2
        self.d_k = embedding_size // self.n_heads
        self.functions = functions or EdgeFunctions()
        self.relation_embedding = nn.Embedding(n_relations - 1, embedding_size)
        self.W_Q = nn.Parameter(torch.empty(embedding_size, embedding_size))
        nn.init.xavier_uniform_(self.relation_embedding.weight)
        nn.init.xavier_uniform_(self.W_Q)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(-1, self.n_heads, self.d_k)

    def _finish(self, x: Tensor, key: str, dropout: Mapping[str, Tensor] | None) -> Tensor:
        """Message dropout, then rows of length one."""
        if dropout is not None:
            x = x * dropout[key].to(x.dtype) / (1 - self.mess_dropout_rate)
        elif self.mess_dropout_rate > 0:
            x = F.dropout(x, self.mess_dropout_rate, self.training)
        return F.normalize(x)

    def shared_layer_agg(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One hop: relation attention on the KG, weighted sums of items for the users."""
        head, tail = edge_index
        nodes = entity_emb.shape[0]
        # Gathered and projected edge by edge, twice where it is read twice: so it is published.
        query = self._heads(entity_emb[head] @ self.W_Q)
        key = self._heads(entity_emb[tail] @ self.W_Q)
        key = key * self._heads(self.relation_embedding(edge_type))
        score = (query * key).sum(dim=-1) / math.sqrt(self.d_k)
        score = self.functions.softmax(score, head, num_nodes=nodes)

        value = self._heads(entity_emb[tail] * self.relation_embedding(edge_type))
        value = (value * score.unsqueeze(-1)).view(-1, self.n_heads * self.d_k)
        entity_agg = self.functions.scatter_sum(value, head, dim=0, dim_size=nodes)

        item = inter_edge_w.unsqueeze(-1) * entity_emb[inter_edge[1]]
        users = user_emb.shape[0]
        return entity_agg, self.functions.scatter_sum(item, inter_edge[0], dim=0, dim_size=users)

    def forward(
        self,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
        item_attn: Tensor | None = None,
        dropout: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All hops with residual sums; returns (users, entities)."""
        if item_attn is not None:
            user, users = inter_edge[0], user_emb.shape[0]
            attn = self.functions.softmax(item_attn[inter_edge[1]], user, num_nodes=users)
            degree = self.functions.scatter_sum(torch.ones_like(user), user, dim=0, dim_size=users)
            inter_edge_w = inter_edge_w * attn * degree[user]

        user_res, entity_res = user_emb, entity_emb
        for hop in range(self.n_hops):
            entity_emb, user_emb = self.shared_layer_agg(
                user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w
            )
            entity_emb = self._finish(entity_emb, f"rec/entity/{hop}", dropout)
            user_emb = self._finish(user_emb, f"rec/user/{hop}", dropout)
            user_res = user_res + user_emb
            entity_res = entity_res + entity_emb
        return user_res, entity_res

    def forward_ui(
        self,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
        dropout: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The user-item view of the items."""
        item_res = item_emb
        for hop in range(self.n_hops):
            user_emb, item_emb = self.ui_agg(user_emb, item_emb, inter_edge, inter_edge_w)
            item_emb = self._finish(item_emb, f"ui/item/{hop}", dropout)
            user_emb = self._finish(user_emb, f"ui/user/{hop}", dropout)
            item_res = item_res + item_emb
        return item_res

    def forward_kg(
        self,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        dropout: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The KG view of the entities."""
        entity_res = entity_emb
        for hop in range(self.n_hops):
            entity_emb = self.kg_agg(entity_emb, edge_index, edge_type)
            entity_emb = self._finish(entity_emb, f"kg/entity/{hop}", dropout)
            entity_res = entity_res + entity_emb
        return entity_res

    def ui_agg(
        self, user_emb: Tensor, item_emb: Tensor, inter_edge: Tensor, inter_edge_w: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted sums of items for the users and of users for the items, both from the old."""
        user, item = inter_edge
        weight = inter_edge_w.unsqueeze(-1)
        user_agg = self.functions.scatter_sum(
            weight * item_emb[item], user, dim=0, dim_size=user_emb.shape[0]
        )
        item_agg = self.functions.scatter_sum(
            weight * user_emb[user], item, dim=0, dim_size=item_emb.shape[0]
        )
        return user_agg, item_agg

    def kg_agg(self, entity_emb: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        """Relation mean."""
        head, tail = edge_index
        value = entity_emb[tail] * self.relation_embedding(edge_type)
        return self.functions.scatter_mean(value, head, dim=0, dim_size=entity_emb.shape[0])

    @overload
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor | None = None,
        return_logits: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor | None = None,
        *,
        return_logits: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def norm_attn_computer(
        self,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor | None = None,
        return_logits: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rationale scores [E], and with ``return_logits`` the logits [E]."""
        head, tail = edge_index
        nodes = entity_emb.shape[0]
        query = self._heads(entity_emb[head] @ self.W_Q)
        key = self._heads(entity_emb[tail] @ self.W_Q)
        if edge_type is not None:
            key = key * self._heads(self.relation_embedding(edge_type))
        logits = ((query * key).sum(dim=-1) / math.sqrt(self.d_k)).mean(-1)
        score = self.functions.softmax(logits, head, num_nodes=nodes)
        degree = self.functions.scatter_sum(torch.ones_like(head), head, dim=0, dim_size=nodes)
        score = score * degree[head]
        return (score, logits) if return_logits else score
