"""The emulator itself: correct kernels give right results in every order, mistakes are caught."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import ORDERS, run

BLOCK = 128


def numbers(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=n).astype(np.float32)


@pytest.mark.parametrize(("order", "seed"), ORDERS)
def test_block_sum(order: str, seed: int) -> None:
    x, out = numbers(1000), np.full(3, np.nan, np.float32)
    run("block_sum", order=order, seed=seed, x=x, out=out)
    expected = [
        sum(x[i : i + BLOCK].sum() for i in range(b * BLOCK, 1000, 3 * BLOCK)) for b in range(3)
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_a_missing_barrier_shows() -> None:
    x, out = numbers(BLOCK), np.zeros(1, np.float32)
    results = set()
    for order, seed in ORDERS:
        run("block_sum_no_barrier", order=order, seed=seed, x=x, out=out)
        results.add(out.tobytes())
    assert len(results) > 1
