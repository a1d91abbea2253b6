"""Planted rationales: the truth is in the interactions, and nowhere else."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from kgrec_fast.data import KGDataset, planted_rationales


def auc(score: np.ndarray, truth: np.ndarray) -> float:
    """Probability that a planted edge scores above a noise edge, ties counted half."""
    u = mannwhitneyu(score[truth], score[~truth]).statistic
    return u / (truth.sum() * (~truth).sum())


OPTIONS = [{}, {"edges_per_relation": 3, "coverage": 0.5, "popularity_skew": 1.0}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_counts_tell_nothing(options: dict, seed: int) -> None:
    data = planted_rationales(seed=seed, **options)
    head, tail = data.edge_index.numpy()
    kind, truth = data.edge_type.numpy(), data.truth.numpy()
    liked = np.bincount(data.train[1], minlength=data.n_entities)
    assert truth.mean() == 0.5
    for score in (
        np.bincount(tail)[tail],
        np.bincount(head)[head],
        np.bincount(kind)[kind],
        liked[head],
    ):
        assert abs(auc(score, truth) - 0.5) <= 0.02


@pytest.mark.parametrize("seed", range(3))
def test_numbers_tell_nothing(seed: int) -> None:
    """With many relations, neither ids (nor whether they are odd) nor the order of edges do."""
    data = planted_rationales(50, 200, 150, attributes=5, seed=seed, interactions=(3, 5))
    truth = data.truth.numpy()
    tail, kind = data.edge_index[1] - data.n_items, data.edge_type
    for score in (tail, kind, kind % 2, torch.div(tail, 5, rounding_mode="floor") % 2):
        # 300 relations: the standard error of an AUC over them is 0.033.
        assert abs(auc(score.numpy(), truth) - 0.5) < 0.1
    assert abs(auc(np.arange(data.n_edges), truth) - 0.5) < 0.01
    assert abs((truth[1:] == truth[:-1]).mean() - 0.5) < 0.01
    assert tail.min() == 0


def test_twins_match_exactly() -> None:
    data = planted_rationales(100, 90, 4, attributes=7, edges_per_relation=2, coverage=0.6)
    head, tail = data.edge_index.tolist()
    heads, tails = defaultdict(Counter), defaultdict(Counter)
    for h, kind, t in zip(head, data.edge_type.tolist(), tail, strict=True):
        heads[data.relation_tokens[kind]][h] += 1
        tails[data.relation_tokens[kind]][t] += 1
    assert len(heads) == 8
    for k in range(4):
        planted, noise = f"planted_{k}", f"noise_{k}"
        assert heads[planted] == heads[noise]
        assert set(heads[planted].values()) == {2}
        assert len(heads[planted]) == 54
        assert sorted(tails[planted].values()) == sorted(tails[noise].values())
        assert not set(tails[planted]) & set(tails[noise])
    triples = set(zip(head, data.edge_type.tolist(), tail, strict=True))
    assert len(triples) == data.n_edges == 2 * 4 * 54 * 2


def test_shape_of_the_data() -> None:
    data = planted_rationales(120, 90, 2, attributes=6, interactions=(10, 12), seed=4)
    assert (data.n_users, data.n_items, data.n_entities, data.n_relations) == (120, 90, 114, 5)
    head, tail = data.edge_index
    assert head.max() < data.n_items <= tail.min()
    planted = [name.startswith("planted") for name in data.relation_tokens]
    assert torch.equal(data.truth, torch.tensor(planted)[data.edge_type])
    for node, kind in zip(tail.tolist(), data.edge_type.tolist(), strict=True):
        assert data.entity_tokens[node].startswith(data.relation_tokens[kind] + "_attribute_")
    ptr, items = data.by_user("train", "valid", "test")
    assert set(ptr.diff().tolist()) == {10, 11, 12}
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        assert len(set(items[start:stop].tolist())) == stop - start
    assert (torch.bincount(data.test[0]) == 1).all()


def _shared(data: KGDataset) -> tuple[int, int]:
    """How often two items of one user share a planted attribute, and a noise attribute."""
    attributes: dict[tuple[int, bool], set[int]] = defaultdict(set)
    for h, t, true in zip(*data.edge_index.tolist(), data.truth.tolist(), strict=True):
        attributes[h, true].add(t)
    ptr, items = data.by_user("train", "valid", "test")
    count = [0, 0]
    for start, stop in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        for a, b in combinations(items[start:stop].tolist(), 2):
            for true in (False, True):
                count[true] += len(attributes[a, true] & attributes[b, true])
    return count[True], count[False]


@pytest.mark.parametrize("seed", range(2))
def test_items_liked_together_share_planted_attributes(seed: int) -> None:
    planted, noise = _shared(planted_rationales(400, 300, seed=seed))
    assert planted > 1.5 * noise
    planted, noise = _shared(planted_rationales(400, 300, sharpness=0.0, seed=seed))
    assert abs(planted / noise - 1) < 0.05


def test_seed() -> None:
    one, same, other = (planted_rationales(50, 60, seed=seed) for seed in (1, 1, 2))
    for name in ("edge_index", "edge_type", "truth", "train", "valid", "test"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.edge_index, other.edge_index)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_users": 0}, r"n_users: expected a number in \[1, "),
        ({"edges_per_relation": 21}, r"edges_per_relation: expected a number in \[1, 20\], got 21"),
        ({"coverage": 1.5}, "coverage: expected"),
        ({"sharpness": float("nan")}, "sharpness: expected"),
        ({"interactions": (5, 4)}, "interactions: expected 1 <= least <= largest"),
        ({"interactions": (5, 800)}, "interactions: expected"),
        ({"seed": -1}, "seed: expected"),
    ],
)
def test_bad_arguments(change: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        planted_rationales(**change)
