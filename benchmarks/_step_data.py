"""The data sets of the train-step benchmark: a graph, read or generated, and interactions."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from benchmarks._graphs import load as load_graph
from kgrec_fast.data import KGDataset, load_dataset, planted_rationales

# Graph, users, items and interactions. The first two have the sizes that the KGRec paper (table 2)
# gives for Alibaba-iFashion and MIND; their interactions are not at hand and are generated. In the
# third there are few of them beside the edges: what is left is the graph with its 1,024 relations.
SIZES = {
    "alibaba-fashion": ("alibaba-fashion", 114_737, 30_040, 1_781_093),
    "news": ("news", 100_000, 30_577, 2_975_319),
    "news-few": ("news", 10_000, 10_000, 300_000),
}
POPULARITY_SKEW = 0.6  # item of rank k is drawn with weight (k + 1) ** -skew
USER_SPREAD = 0.8  # standard deviation of the logarithm of a user's number of interactions


def load(name: str, quick: bool = False) -> KGDataset:
    """A data set for the benchmark.

    The names of `SIZES` have a graph of `benchmarks._graphs` and generated
    interactions, all of them for training; any other name goes to `kgrec_fast.data.load_dataset`.
    With ``quick`` everything is tiny and planted.
    """
    if quick:
        return planted_rationales(60, 50, 2, interactions=(5, 8))
    if name not in SIZES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_dataset(name, recbole_items=True)
    graph, n_users, n_items, count = SIZES[name]
    edges, origin = load_graph(graph)
    n_entities = max(edges.num_nodes, n_items)
    edge_index = edges.edge_index
    if "generated" in origin:
        edge_index = heads_first(edge_index, n_items, n_entities)
    train = interactions(n_users, n_items, count)
    return KGDataset(
        n_users=n_users,
        n_items=n_items,
        n_entities=n_entities,
        n_relations=edges.num_relations + 1,
        edge_index=edge_index,
        edge_type=edges.edge_type,
        train=train,
        valid=train[:, :0],
        test=train[:, :0],
        user_tokens=range(n_users),  # type: ignore[arg-type]
        item_tokens=range(n_items),  # type: ignore[arg-type]
        entity_tokens=range(n_entities),  # type: ignore[arg-type]
        relation_tokens=range(edges.num_relations),  # type: ignore[arg-type]
        name=f"{name} (graph: {origin}; interactions: generated)",
    )


def heads_first(edge_index: torch.Tensor, n_items: int, n_entities: int) -> torch.Tensor:
    """The edges with entities that have some of their own numbered before those that have none, as
    the reader of atomic files numbers them; items keep their numbers.
    """
    has_edges = torch.zeros(n_entities, dtype=torch.bool)
    has_edges[edge_index[0]] = True
    has_edges[:n_items] = True
    order = torch.cat([has_edges.nonzero(), (~has_edges).nonzero()]).flatten()
    number = torch.empty_like(order)
    number[order] = torch.arange(n_entities)
    return number[edge_index]


def interactions(n_users: int, n_items: int, count: int, seed: int = 0) -> torch.Tensor:
    """int64 [2, count]: distinct pairs of users and items, of unequal activity and popularity."""
    rng = np.random.default_rng(seed)
    activity = np.exp(USER_SPREAD * rng.standard_normal(n_users))
    popularity = (np.arange(n_items) + 1.0) ** -POPULARITY_SKEW
    users, items = np.cumsum(activity), np.cumsum(rng.permutation(popularity))
    keys = np.arange(n_users) * n_items + rng.integers(n_items, size=n_users)  # one each at least
    while len(keys) < count:
        user = np.searchsorted(users, rng.random(count) * users[-1])
        item = np.searchsorted(items, rng.random(count) * items[-1])
        drawn = np.minimum(user, n_users - 1) * n_items + np.minimum(item, n_items - 1)
        fresh = np.setdiff1d(drawn, keys)
        keys = np.concatenate([keys, rng.permutation(fresh)[: count - len(keys)]])
    keys = rng.permutation(keys)
    return torch.from_numpy(np.stack([keys // n_items, keys % n_items]).astype(np.int64))
