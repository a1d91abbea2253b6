"""Masks of the k largest, against sorts in Python, on every instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from segment_helpers import FLOATS, backend, strided, with_threads  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast import ops
from kgrec_fast.ops.gumbel import gumbel_noise_reference
from kgrec_fast.ops.random import Stream
from kgrec_fast.ops.selection import (
    mask_positions,
    mask_positions_reference,
    topk_mask,
    topk_mask_reference,
)

RNG = torch.tensor([123456789012345, 6])
# Around vectors, tiles of 512, and the bits of a digit.
SIZES = (0, 1, 2, 3, 15, 16, 17, 63, 511, 512, 513, 1025, 2049)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(n: int) -> Tensor:
    return torch.randn(n, generator=_generator(1), dtype=torch.float64)


def _few(n: int) -> Tensor:
    return torch.randint(-3, 4, (n,), generator=_generator(2)).double()


def _awkward(n: int) -> Tensor:
    """Numbers of every kind: both zeros, infinities, NaN of both signs, subnormals."""
    kinds = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-42, -1e-42, 1e-310, 6e-8]
    kinds += [1.0, -1.0, 65504.0, -65504.0, 3.0e38, -3.0e38, 1e308, -1e308, 2.0**-24, -(2.0**-14)]
    return torch.tensor(kinds, dtype=torch.float64)[
        torch.randint(len(kinds), (n,), generator=_generator(3))
    ]


VALUES: dict[str, Callable[[int], Tensor]] = {
    "normal": _normal,
    "few": _few,
    "awkward": _awkward,
    "equal": lambda n: torch.full((n,), -2.5, dtype=torch.float64),
    "NaN": lambda n: torch.full((n,), math.nan, dtype=torch.float64),
    "-inf": lambda n: torch.full((n,), -math.inf, dtype=torch.float64),
    "neighbours": lambda n: 1 + torch.arange(n).flip(0).double() * 2.0**-52,
}


def random_mask(n: int, share: float, seed: int = 4) -> Tensor:
    return torch.rand(n, generator=_generator(seed)) < share


def by_hand(values: Tensor, k: int, largest: bool, mask: Tensor | None) -> Tensor:
    """Python's sort, which is stable, with the order of the numbers written out."""
    numbers = values.tolist()
    ids = [i for i in range(len(numbers)) if mask is None or mask[i]]

    def place(i: int) -> tuple[bool, float]:
        number = numbers[i]
        if math.isnan(number):
            return (not largest, 0.0)  # False comes first
        return (largest, -number if largest else number)

    chosen = torch.zeros(len(numbers), dtype=torch.bool)
    chosen[sorted(ids, key=place)[:k]] = True
    return chosen


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", VALUES)
def test_equals_a_stable_sort(backend: str, kind: str, dtype: torch.dtype) -> None:  # noqa: F811
    for n in SIZES:
        values = VALUES[kind](n).to(dtype)
        for share in (None, 0.6, 0.0):
            mask = None if share is None else random_mask(n, share)
            for largest in (True, False):
                for k in {0, min(1, n), n // 3, max(n - 1, 0), n}:
                    found = topk_mask(values, k, largest=largest, mask=mask)
                    assert found.dtype == torch.bool
                    assert torch.equal(found, by_hand(values, k, largest, mask)), (n, k, share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_takes_the_numbers_that_torch_topk_takes(isa: str, dtype: torch.dtype) -> None:
    for kind in ("normal", "few", "awkward"):
        values = VALUES[kind](3000).to(dtype)
        for k in (1, 10, 1500, 2999):
            for largest in (True, False):
                taken = values[topk_mask(values, k, largest=largest)]
                theirs = torch.topk(values, k, largest=largest).values
                assert torch.equal(taken.isnan().sum(), theirs.isnan().sum())
                torch.testing.assert_close(
                    taken.sort().values, theirs.sort().values, rtol=0, atol=0, equal_nan=True
                )


def test_many_random_cases(isa: str) -> None:
    generator = _generator(7)
    for _ in range(300):
        n, levels = (int(torch.randint(1, high, (), generator=generator)) for high in (1400, 40))
        values = torch.randint(levels, (n,), generator=generator) * 0.37 - 3
        mask = torch.rand(n, generator=generator) < torch.rand((), generator=generator)
        k = int(torch.randint(n + 1, (), generator=generator))
        largest = bool(torch.rand((), generator=generator) < 0.5)
        found = topk_mask(values, k, largest=largest, mask=mask)
        assert torch.equal(found, by_hand(values, k, largest, mask))


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.1, 0.3, 0.5, 0.7, 0.999, 1.0])
def test_rate_is_a_share_of_the_set_bits(backend: str, rate: float) -> None:  # noqa: F811
    for n in (0, 1, 2, 10, 513, 1000):
        values = VALUES["few"](n).float()
        for mask in (None, random_mask(n, 0.5), random_mask(n, 0.0)):
            count = n if mask is None else int(mask.sum())
            k = math.floor(rate * count)
            found = topk_mask(values, rate=rate, mask=mask)
            assert torch.equal(found, by_hand(values, k, True, mask))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("streams", [(3,), (0x500, 0x700), (1, 1, 2, 3)])
def test_noise_is_added_stream_by_stream(
    backend: str,  # noqa: F811
    dtype: torch.dtype,
    streams: tuple[int, ...],
) -> None:
    for n in (1, 17, 2500):
        values = VALUES["normal"](n).to(dtype)
        noisy = values.to(torch.float64 if dtype == torch.float64 else torch.float32)
        for stream in streams:
            noisy = noisy + gumbel_noise_reference(n, RNG, stream)
        mask = random_mask(n, 0.7)
        for largest in (True, False):
            found = topk_mask(values, n // 3, largest=largest, mask=mask, rng=RNG, streams=streams)
            assert torch.equal(found, by_hand(noisy, n // 3, largest, mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "few", "equal"])
def test_threads_do_not_matter(isa: str, kind: str, dtype: torch.dtype) -> None:
    n = 200_001
    values, mask = VALUES[kind](n).to(dtype), random_mask(n, 0.5)
    for streams in ((), (3,)):
        how = {"mask": mask, "rng": RNG, "streams": streams}
        results = with_threads(lambda how=how: topk_mask(values, rate=0.4, **how))
        expected = topk_mask_reference(values, rate=0.4, **how)
        assert all(torch.equal(found, expected) for found in results)
    for k in (0, 1, 256, n):
        expected = topk_mask_reference(values, k, mask=mask)
        results = with_threads(lambda k=k: topk_mask(values, k, mask=mask))
        assert all(torch.equal(found, expected) for found in results)


@pytest.mark.parametrize("dtype", FLOATS)
def test_operands_that_are_not_contiguous(isa: str, dtype: torch.dtype) -> None:
    values, mask = VALUES["few"](1000).to(dtype), random_mask(1000, 0.5)
    rng = torch.stack([RNG, RNG], 1)[:, 0]
    assert not rng.is_contiguous()
    found = topk_mask(strided(values), 300, mask=strided(mask), rng=rng, streams=(3,))
    assert torch.equal(found, topk_mask_reference(values, 300, mask=mask, rng=RNG, streams=(3,)))
    # At no multiple of a vector, and with a mask at no multiple of eight.
    found = topk_mask(values[3:], 300, mask=mask[3:])
    assert torch.equal(found, topk_mask_reference(values[3:], 300, mask=mask[3:]))
    assert torch.equal(mask_positions(strided(mask), 700), mask_positions_reference(mask, 700))
    assert torch.equal(mask_positions(mask[3:], 700), mask_positions_reference(mask[3:], 700))


def test_operands_are_left_alone(isa: str) -> None:
    values, mask = VALUES["few"](1000).float().requires_grad_(), random_mask(1000, 0.5)
    before = values.detach().clone(), mask.clone()
    found = topk_mask(values, 300, mask=mask, rng=RNG, streams=(3,))
    assert not found.requires_grad
    assert torch.equal(values.detach(), before[0])
    assert torch.equal(mask, before[1])


# -- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.95, 1.0])
def test_positions_of_set_bits(backend: str, share: float) -> None:  # noqa: F811
    for n in (0, 1, 2, 7, 8, 9, 127, 128, 129, 5000, 16_383, 16_384, 16_385, 40_000):
        mask = random_mask(n, share)
        every = mask.nonzero().flatten().tolist()
        for count in {0, 1, len(every) // 2, len(every), len(every) + 1, n + 5}:
            found = mask_positions(mask, count)
            assert found.dtype == torch.int64
            assert found.tolist() == every[:count] + [-1] * (count - len(every))


def test_positions_do_not_depend_on_threads(isa: str) -> None:
    mask = random_mask(300_001, 0.3)
    for count in (10, 60_000, 200_000):
        for found in with_threads(lambda count=count: mask_positions(mask, count)):
            assert torch.equal(found, mask_positions_reference(mask, count))


def test_slots_refuse_what_is_no_element() -> None:
    mask = random_mask(50, 0.5)
    for bad in (-1, 50):
        with pytest.raises(RuntimeError, match=rf"drawn\[1\] is {bad}, expected 0 <= drawn < 50"):
            torch.ops.kgrec_fast.masked_slots(mask, torch.tensor([3, bad]))


# -- torch ----------------------------------------------------------------------------------------


def test_opcheck() -> None:
    values, mask = VALUES["few"](50).float(), random_mask(50, 0.5)
    check, native = torch.library.opcheck, torch.ops.kgrec_fast
    check(native.topk_mask.default, (values, 7, None, True, mask, RNG, [1, 2]))
    check(native.topk_mask.default, (values, None, 0.5, False, None, None, []))
    check(native.mask_positions.default, (mask, 30))
    check(native.masked_slots.default, (mask, torch.tensor([3, 49, 4])))
    check(native.gumbel_noise.default, (30, RNG, 4))


def _selections(values: Tensor, mask: Tensor, rng: Tensor) -> tuple[Tensor, ...]:
    return (
        topk_mask(values, 20, mask=mask, rng=rng, streams=(Stream.EDGE_NOISE, 2)),
        topk_mask(values, rate=0.3, largest=False, mask=mask),
        ops.gumbel_topk(values, 9, rng, 5),
        mask_positions(mask, 40),
        ops.gumbel_noise(33, rng, 6),
    )


def test_compiles_whole() -> None:
    given = (VALUES["few"](100).float(), random_mask(100, 0.5), RNG)
    compiled = torch.compile(_selections, fullgraph=True, backend="aot_eager")
    for ours, wanted in zip(compiled(*given), _selections(*given), strict=True):
        assert torch.equal(ours, wanted)


def test_shapes_need_no_data() -> None:
    given = (VALUES["few"](100).float(), random_mask(100, 0.5), RNG)
    expected = _selections(*given)
    with FakeTensorMode() as mode:
        fakes = _selections(*(mode.from_tensor(x) for x in given))
    for fake, real in zip(fakes, expected, strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


# -- errors ---------------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    x, mask = torch.zeros(5), torch.zeros(5, dtype=torch.bool)
    for call, error, message in (
        (lambda: topk_mask([1.0], 1), TypeError, "values is a list"),
        (lambda: topk_mask(x.long(), 1), TypeError, r"values has dtype torch\.int64"),
        (lambda: topk_mask(x[None], 1), ValueError, r"values has shape \[1, 5\], expected \[n\]"),
        (lambda: topk_mask(x), ValueError, "k is None and rate is None, expected exactly one"),
        (lambda: topk_mask(x, 1, 0.5), ValueError, "k is 1 and rate is 0.5"),
        (lambda: topk_mask(x, 6), ValueError, "k is 6, expected 0 <= k <= 5"),
        (lambda: topk_mask(x, -1), ValueError, "k is -1"),
        (lambda: topk_mask(x, rate=1.5), ValueError, "rate is 1.5, expected 0 <= rate <= 1"),
        (lambda: topk_mask(x, rate=math.nan), ValueError, "rate is nan"),
        (lambda: topk_mask(x, 1, mask=x), TypeError, r"mask is a torch\.float32 tensor"),
        (lambda: topk_mask(x, 1, mask=mask[1:]), ValueError, r"mask has shape \[4\], .* \[5\]"),
        (lambda: topk_mask(x, 1, streams=(1,)), TypeError, "rng is NoneType"),
        (lambda: topk_mask(x, 1, rng=RNG, streams=(-1,)), ValueError, "stream is -1"),
        (lambda: topk_mask(x, 1, rng=RNG, streams=range(5)), ValueError, "streams has 5 numbers"),
        (lambda: mask_positions(x, 1), TypeError, r"mask is a torch\.float32 tensor"),
        (lambda: mask_positions(mask[None], 1), ValueError, r"mask has shape \[1, 5\]"),
        (lambda: mask_positions(mask, -1), ValueError, "count is -1"),
    ):
        with pytest.raises(error, match=message):
            call()
