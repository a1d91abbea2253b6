"""Synthetic data with planted rationales: the truth about each triple is known.

Items have attributes through several relations. Half of the relations are planted: what users like
is a function of those attributes alone. Every planted relation has a noise twin with attribute
entities of its own, made by handing the attribute sets of the planted relation to the same items in
another order. So a twin has the same number of triples, each item the same number of them in both,
and the degrees of the attribute entities are the same numbers: sizes and degrees tell nothing about
which triples matter, and only the interactions do.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kgrec_fast.data.dataset import KGDataset
from kgrec_fast.data.splits import split_by_user


def _distinct(
    rng: np.random.Generator, weight: NDArray[np.float64], rows: int, count: int
) -> NDArray[np.int64]:
    """`count` distinct indices a row, drawn without replacement by weight: [rows, count]."""
    key = np.log(weight) + rng.gumbel(size=(rows, len(weight)))
    return np.argpartition(-key, count - 1, axis=1)[:, :count].astype(np.int64)


def _check(**values: tuple[float, float, float]) -> None:
    for name, (value, low, high) in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name}: expected a number in [{low}, {high}], got {value}")


def planted_rationales(
    n_users: int = 800,
    n_items: int = 800,
    relation_pairs: int = 3,
    *,
    attributes: int = 20,
    edges_per_relation: int = 1,
    coverage: float = 0.9,
    popularity_skew: float = 0.5,
    interactions: tuple[int, int] = (15, 25),
    taste_size: int = 8,
    sharpness: float = 3.0,
    seed: int = 0,
) -> KGDataset:
    """Generates users, items and a knowledge graph of which half the triples explain the taste.

    A user u has a taste p_u and a planted attribute a a vector z_a, both normal in `taste_size`
    dimensions; item i is worth sharpness * p_u . sum(z_a) / sqrt(taste_size * count) to u, over the
    `count` planted attributes of i. Each user interacts with the items of largest worth + Gumbel
    noise, that is with draws without replacement by softmax(worth).

    Args:
        n_users, n_items: sizes.
        relation_pairs: planted relations, and as many noise relations.
        attributes: attribute entities a relation.
        edges_per_relation: triples of an item in a relation that covers it.
        coverage: share of the items that a relation covers; a noise twin covers the same items.
        popularity_skew: attribute k is drawn with weight (k + 1) ** -skew.
        interactions: least and largest number of interactions of a user.
        taste_size: dimensions of the hidden taste.
        sharpness: how closely users follow their taste; at 0 they choose at random.
        seed: the same seed gives the same data.

    Returns:
        A data set whose heads are items and whose tails are attribute entities, without inverse
        triples; `truth` is True for the triples of planted relations. Relations, entities and
        triples are numbered in random order. Splits are random per user.

    Raises:
        ValueError: for a number out of range.

    Complexity: O(n_users * n_items) time and memory, for the worth of each item to each user.
    """
    least, largest = interactions
    _check(
        n_users=(n_users, 1, 10**6),
        n_items=(n_items, 2, 10**6),
        relation_pairs=(relation_pairs, 1, 10**4),
        attributes=(attributes, 2, 10**6),
        edges_per_relation=(edges_per_relation, 1, attributes),
        coverage=(coverage, 0.0, 1.0),
        sharpness=(sharpness, 0.0, float("inf")),
        taste_size=(taste_size, 1, 10**4),
        seed=(seed, 0, 2**63 - 1),
    )
    if not 1 <= least <= largest < n_items:
        raise ValueError(
            f"interactions: expected 1 <= least <= largest < n_items = {n_items}, "
            f"got {interactions}"
        )
    rng = np.random.default_rng(seed)
    weight = np.arange(1.0, attributes + 1) ** -popularity_skew
    covered = max(2, round(coverage * n_items))
    heads, kinds, tails = [], [], []  # relation 2k is planted, 2k + 1 its twin
    profile = np.zeros((n_items, taste_size))
    counts = np.zeros(n_items)
    for pair in range(relation_pairs):
        items = rng.choice(n_items, size=covered, replace=False)
        chosen = _distinct(rng, weight, covered, edges_per_relation)
        for relation, rows in ((2 * pair, chosen), (2 * pair + 1, rng.permutation(chosen))):
            heads.append(np.repeat(items, edges_per_relation))
            kinds.append(np.full(covered * edges_per_relation, relation))
            tails.append(relation * attributes + rows.reshape(-1))
        z = rng.normal(size=(attributes, taste_size))
        profile[items] += z[chosen].sum(axis=1)
        counts[items] += edges_per_relation
    profile /= np.sqrt(taste_size * np.maximum(counts, 1.0))[:, None]

    worth = sharpness * rng.normal(size=(n_users, taste_size)) @ profile.T
    ranked = np.argsort(-(worth + rng.gumbel(size=worth.shape)), axis=1)
    taken = rng.integers(least, largest, size=n_users, endpoint=True)
    users = np.repeat(np.arange(n_users), taken)
    items = ranked[np.arange(n_items) < taken[:, None]]
    part = split_by_user(users, int(rng.integers(2**62)))

    # Numbers must not give the twins away.
    relations = 2 * relation_pairs
    relation_id = rng.permutation(relations)
    entity_id = n_items + rng.permutation(relations * attributes)
    order = rng.permutation(sum(map(len, heads)))
    head, kind, tail = (np.concatenate(x)[order] for x in (heads, kinds, tails))
    pairs = np.stack([users, items]).astype(np.int64)
    train, valid, test = (torch.from_numpy(pairs[:, part == k]) for k in range(3))
    relation_tokens, entity_tokens = [""] * relations, [""] * (relations * attributes)
    for relation in range(relations):
        name = f"{'noise' if relation % 2 else 'planted'}_{relation // 2}"
        relation_tokens[relation_id[relation]] = name
        for k in range(attributes):
            node = entity_id[relation * attributes + k] - n_items
            entity_tokens[node] = f"{name}_attribute_{k}"
    item_tokens = [f"item_{i}" for i in range(n_items)]
    return KGDataset(
        n_users=n_users,
        n_items=n_items,
        n_entities=n_items + relations * attributes,
        n_relations=relations + 1,
        edge_index=torch.from_numpy(np.stack([head, entity_id[tail]]).astype(np.int64)),
        edge_type=torch.from_numpy(relation_id[kind].astype(np.int64)),
        train=train,
        valid=valid,
        test=test,
        user_tokens=[f"user_{u}" for u in range(n_users)],
        item_tokens=item_tokens,
        entity_tokens=item_tokens + entity_tokens,
        relation_tokens=relation_tokens,
        truth=torch.from_numpy(kind % 2 == 0),
        name="synthetic",
    )
