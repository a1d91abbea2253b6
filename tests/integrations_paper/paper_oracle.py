"""The paper's model in plain PyTorch on edge lists, and a small world for it to live in.

Parameters have the published names, shapes and order. Nothing here stands on kgrec_fast but the
record of a step's random choices.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.sparse import coo_matrix
from torch import Tensor, nn

from kgrec_fast.models.reference import StepChoice


def sum_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums of the rows of ``values`` with the same index."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def mean_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Means of the rows with the same index, 0 where there is none."""
    count = torch.bincount(index, minlength=size).clamp(min=1)
    return sum_by(values, index, size) / count.view(-1, *[1] * (values.dim() - 1))


def softmax_by(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the rows with the same index. For numbers that do not overflow."""
    weight = values.exp()
    return weight / sum_by(weight, index, size)[index]


class PlainLayer(nn.Module):
    """The formulas of one hop; relations count from 1."""

    def __init__(self, width: int, n_hops: int, n_relations: int, rate: float = 0.0) -> None:
        super().__init__()
        self.relation_emb = nn.Parameter(torch.empty(n_relations - 1, width))
        self.W_Q = nn.Parameter(torch.empty(width, width))
        nn.init.xavier_uniform_(self.relation_emb)
        nn.init.xavier_uniform_(self.W_Q)
        self.n_hops, self.rate = n_hops, rate

    def scores(self, x: Tensor, edges: Tensor, kinds: Tensor | None) -> Tensor:
        """[E, 2] attention scores before the softmax."""
        projected = (x @ self.W_Q).unflatten(1, (2, -1))
        product = projected[edges[0]] * projected[edges[1]]
        if kinds is not None:
            product = product * self.relation_emb[kinds - 1].unflatten(1, (2, -1))
        return product.sum(-1) / product.shape[-1] ** 0.5

    def attention(
        self, x: Tensor, edges: Tensor, kinds: Tensor, relation: Tensor | None = None
    ) -> Tensor:
        relation = self.relation_emb if relation is None else relation
        projected = (x @ self.W_Q).unflatten(1, (2, -1))
        rel = relation[kinds - 1]
        score = (projected[edges[0]] * projected[edges[1]] * rel.unflatten(1, (2, -1))).sum(-1)
        weight = softmax_by(score / projected.shape[-1] ** 0.5, edges[0], len(x))
        message = (x[edges[1]] * rel).unflatten(1, (2, -1)) * weight.unsqueeze(-1)
        return sum_by(message.flatten(1), edges[0], len(x))

    def mean(
        self, x: Tensor, edges: Tensor, kinds: Tensor, relation: Tensor | None = None
    ) -> Tensor:
        relation = self.relation_emb if relation is None else relation
        return mean_by(x[edges[1]] * relation[kinds - 1], edges[0], len(x))

    def to_users(self, items: Tensor, pairs: Tensor, weight: Tensor, users: int) -> Tensor:
        return sum_by(items[pairs[1]] * weight.unsqueeze(1), pairs[0], users)

    def to_items(self, users: Tensor, pairs: Tensor, weight: Tensor, items: int) -> Tensor:
        return sum_by(users[pairs[0]] * weight.unsqueeze(1), pairs[1], items)

    def finish(self, x: Tensor, kept: Any, place: str) -> Tensor:
        if kept is not None:
            x = x * kept[place] / (1 - self.rate)
        return F.normalize(x)

    def rec(
        self,
        users: Tensor,
        x: Tensor,
        edges: Tensor,
        kinds: Tensor,
        pairs: Tensor,
        weight: Tensor,
        kept: Any = None,
        item_attn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Entities, then users."""
        if item_attn is not None:
            share = softmax_by(item_attn[pairs[1]], pairs[0], len(users))
            weight = weight * share * torch.bincount(pairs[0], minlength=len(users))[pairs[0]]
        total, total_users, count = x, users, len(users)
        for hop in range(self.n_hops):
            of_users = self.to_users(x, pairs, weight, count)
            x = self.finish(self.attention(x, edges, kinds), kept, f"rec/entity/{hop}")
            total = total + x
            total_users = total_users + self.finish(of_users, kept, f"rec/user/{hop}")
        return total, total_users

    def ui(
        self, users: Tensor, items: Tensor, pairs: Tensor, weight: Tensor, kept: Any = None
    ) -> Tensor:
        total = items
        for hop in range(self.n_hops):
            of_users = self.to_users(items, pairs, weight, len(users))
            of_items = self.to_items(users, pairs, weight, len(items))
            users = self.finish(of_users, kept, f"ui/user/{hop}")
            items = self.finish(of_items, kept, f"ui/item/{hop}")
            total = total + items
        return total

    def kg(self, x: Tensor, edges: Tensor, kinds: Tensor, kept: Any = None) -> Tensor:
        total = x
        for hop in range(self.n_hops):
            x = self.finish(self.mean(x, edges, kinds), kept, f"kg/entity/{hop}")
            total = total + x
        return total

    def rationale(self, x: Tensor, edges: Tensor, kinds: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and logits."""
        logits = self.scores(x, edges, kinds).mean(1)
        degree = torch.bincount(edges[0], minlength=len(x))[edges[0]]
        return softmax_by(logits, edges[0], len(x)) * degree, logits


class PlainContrast(nn.Module):
    def __init__(self, width: int, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.mlp1, self.mlp2 = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(2)
        )

    def forward(self, first: Tensor, second: Tensor, other: Tensor) -> Tensor:
        a, b = F.normalize(self.mlp1(first)), F.normalize(self.mlp2(second))
        same = ((a * b).sum(1) / self.tau).exp()
        forth = ((a * b[other]).sum(1) / self.tau).exp()
        back = ((b * a[other]).sum(1) / self.tau).exp()
        return -(same / (2 * same + forth + back)).log().mean()


@dataclass
class PaperWorld:
    """Data as the paper's loader hands them over: relations from 1, weights 1 / degree."""

    edges: Tensor
    kinds: Tensor
    pairs: Tensor
    n_users: int = 9
    n_items: int = 12
    n_entities: int = 40
    n_relations: int = 7

    @property
    def data_config(self) -> dict[str, int]:
        names = ("n_users", "n_items", "n_entities", "n_relations")
        sizes = {name: getattr(self, name) for name in names}
        return sizes | {"n_nodes": self.n_users + self.n_entities}

    @property
    def weight(self) -> Tensor:
        degree = torch.bincount(self.pairs[0], minlength=self.n_users)
        return (1 / degree)[self.pairs[0]].double()  # rounded to float32, as published

    @property
    def adj_mat(self) -> coo_matrix:
        shape = (self.n_users, self.n_entities)
        return coo_matrix((self.weight.numpy(), tuple(self.pairs.numpy())), shape=shape)

    @property
    def triples(self) -> Tensor:
        return torch.cat([self.edges, self.kinds[None]]).t()

    def batch(self, size: int = 16, start: int = 1) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(size)
        highs = {"users": self.n_users, "pos_items": self.n_items, "neg_items": self.n_items}
        drawn = {n: torch.randint(h, (size,), generator=generator) for n, h in highs.items()}
        return drawn | {"batch_start": start}


def arguments(**changed: Any) -> Namespace:
    """The command line of the paper's code, on small embeddings."""
    given = {
        "dataset": "small", "l2": 1e-5, "dim": 8, "context_hops": 2, "node_dropout": 1,
        "node_dropout_rate": 0.5, "mess_dropout": 1, "mess_dropout_rate": 0.2, "cuda": 0,
        "gpu_id": 0, "ab": None, "mae_coef": 0.1, "mae_msize": 6, "cl_coef": 0.01, "cl_tau": 1.0,
        "cl_drop_ratio": 0.5,
    }  # fmt: skip
    return Namespace(**(given | changed))


class PlainModel(nn.Module):
    """The loss of the paper's code under given choices."""

    def __init__(self, world: PaperWorld, args: Namespace) -> None:
        super().__init__()
        self.world, self.args = world, args
        self.all_embed = nn.Parameter(torch.empty(world.n_users + world.n_entities, args.dim))
        nn.init.xavier_uniform_(self.all_embed)
        self.gcn = PlainLayer(
            args.dim, args.context_hops, world.n_relations, args.mess_dropout_rate
        )
        self.contrast_fn = PlainContrast(args.dim, args.cl_tau)

    def tables(self) -> tuple[Tensor, Tensor]:
        return self.all_embed[: self.world.n_users], self.all_embed[self.world.n_users :]

    def parts(self, batch: dict[str, Any], choice: StepChoice) -> tuple[Tensor, Tensor, Tensor]:
        """BPR with L2, reconstruction, contrast; weighted."""
        world, args = self.world, self.args
        users, x = self.tables()
        edges, kinds = world.edges, world.kinds
        encoded = choice.sampled_edges[~torch.isin(choice.sampled_edges, choice.masked_edges)]
        kept = choice.kept_interactions
        weight = world.weight / args.node_dropout_rate
        entities, users_out = self.gcn.rec(
            users, x, edges[:, encoded], kinds[encoded], world.pairs[:, kept], weight[kept],
            choice.dropout if args.mess_dropout else None,
        )  # fmt: skip
        u, p = users_out[batch["users"]], entities[batch["pos_items"]]
        n = entities[batch["neg_items"]]
        bpr = -F.logsigmoid((u * p).sum(1) - (u * n).sum(1)).mean()
        penalty = (u.norm() ** 2 + p.norm() ** 2 + n.norm() ** 2) / 2 / len(u)

        head, tail = edges[:, choice.masked_edges]
        rel = self.gcn.relation_emb[kinds[choice.masked_edges] - 1]
        mae = -torch.sigmoid((entities[head] * entities[tail] * rel).sum(1)).log().mean()

        seen = choice.contrast_interactions
        view_ui = self.gcn.ui(
            users, x[: world.n_items], world.pairs[:, seen],
            weight[seen] / (1 - args.cl_drop_ratio), choice.dropout,
        )  # fmt: skip
        few = choice.contrast_edges
        view_kg = self.gcn.kg(x, edges[:, few], kinds[few], choice.dropout)[: world.n_items]
        contrast = self.contrast_fn(view_ui, view_kg, choice.permutation)
        return bpr + args.l2 * penalty, args.mae_coef * mae, args.cl_coef * contrast

    def generate(self, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Entities and users, on the edges ``chosen``."""
        world, users_and_entities = self.world, self.tables()
        some = slice(None) if chosen is None else chosen
        edges, kinds = world.edges[:, some], world.kinds[some]
        return self.gcn.rec(*users_and_entities, edges, kinds, world.pairs, world.weight)
