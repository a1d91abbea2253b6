"""Random splits by user."""

from __future__ import annotations

import numpy as np
import pytest

from kgrec_fast.data import split_by_user

SIZES = [1, 2, 3, 4, 9, 10, 11, 19, 20, 29, 30, 99, 100]


def _users() -> np.ndarray:
    users = np.repeat(np.arange(len(SIZES)) * 2, SIZES)  # odd users have nothing
    return np.random.default_rng(0).permutation(users)


@pytest.mark.parametrize("held_out", [1, 2])
def test_sizes(held_out: int) -> None:
    users = _users()
    part = split_by_user(users, 5, held_out=held_out)
    share = [0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 3, 9, 10]
    for which in range(3):
        found = np.bincount(users[part == which], minlength=2 * len(SIZES))
        if which == 0:
            expected = [size - held_out * one for size, one in zip(SIZES, share, strict=True)]
        else:
            expected = share if which <= held_out else [0] * len(SIZES)
        assert found[::2].tolist() == expected
        assert not found[1::2].any()


def test_seed() -> None:
    users = _users()
    np.testing.assert_array_equal(split_by_user(users, 1), split_by_user(users, 1))
    assert (split_by_user(users, 1) != split_by_user(users, 2)).any()


def test_every_interaction_is_equally_likely_held_out() -> None:
    """10 interactions, one in each held-out split: each place has a tenth, over 4,000 users."""
    users = np.repeat(np.arange(4000), 10)
    part = split_by_user(users, 11).reshape(4000, 10)
    for which in (1, 2):
        count = (part == which).sum(axis=0)
        assert count.sum() == 4000
        chi2 = ((count - 400) ** 2 / 400).sum()
        assert chi2 < 27.9  # 99.9 % of chi square with 9 degrees of freedom


def test_empty_and_bad_input() -> None:
    assert split_by_user(np.zeros(0, dtype=np.int64), 0).shape == (0,)
    with pytest.raises(ValueError, match=r"users: expected one dimension, got shape \[2, 2\]"):
        split_by_user(np.zeros((2, 2), dtype=np.int64), 0)
    with pytest.raises(ValueError, match="users: ids must not be negative, found -1"):
        split_by_user(np.array([0, -1]), 0)
    with pytest.raises(ValueError, match="held_out: expected 1 or 2, got 3"):
        split_by_user(np.array([0]), 0, held_out=3)
