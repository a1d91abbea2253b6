"""Philox: published vectors, an oracle in Python integers, and what the draws mean."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from segment_helpers import backend  # noqa: F401

from kgrec_fast.ops import random as rnd

HEADER = Path(__file__).parents[2] / "csrc" / "common" / "philox.h"
MASK = 2**32 - 1

# Known answers published with the algorithm: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (MASK, MASK, MASK, MASK),
        (MASK, MASK),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_by_hand(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    (a, b, c, d), (k, m) = counter, key
    for r in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            (right >> 32) ^ b ^ ((k + r * 0x9E3779B9) & MASK),
            right & MASK,
            (left >> 32) ^ d ^ ((m + r * 0xBB67AE85) & MASK),
            left & MASK,
        )
    return a, b, c, d


def bits_by_hand(seed: int, step: int, stream: int, n: int) -> list[int]:
    words: list[int] = []
    for block in range((n + 3) // 4):
        counter = (block & MASK, block >> 32, step & MASK, stream)
        words += philox_by_hand(counter, (seed & MASK, (seed >> 32) & MASK))
    return words[:n]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    words = rnd.philox4x32(
        tuple(torch.tensor(c) for c in counter), tuple(torch.tensor(k) for k in key)
    )
    assert tuple(int(w) for w in words) == expected
    assert philox_by_hand(counter, key) == expected


def test_first_block_of_seed_zero_is_the_known_answer(backend: str) -> None:  # noqa: F811
    bits = rnd.random_bits(torch.zeros(2, dtype=torch.int64), 0, 4)
    assert tuple(bits.tolist()) == KNOWN_ANSWERS[0][2]


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 63, 64, 257])
@pytest.mark.parametrize(
    ("seed", "step", "stream"),
    [(1, 2, 3), (-1, 2**32 - 1, 2**32 - 1), (2**62 + 12345, -7, 0x0201), (2**33, 2**32 + 5, 9)],
)
def test_bits_equal_python_integers(
    backend: str,  # noqa: F811
    seed: int,
    step: int,
    stream: int,
    n: int,
) -> None:
    bits = rnd.random_bits(torch.tensor([seed, step]), stream, n)
    assert bits.dtype == torch.int64
    assert bits.tolist() == bits_by_hand(seed, step, stream, n)


def test_threads_do_not_matter(backend: str) -> None:  # noqa: F811
    rng = torch.tensor([5, 6])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = rnd.random_bits(rng, 7, 100_003)
        torch.set_num_threads(3)
        three = rnd.random_bits(rng, 7, 100_003)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


def test_uniform_is_the_high_bits(backend: str) -> None:  # noqa: F811
    rng = torch.tensor([11, 12])
    u = rnd.uniform(rng, 13, 1000)
    expected = [(word >> 8) / 2**24 for word in bits_by_hand(11, 12, 13, 1000)]
    assert u.dtype == torch.float32
    assert u.tolist() == expected
    assert min(expected) >= 0
    assert max(expected) < 1


def test_uniform_is_uniform() -> None:
    counts = torch.histc(rnd.uniform(torch.tensor([1, 1]), 0, 64_000), bins=64, min=0, max=1)
    chi2 = float(((counts - 1000) ** 2 / 1000).sum())
    # 63 degrees of freedom: the bounds are passed 1e-5 of the time on either side.
    assert 25 < chi2 < 120


def test_seed_step_and_stream_each_change_the_draw() -> None:
    draws = {
        tuple(rnd.random_bits(torch.tensor([seed, step]), stream, 8).tolist())
        for seed in (0, 1, 2**32)
        for step in (0, 1)
        for stream in (0, 1)
    }
    assert len(draws) == 12


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.25, 0.5, 1 - 2**-24, 1 - 2**-30])
def test_drop_threshold_decides_as_the_fraction_does(p: float) -> None:
    threshold = rnd.drop_threshold(p)
    for k in {0, max(threshold - 1, 0), min(threshold, 2**24 - 1), 2**24 - 1}:
        assert (k >= threshold) == (k / 2**24 >= p)


def test_streams_equal_those_of_the_header() -> None:
    body = re.search(r"enum Stream[^{]*\{(.*?)\}", HEADER.read_text(), re.DOTALL)
    assert body is not None
    in_header = {
        name: int(value, 0) for name, value in re.findall(r"(\w+)\s*=\s*(0x[0-9a-f]+|\d+)", body[1])
    }
    assert in_header == {stream.name: stream.value for stream in rnd.Stream}
    starts = sorted(in_header.values())
    assert len(set(starts)) == len(starts)
    assert all(start % 256 == 0 for start in starts), "a block of 256 hops each"


def test_errors_name_the_argument() -> None:
    rng = torch.tensor([1, 2])
    with pytest.raises(TypeError, match=r"rng is .*float32"):
        rnd.random_bits(torch.zeros(2), 0, 1)
    with pytest.raises(TypeError, match="rng is NoneType"):
        rnd.random_bits(None, 0, 1)
    with pytest.raises(ValueError, match=r"rng has shape \[3\]"):
        rnd.random_bits(torch.tensor([1, 2, 3]), 0, 1)
    with pytest.raises(ValueError, match="stream is -1"):
        rnd.random_bits(rng, -1, 1)
    with pytest.raises(ValueError, match=f"stream is {2**32}"):
        rnd.random_bits(rng, 2**32, 1)
    with pytest.raises(ValueError, match="n is -1"):
        rnd.random_bits(rng, 0, -1)


@pytest.mark.parametrize("stream", [None, "7", 2.7, [1]])
def test_a_stream_is_a_whole_number(stream: object) -> None:
    with pytest.raises(TypeError, match=f"stream is a {type(stream).__name__}, expected an int"):
        rnd.random_bits(torch.tensor([1, 2]), stream, 4)  # type: ignore[arg-type]
