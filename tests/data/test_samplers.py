"""Negative items and batches."""

from __future__ import annotations

import json
import random

import pytest
import torch
from data_helpers import make_dataset
from scipy.stats import chisquare

from kgrec_fast.data import KGDataset, NegativeSampler, PairLoader


def _random_dataset(seed: int, n_users: int, n_items: int) -> KGDataset:
    draw = random.Random(seed)
    train = []
    for user in range(n_users):
        train += [(user, item) for item in draw.sample(range(n_items), draw.randrange(n_items))]
    draw.shuffle(train)
    return make_dataset(train, n_users, n_items)


@pytest.mark.parametrize("seed", range(5))
def test_negatives_are_all_untouched_items(seed: int) -> None:
    """Users with no to n - 1 items: what is drawn is the whole complement and nothing else."""
    data = _random_dataset(seed, n_users=30, n_items=12)
    sampler = NegativeSampler(data)
    users = torch.arange(30).repeat(2000)
    drawn = sampler.sample(users, torch.Generator().manual_seed(seed))
    touched = [set() for _ in range(30)]
    for user, item in data.train.t().tolist():
        touched[user].add(item)
    found = [set() for _ in range(30)]
    for user, item in zip(users.tolist(), drawn.tolist(), strict=True):
        found[user].add(item)
    assert found == [set(range(12)) - items for items in touched]


def test_negatives_are_uniform() -> None:
    touched = [0, 1, 5, 6, 7, 19]
    data = make_dataset([(1, item) for item in touched], n_users=3, n_items=20)
    users = torch.full((28_000,), 1)
    drawn = NegativeSampler(data).sample(users, torch.Generator().manual_seed(0))
    count = torch.bincount(drawn, minlength=20)
    free = [item for item in range(20) if item not in touched]
    assert count[touched].sum() == 0
    assert chisquare(count[free].numpy()).pvalue > 0.001


def test_only_training_items_count_as_touched() -> None:
    data = make_dataset([(0, 0)], 1, 3, valid=[(0, 1)], test=[(0, 2)])
    drawn = NegativeSampler(data).sample(torch.zeros(200, dtype=torch.int64))
    assert set(drawn.tolist()) == {1, 2}


def test_negatives_keep_the_shape() -> None:
    sampler = NegativeSampler(make_dataset([(0, 0)], 2, 4))
    assert sampler.sample(torch.zeros((3, 5), dtype=torch.int64)).shape == (3, 5)
    assert sampler.sample(torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_user_who_touched_everything() -> None:
    data = make_dataset([(0, 0), (1, 0), (1, 1), (1, 2)], 2, 3)
    with pytest.raises(ValueError, match=r"user 1 \(u1\) has touched all 3 items"):
        NegativeSampler(data)
    with pytest.raises(ValueError, match="user 1"):
        PairLoader(data)


def _epoch(loader: PairLoader) -> list[list[list[int]]]:
    return [[batch[key].tolist() for key in batch] for batch in loader]


def test_epoch_holds_every_pair_once() -> None:
    data = _random_dataset(3, n_users=20, n_items=15)
    pairs = sorted(map(tuple, data.train.t().tolist()))
    known = set(pairs)
    loader = PairLoader(data, batch_size=32, seed=1)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) == -(-len(pairs) // 32)
        assert all(list(b) == ["user_id", "item_id", "neg_item_id"] for b in batches)
        assert all(x.dtype == torch.int64 for b in batches for x in b.values())
        assert [len(b["user_id"]) for b in batches[:-1]] == [32] * (len(batches) - 1)
        assert len(batches[-1]["user_id"]) == len(pairs) - 32 * (len(batches) - 1)
        user, item, negative = (
            torch.cat([b[key] for b in batches]).tolist()
            for key in ("user_id", "item_id", "neg_item_id")
        )
        assert sorted(zip(user, item, strict=True)) == pairs
        assert not known & set(zip(user, negative, strict=True))


def test_epochs_differ_and_seeds_govern() -> None:
    data = _random_dataset(3, n_users=20, n_items=15)
    loader, same, other = (PairLoader(data, 32, seed=seed) for seed in (1, 1, 2))
    first, second = _epoch(loader), _epoch(loader)
    assert first != second
    assert [_epoch(same), _epoch(same)] == [first, second]
    assert _epoch(other) != first


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resume(stop: int) -> None:
    """From a state in the middle of the second epoch the same batches follow."""
    data = _random_dataset(3, n_users=20, n_items=15)
    whole = PairLoader(data, 32, seed=9)
    first, second, third = _epoch(whole), _epoch(whole), _epoch(whole)
    broken = PairLoader(data, 32, seed=9)
    assert _epoch(broken) == first
    if stop:
        for count, _ in enumerate(broken, start=1):
            if count == stop:
                break
    state = json.loads(json.dumps(broken.state_dict()))
    resumed = PairLoader(data, 32, seed=77)
    resumed.load_state_dict(state)
    assert _epoch(resumed) == second[stop:]
    assert _epoch(resumed) == third
    # Without loading, an epoch left early is over.
    assert _epoch(broken) == (third if stop else second)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"seed": 1, "epoch": 0}, "'position' is missing"),
        ({"seed": 1, "epoch": -1, "position": 0}, "must not be negative"),
        ({"seed": 1, "epoch": 0, "position": 99}, "position lie in"),
    ],
)
def test_bad_state(state: dict[str, int], reason: str) -> None:
    loader = PairLoader(make_dataset([(0, 0)], 1, 2))
    with pytest.raises(ValueError, match=reason):
        loader.load_state_dict(state)


def test_bad_arguments() -> None:
    data = make_dataset([(0, 0)], 1, 2)
    with pytest.raises(ValueError, match="batch_size: expected a positive number, got 0"):
        PairLoader(data, 0)
    with pytest.raises(ValueError, match="seed: expected"):
        PairLoader(data, seed=-1)
    with pytest.raises(ValueError, match="dataset: there are no training interactions"):
        PairLoader(make_dataset([], 1, 2))
