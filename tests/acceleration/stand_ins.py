"""Layers with the interfaces of hopwise and of the paper's code, in plain PyTorch on edge lists."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USERS, ITEMS, NODES, RELATIONS, WIDTH = 7, 9, 40, 5, 8  # one relation is the interaction


def total(src: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums of the rows of ``src`` with the same index, [size, ..]."""
    return src.new_zeros(size, *src.shape[1:]).index_add(0, index, src)


def softmax(src: Tensor, index: Tensor) -> Tensor:
    """Softmax over the rows of ``src`` with the same index."""
    size = int(index.max()) + 1 if index.numel() else 0
    spread = index.view(-1, *[1] * (src.dim() - 1)).expand_as(src)
    top = src.new_full((size, *src.shape[1:]), -math.inf).scatter_reduce(
        0, spread, src.detach(), "amax"
    )
    weight = (src - top[index]).exp()
    return weight / total(weight, index, size)[index]


class Formulas(nn.Module):
    """One hop of each kind, with the embedding of each edge's relation given."""

    W_Q: nn.Parameter
    n_heads: int
    d_k: int

    def logits(self, x: Tensor, edge_index: Tensor, relation: Tensor | None) -> Tensor:
        """[E, heads]."""
        query, key = (x[end] @ self.W_Q for end in edge_index)
        product = query * key if relation is None else query * key * relation
        return product.unflatten(1, (self.n_heads, self.d_k)).sum(-1) / math.sqrt(self.d_k)

    def attend(self, x: Tensor, edge_index: Tensor, relation: Tensor) -> Tensor:
        attention = softmax(self.logits(x, edge_index, relation), edge_index[0])
        message = (x[edge_index[1]] * relation).unflatten(1, (self.n_heads, self.d_k))
        return total((message * attention.unsqueeze(-1)).flatten(1), edge_index[0], x.shape[0])

    def mean(self, x: Tensor, edge_index: Tensor, relation: Tensor) -> Tensor:
        count = torch.bincount(edge_index[0], minlength=x.shape[0]).clamp(min=1)
        return total(x[edge_index[1]] * relation, edge_index[0], x.shape[0]) / count.unsqueeze(1)

    def to_users(self, user_emb: Tensor, items: Tensor, inter: Tensor, weight: Tensor) -> Tensor:
        return total(weight.unsqueeze(1) * items[inter[1]], inter[0], user_emb.shape[0])

    def to_items(self, user_emb: Tensor, items: Tensor, inter: Tensor, weight: Tensor) -> Tensor:
        return total(weight.unsqueeze(1) * user_emb[inter[0]], inter[1], items.shape[0])

    def attended_weight(self, weight: Tensor, item_attn: Tensor | None, inter: Tensor) -> Tensor:
        if item_attn is None:
            return weight
        degree = torch.bincount(inter[0])[inter[0]]
        return weight * softmax(item_attn[inter[1]], inter[0]) * degree

    def scores(self, x: Tensor, edge_index: Tensor, relation: Tensor | None) -> tuple:
        logits = self.logits(x, edge_index, relation).mean(-1)
        head = edge_index[0]
        return softmax(logits, head) * torch.bincount(head)[head], logits


class HopwiseLike(Formulas):
    """The interface of hopwise's AttnHGCN."""

    def __init__(self, embedding_size, n_hops, n_users, n_relations, mess_dropout_rate=0.1):
        super().__init__()
        self.embedding_size, self.n_hops, self.n_users = embedding_size, n_hops, n_users
        self.n_relations, self.mess_dropout_rate = n_relations, mess_dropout_rate
        self.relation_embedding = nn.Embedding(n_relations - 1, embedding_size)
        self.W_Q = nn.Parameter(torch.randn(embedding_size, embedding_size) / 3)
        self.n_heads = 2
        self.d_k = embedding_size // 2
        self.mess_dropout = nn.Dropout(p=mess_dropout_rate)

    def finish(self, x):
        return F.normalize(self.mess_dropout(x) if self.mess_dropout_rate > 0 else x)

    def shared_layer_agg(
        self, user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w
    ):
        relation = self.relation_embedding(edge_type)
        return (
            self.attend(entity_emb, edge_index, relation),
            self.to_users(user_emb, entity_emb, inter_edge, inter_edge_w),
        )

    def forward(
        self, user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w, item_attn=None
    ):
        weight = self.attended_weight(inter_edge_w, item_attn, inter_edge)
        user_sum, entity_sum = user_emb, entity_emb
        for _ in range(self.n_hops):
            hop = self.shared_layer_agg(
                user_emb, entity_emb, edge_index, edge_type, inter_edge, weight
            )
            entity_emb, user_emb = map(self.finish, hop)
            user_sum, entity_sum = user_sum + user_emb, entity_sum + entity_emb
        return user_sum, entity_sum

    def ui_agg(self, user_emb, item_emb, inter_edge, inter_edge_w):
        arguments = (user_emb, item_emb, inter_edge, inter_edge_w)
        return self.to_users(*arguments), self.to_items(*arguments)

    def forward_ui(self, user_emb, item_emb, inter_edge, inter_edge_w):
        item_sum = item_emb
        for _ in range(self.n_hops):
            hop = self.ui_agg(user_emb, item_emb, inter_edge, inter_edge_w)
            user_emb, item_emb = map(self.finish, hop)
            item_sum = item_sum + item_emb
        return item_sum

    def kg_agg(self, entity_emb, edge_index, edge_type):
        return self.mean(entity_emb, edge_index, self.relation_embedding(edge_type))

    def forward_kg(self, entity_emb, edge_index, edge_type):
        entity_sum = entity_emb
        for _ in range(self.n_hops):
            entity_emb = self.finish(self.kg_agg(entity_emb, edge_index, edge_type))
            entity_sum = entity_sum + entity_emb
        return entity_sum

    @torch.no_grad()
    def norm_attn_computer(self, entity_emb, edge_index, edge_type=None, return_logits=False):
        relation = None if edge_type is None else self.relation_embedding(edge_type)
        scores, logits = self.scores(entity_emb, edge_index, relation)
        return (scores, logits) if return_logits else scores


class PaperLike(Formulas):
    """The interface of the paper's AttnHGCN: ids from 1, entities first, a switch for dropout."""

    def __init__(
        self, channel, n_hops, n_users, n_relations, node_dropout_rate=0.5, mess_dropout_rate=0.1
    ):
        super().__init__()
        self.logger = logging.getLogger("paper_like")
        self.n_hops, self.n_users, self.n_relations = n_hops, n_users, n_relations
        self.node_dropout_rate, self.mess_dropout_rate = node_dropout_rate, mess_dropout_rate
        self.relation_emb = nn.Parameter(torch.randn(n_relations - 1, channel))
        self.W_Q = nn.Parameter(torch.randn(channel, channel) / 3)
        self.n_heads = 2
        self.d_k = channel // 2
        self.dropout = nn.Dropout(p=mess_dropout_rate)

    def finish(self, x, mess_dropout):
        return F.normalize(self.dropout(x) if mess_dropout else x)

    def non_attn_agg(
        self, user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w, relation_emb
    ):
        return (
            self.mean(entity_emb, edge_index, relation_emb[edge_type - 1]),
            self.to_users(user_emb, entity_emb, inter_edge, inter_edge_w),
        )

    def shared_layer_agg(
        self, user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w, relation_emb
    ):
        return (
            self.attend(entity_emb, edge_index, relation_emb[edge_type - 1]),
            self.to_users(user_emb, entity_emb, inter_edge, inter_edge_w),
        )

    def forward(
        self,
        user_emb,
        entity_emb,
        edge_index,
        edge_type,
        inter_edge,
        inter_edge_w,
        mess_dropout=True,
        item_attn=None,
    ):
        weight = self.attended_weight(inter_edge_w, item_attn, inter_edge)
        user_sum, entity_sum = user_emb, entity_emb
        for _ in range(self.n_hops):
            entity_emb, user_emb = self.shared_layer_agg(
                *(user_emb, entity_emb, edge_index, edge_type, inter_edge, weight),
                self.relation_emb,
            )
            entity_emb = self.finish(entity_emb, mess_dropout)
            user_emb = self.finish(user_emb, mess_dropout)
            user_sum, entity_sum = user_sum + user_emb, entity_sum + entity_emb
        return entity_sum, user_sum

    def forward_ui(self, user_emb, item_emb, inter_edge, inter_edge_w, mess_dropout=True):
        item_sum = item_emb
        for _ in range(self.n_hops):
            user_emb, item_emb = self.ui_agg(user_emb, item_emb, inter_edge, inter_edge_w)
            item_emb = self.finish(item_emb, mess_dropout)
            user_emb = self.finish(user_emb, mess_dropout)
            item_sum = item_sum + item_emb
        return item_sum

    def forward_kg(self, entity_emb, edge_index, edge_type, mess_dropout=True):
        entity_sum = entity_emb
        for _ in range(self.n_hops):
            entity_emb = self.finish(self.kg_agg(entity_emb, edge_index, edge_type), mess_dropout)
            entity_sum = entity_sum + entity_emb
        return entity_sum

    def ui_agg(self, user_emb, item_emb, inter_edge, inter_edge_w):
        arguments = (user_emb, item_emb, inter_edge, inter_edge_w)
        return self.to_users(*arguments), self.to_items(*arguments)

    def kg_agg(self, entity_emb, edge_index, edge_type):
        return self.mean(entity_emb, edge_index, self.relation_emb[edge_type - 1])

    @torch.no_grad()
    def norm_attn_computer(
        self, entity_emb, edge_index, edge_type=None, print=False, return_logits=False
    ):
        relation = None if edge_type is None else self.relation_emb[edge_type - 1]
        scores, logits = self.scores(entity_emb, edge_index, relation)
        if print:
            self.logger.info("spread of scores: %s", scores.std())
        return (scores, logits) if return_logits else scores


class ContrastLike(nn.Module):
    """The interface of Contrast, which both code bases share."""

    def __init__(self, num_hidden, tau=0.7):
        super().__init__()
        self.tau = tau
        self.mlp1, self.mlp2 = (
            nn.Sequential(
                nn.Linear(num_hidden, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_hidden)
            )
            for _ in range(2)
        )

    def self_sim(self, z1, z2):
        return F.cosine_similarity(z1, z2)

    def loss(self, z1, z2):
        other = torch.randperm(z1.shape[0])
        positive, forth, back = (
            torch.exp(self.self_sim(*pair) / self.tau)
            for pair in ((z1, z2), (z1, z2[other]), (z2, z1[other]))
        )
        return -torch.log(positive / (2 * positive + forth + back))

    def forward(self, z1, z2):
        return self.loss(self.mlp1(z1), self.mlp2(z2)).mean()


@dataclass
class Edges:
    """Edge lists with everything that is awkward, and embeddings."""

    edge_index: Tensor
    edge_type: Tensor  # from 0
    inter_edge: Tensor
    inter_edge_w: Tensor
    users: Tensor
    entities: Tensor
    item_attn: Tensor

    @classmethod
    def make(cls, dtype: torch.dtype = torch.float64) -> Edges:
        """Heads are nodes 0..11, user 6 and item 8 have no interaction, node 3 is its own tail."""
        generator = torch.Generator().manual_seed(5)

        def integers(high: int, count: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        edge_index = torch.stack([integers(12, 80), integers(NODES - 3, 80)])
        edge_index[:, 0] = 3
        edge_index[:, 2] = edge_index[:, 1]
        pairs = torch.randperm((USERS - 1) * (ITEMS - 1), generator=generator)[:25]
        inter_edge = torch.stack([pairs // (ITEMS - 1), pairs % (ITEMS - 1)])
        weight = normal(25).abs() + 0.1
        return cls(
            edge_index,
            integers(RELATIONS - 1, 80),
            inter_edge,
            weight,
            *(normal(USERS, WIDTH), normal(NODES, WIDTH), normal(ITEMS)),
        )


class Model(nn.Module):
    """A recommender in the form of both: embeddings, graph layers, contrast, three losses."""

    def __init__(self, paper: bool, mess_dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.paper = paper
        self.user_embedding = nn.Embedding(USERS, WIDTH)
        self.entity_embedding = nn.Embedding(NODES, WIDTH)
        kind = PaperLike if paper else HopwiseLike
        self.gcn = kind(WIDTH, 2, USERS, RELATIONS, mess_dropout_rate=mess_dropout_rate)
        self.contrast_fn = ContrastLike(WIDTH)

    def forward(self, edges: Edges) -> Tensor:
        users, entities = self.user_embedding.weight, self.entity_embedding.weight
        types = edges.edge_type + int(self.paper)
        inter = edges.inter_edge, edges.inter_edge_w.to(users.dtype)
        out = self.gcn(users, entities, edges.edge_index, types, *inter)
        user_out, entity_out = out[::-1] if self.paper else out
        view_ui = self.gcn.forward_ui(users, entities[:ITEMS], *inter)
        view_kg = self.gcn.forward_kg(entities, edges.edge_index, types)[:ITEMS]
        pairs = (user_out[inter[0][0]] * entity_out[inter[0][1]]).sum(1)
        scores = self.gcn.norm_attn_computer(entities, edges.edge_index, types)
        assert scores.shape == types.shape
        return -F.logsigmoid(pairs).mean() + 0.1 * self.contrast_fn(view_ui, view_kg)
