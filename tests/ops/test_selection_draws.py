"""Gumbel noise, weighted sampling and the masked edges: values, bits, and distributions."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_helpers import backend, with_threads  # noqa: F401
from test_selection import RNG, random_mask
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks._memory import peak_in_fresh_process
from kgrec_fast.ops import gumbel
from kgrec_fast.ops.gumbel import gumbel_noise, gumbel_noise_reference, gumbel_of
from kgrec_fast.ops.random import Stream, random_bits_reference
from kgrec_fast.ops.selection import (
    gumbel_topk,
    gumbel_topk_reference,
    masked_edges,
    masked_edges_reference,
    topk_mask,
)

HEADER = Path(__file__).parents[2] / "csrc" / "common" / "gumbel.h"
MOST = 2**24 - 1
# (seed, element) of draws in stream 0 at step 0 whose 24 high bits are all 0, all 1.
LOWEST, HIGHEST = (463, 28180), (207, 39758)


def exact_gumbel(k: Tensor) -> np.ndarray:
    """In float64, where k + 0.5 is exact; log1p keeps all digits near u = 1."""
    k = k.numpy()
    log_u = np.where(k < 2**23, np.log((k + 0.5) / 2**24), np.log1p(-(2**24 - k - 0.5) / 2**24))
    return -np.log(-log_u)


# -- noise ----------------------------------------------------------------------------------------


def test_noise_of_every_possible_draw() -> None:
    before, worst = -math.inf, 0.0
    for first in range(0, 2**24, 2**21):
        k = torch.arange(first, first + 2**21)
        noise = gumbel_of(k)
        assert noise.dtype == torch.float32
        exact = exact_gumbel(k)
        error = np.abs(noise.double().numpy() - exact) / np.maximum(1, np.abs(exact))
        worst = max(worst, float(error.max()))
        assert float(noise[0]) >= before
        assert bool((noise.diff() >= 0).all())
        before = float(noise[-1])
    assert worst < 2e-7
    ends = gumbel_of(torch.tensor([0, MOST]))
    assert ends.tolist() == pytest.approx([-2.8523624, 17.3286795], abs=1e-6)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 63, 64, 511, 512, 513, 100_003])
def test_noise_has_the_bits_of_the_reference(isa: str, n: int) -> None:
    for rng, stream in ((RNG, 7), (torch.tensor([-1, 2**32 - 1]), 2**32 - 1)):
        found = gumbel_noise(n, rng, stream)
        assert found.dtype == torch.float32
        expected = gumbel_noise_reference(n, rng, stream)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


def test_noise_is_that_of_the_high_bits(backend: str) -> None:  # noqa: F811
    exact = exact_gumbel(random_bits_reference(RNG, 3, 10_000) >> 8)
    np.testing.assert_allclose(gumbel_noise(10_000, RNG, 3).numpy(), exact, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize(("draw", "k"), [(LOWEST, 0), (HIGHEST, MOST)])
def test_extreme_draws_are_finite(backend: str, draw: tuple[int, int], k: int) -> None:  # noqa: F811
    seed, element = draw
    rng = torch.tensor([seed, 0])
    assert int(random_bits_reference(rng, 0, element + 1)[element] >> 8) == k
    noise = gumbel_noise(element + 1, rng, 0)
    assert float(noise[element]) == float(gumbel_of(torch.tensor([k])))
    assert bool(noise.isfinite().all())


def test_noise_does_not_depend_on_threads(isa: str) -> None:
    expected = gumbel_noise_reference(100_003, RNG, 5)
    assert all(
        torch.equal(x, expected) for x in with_threads(lambda: gumbel_noise(100_003, RNG, 5))
    )


def test_noise_has_the_distribution() -> None:
    n = 200_000
    noise = np.sort(gumbel_noise(n, RNG, 9).double().numpy())
    cdf = np.exp(-np.exp(-noise))
    distance = np.abs(cdf - (np.arange(n) + 0.5) / n).max()
    assert distance * math.sqrt(n) < 2.5  # Kolmogorov and Smirnov: passed 8e-6 of the time


def test_series_is_that_of_the_header() -> None:
    numbers = re.findall(r"splat\((-?0x1\.[0-9a-f]+p-\d+)f\)", HEADER.read_text())
    in_header = [float.fromhex(x) for x in numbers]
    ln2 = [gumbel._LN2_LOW, gumbel._LN2_HIGH]
    assert in_header == [*gumbel._SERIES, *ln2]
    assert f"kRootHalfBits = {gumbel._ROOT_HALF_BITS:#x}" in HEADER.read_text()


# -- sampling without replacement -----------------------------------------------------------------


def subset_probabilities(weights: list[float], k: int) -> dict[frozenset[int], float]:
    """Of successive draws, each proportional to the weights that are left: all orders, summed."""
    chances: dict[frozenset[int], float] = {}
    for order in itertools.permutations(range(len(weights)), k):
        left, chance = sum(weights), 1.0
        for i in order:
            chance *= weights[i] / left
            left -= weights[i]
        chances[frozenset(order)] = chances.get(frozenset(order), 0.0) + chance
    return chances


@pytest.mark.parametrize(("k", "critical"), [(1, 30.0), (2, 41.0), (3, 41.0)])
def test_weighted_draws_have_exact_probabilities(k: int, critical: float) -> None:
    """chi^2 over all subsets of five; `critical` is passed 5e-6 of the time (4 or 9 degrees)."""
    weights, trials = [1.0, 2.0, 3.0, 5.0, 9.0], 6000
    log_weight = torch.tensor(weights).log()
    counts: dict[frozenset[int], int] = {}
    for step in range(trials):
        mask = gumbel_topk(log_weight, k, torch.tensor([99, step]), 4)
        chosen = frozenset(mask.nonzero().flatten().tolist())
        counts[chosen] = counts.get(chosen, 0) + 1
    expected = subset_probabilities(weights, k)
    assert set(counts) <= set(expected)
    chi2 = sum((counts.get(s, 0) - trials * p) ** 2 / (trials * p) for s, p in expected.items())
    assert chi2 < critical


def test_inclusion_does_not_depend_on_a_common_factor(isa: str) -> None:
    """Weights that no float32 softmax could tell apart, or would round to zero."""
    weight = torch.linspace(-1, 1, 1000)
    assert torch.equal(
        gumbel_topk(weight * 0 - 5000, 100, RNG, 4), gumbel_topk(weight * 0, 100, RNG, 4)
    )
    far = torch.cat([weight - 1000, weight])
    assert not bool(gumbel_topk(far, 1000, RNG, 4)[:1000].any())


def test_weight_zero_is_chosen_last(backend: str) -> None:  # noqa: F811
    log_weight = torch.zeros(1000)
    log_weight[::2] = -math.inf
    some = gumbel_topk(log_weight, 400, RNG, 4)
    assert int(some.sum()) == 400
    assert not bool(some[::2].any())
    more = gumbel_topk(log_weight, 503, RNG, 4)
    assert int(more[1::2].sum()) == 500
    assert more[::2].nonzero().flatten().tolist() == [0, 1, 2]


def test_draws_within_a_mask(backend: str) -> None:  # noqa: F811
    mask = random_mask(2000, 0.2)
    found = gumbel_topk(torch.zeros(2000), 100, RNG, 4, mask)
    assert torch.equal(found, gumbel_topk_reference(torch.zeros(2000), 100, RNG, 4, mask))
    assert int(found.sum()) == 100
    assert not bool((found & ~mask).any())
    assert torch.equal(gumbel_topk(torch.zeros(2000), 2000, RNG, 4, mask), mask)


# -- masked edges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("edges", [0, 1, 60, 3000])
def test_masked_edges(backend: str, edges: int, share: float | None) -> None:  # noqa: F811
    sampled = None if share is None else random_mask(edges, share)
    allowed = torch.ones(edges, dtype=torch.bool) if sampled is None else sampled
    total = int(allowed.sum())
    score = torch.randint(40, (edges,), generator=torch.Generator().manual_seed(1)).float()
    for count in {0, min(1, total), total // 2, total}:
        found = masked_edges(score, sampled, total, count, RNG)
        for ours, wanted in zip(
            found, masked_edges_reference(score, sampled, total, count, RNG), strict=True
        ):
            assert torch.equal(ours, wanted)
        ids, weight, mask = found
        assert (ids.dtype, weight.dtype, mask.dtype) == (torch.int64, torch.float32, torch.bool)
        top, random = ids[:count].tolist(), ids[count:].tolist()
        assert top == topk_mask(score, count, mask=sampled).nonzero().flatten().tolist()
        assert len(set(random)) == count
        assert all(bool(allowed[e]) for e in random)
        assert weight.tolist() == [1.0] * count + [float(e not in set(top)) for e in random]
        assert mask.nonzero().flatten().tolist() == sorted({*top, *random})
        assert int(mask.sum()) == int(weight.sum())


def test_random_half_is_another_one_at_each_step_and_stream() -> None:
    score = torch.zeros(1000)
    drawn = {
        tuple(masked_edges(score, None, 1000, 20, torch.tensor([1, step]), stream)[0][20:].tolist())
        for step in (0, 1)
        for stream in (Stream.RANDOM_MASKED_EDGES, Stream.RANDOM_MASKED_EDGES + 1)
    }
    assert len(drawn) == 4


def test_masked_edges_compile_whole_and_need_no_data() -> None:
    sampled = random_mask(100, 0.5)
    given = (torch.arange(100.0), sampled, int(sampled.sum()), 11, RNG)
    expected = masked_edges(*given)
    compiled = torch.compile(masked_edges, fullgraph=True, backend="aot_eager")
    for ours, wanted in zip(compiled(*given), expected, strict=True):
        assert torch.equal(ours, wanted)
    with FakeTensorMode() as mode:
        fakes = masked_edges(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in given))
    for fake, real in zip(fakes, expected, strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_bad_arguments_are_named() -> None:
    x, mask = torch.zeros(5), torch.ones(5, dtype=torch.bool)
    for call, error, message in (
        (lambda: gumbel_noise(-1, RNG, 0), ValueError, "n is -1"),
        (lambda: gumbel_noise(1, x, 0), TypeError, r"rng is torch\.float32 tensor"),
        (lambda: gumbel_noise(1, RNG, -1), ValueError, "stream is -1"),
        (lambda: gumbel_topk(x.long(), 1, RNG, 0), TypeError, r"log_weight has dtype torch\.int64"),
        (lambda: gumbel_topk(x, 6, RNG, 0), ValueError, "k is 6"),
        (lambda: masked_edges(x[None], None, 5, 1, RNG), ValueError, r"noisy_score has shape"),
        (lambda: masked_edges(x, x, 5, 1, RNG), TypeError, "sampled is a"),
        (lambda: masked_edges(x, None, 4, 1, RNG), ValueError, "num_sampled is 4, expected 5"),
        (lambda: masked_edges(x, mask, 6, 1, RNG), ValueError, "num_sampled is 6, expected 0 <="),
        (lambda: masked_edges(x, mask, 5, 6, RNG), ValueError, "count is 6, expected 0 <= count"),
        (lambda: masked_edges(x, mask, 5, 1, None), TypeError, "rng is NoneType"),
    ):
        with pytest.raises(error, match=message):
            call()


# -- memory ---------------------------------------------------------------------------------------


def prepare_large_draw(n: str) -> object:
    """For `peak_in_fresh_process`: a tenth of n, weighted."""
    log_weight = torch.zeros(int(n))
    gumbel_topk(log_weight[:1000], 10, RNG, 4)  # what torch sets up once
    return lambda: gumbel_topk(log_weight, int(n) // 10, RNG, 4)


def prepare_large_tie(n: str) -> object:
    """A tenth of n equal numbers, all of which stay undecided to the end."""
    values = torch.zeros(int(n))
    topk_mask(values[:1000], 10)
    return lambda: topk_mask(values, int(n) // 10)


@pytest.mark.parametrize(
    ("prepare", "least", "most"), [("prepare_large_draw", 1, 2), ("prepare_large_tie", 5, 5)]
)
def test_bytes_of_an_element(prepare: str, least: int, most: int) -> None:
    n = 10_000_000
    peak = peak_in_fresh_process("test_selection_draws", prepare, str(n))
    if peak is None:
        pytest.skip("the system does not tell the peak of a process")
    # The mask, the keys of what a guess leaves open, and some megabytes for the threads of torch.
    assert 0.9 * least * n < peak < most * n + 8_000_000
