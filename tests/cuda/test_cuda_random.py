"""Random bits of the CUDA kernel, on the CPU: the same as everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized

from kgrec_fast.ops.random import random_bits_reference


def bits(rng: tuple[int, int], stream: int, n: int, **how: object) -> torch.Tensor:
    out = torch.full((n,), -1)
    run("random_bits", rng=torch.tensor(rng), stream=stream, out=out, **how)
    return out


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 257, 4099])
@pytest.mark.parametrize(
    ("rng", "stream"),
    [
        ((0, 0), 0),
        ((-1, 2**32 - 1), 2**32 - 1),
        ((2**62 + 12345, -7), 0x0201),
        ((2**33, 2**32 + 5), 9),
    ],
)
def test_bits_equal_the_reference(rng: tuple[int, int], stream: int, n: int) -> None:
    assert torch.equal(bits(rng, stream, n), random_bits_reference(torch.tensor(rng), stream, n))


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("max_blocks", [0, 1, 2])
def test_order_and_grid_do_not_matter(order: str, seed: int, max_blocks: int) -> None:
    how = {"order": order, "seed": seed, "max_blocks": max_blocks}
    assert torch.equal(bits((5, 6), 7, 3001, **how), bits((5, 6), 7, 3001))


def test_every_word_is_written_once() -> None:
    out = torch.zeros(1026, dtype=torch.int64)
    rng = torch.tensor([1, 2])
    traffic = run("random_bits", rng=rng, stream=0, out=out, count=True)
    assert sum(t.bytes for t in traffic if t.write) == 8 * 1026


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for n in (1, 7, 1026):
            bits((-1, 2**40), 3, n)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
