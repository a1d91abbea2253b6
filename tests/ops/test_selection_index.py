"""Masks of the k largest of indexed values, and of so many that a sample guesses where to look."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from segment_helpers import FLOATS, backend, strided, with_threads  # noqa: F401
from test_selection import RNG, VALUES, by_hand, random_mask
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast.ops.gumbel import gumbel_noise_reference
from kgrec_fast.ops.selection import topk_mask, topk_mask_reference

# Around vectors, tiles of 512, and runs of a sample.
SIZES = (0, 1, 2, 15, 17, 511, 512, 513, 1023, 2049, 4100)


def random_index(n: int, values: int) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randint(max(values, 1), (n,), generator=generator, dtype=torch.int32)


def by_sort(values: Tensor, k: int, largest: bool, mask: Tensor | None) -> Tensor:
    """torch's stable sort of float64 numbers without NaN."""
    order = torch.sort(values.double(), descending=largest, stable=True).indices
    if mask is not None:
        order = order[mask[order]]
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[order[:k]] = True
    return chosen


# -- index ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["normal", "few", "awkward"])
def test_equals_a_stable_sort_of_the_gathered(
    backend: str,  # noqa: F811
    kind: str,
    dtype: torch.dtype,
) -> None:
    values = VALUES[kind](700).to(dtype)
    for n in SIZES:
        index = random_index(n, 700)
        gathered = values[index.long()]
        for share in (None, 1.0, 0.5, 0.0):
            mask = None if share is None else random_mask(n, share)
            count = n if mask is None else int(mask.sum())
            for largest in (True, False):
                found = topk_mask(values, n // 3, largest=largest, mask=mask, index=index)
                assert found.dtype == torch.bool
                assert torch.equal(found, by_hand(gathered, n // 3, largest, mask))
                found = topk_mask(values, rate=0.4, largest=largest, mask=mask, index=index)
                k = math.floor(0.4 * count)
                assert torch.equal(found, by_hand(gathered, k, largest, mask))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("streams", [(3,), (0x700, 0x701), (1, 1, 2, 3)])
def test_noise_is_that_of_the_element(
    backend: str,  # noqa: F811
    dtype: torch.dtype,
    streams: tuple[int, ...],
) -> None:
    values = VALUES["normal"](90).to(dtype)
    for n in (1, 17, 2500):
        index, mask = random_index(n, 90), random_mask(n, 0.7)
        noisy = values.to(torch.float64 if dtype == torch.float64 else torch.float32)[index.long()]
        for stream in streams:
            noisy = noisy + gumbel_noise_reference(n, RNG, stream)
        for kept in (None, mask):
            how = {"mask": kept, "rng": RNG, "streams": streams, "index": index}
            found = topk_mask(values, n // 3, **how)
            assert torch.equal(found, by_hand(noisy, n // 3, True, kept))


def test_ends_of_the_values(isa: str) -> None:
    values = torch.arange(5.0)
    index = torch.tensor([4, 0, 4, 3, 0], dtype=torch.int32)
    assert topk_mask(values, 3, index=index).tolist() == [True, False, True, True, False]
    assert topk_mask(values, 1, index=index, largest=False).tolist() == [False, True] + [False] * 3
    assert topk_mask(values[:0], 0, index=index[:0]).numel() == 0


def test_an_index_that_is_not_contiguous(isa: str) -> None:
    values, index = VALUES["few"](300).float(), random_index(1000, 300)
    mask = random_mask(1000, 0.5)
    expected = topk_mask_reference(values, 300, mask=mask, index=index)
    assert torch.equal(topk_mask(strided(values), 300, mask=mask, index=strided(index)), expected)
    found = topk_mask(values, 300, mask=mask[3:], index=index[3:])
    assert torch.equal(found, topk_mask_reference(values, 300, mask=mask[3:], index=index[3:]))


# -- many elements --------------------------------------------------------------------------------


def misleading(n: int) -> Tensor:
    """Every 16th run of 128 elements, those that the sample has, is far above the others."""
    run = torch.arange(n) // 128
    return VALUES["normal"](n) + 10 * (run % 16 == 0)


MANY: dict[str, Callable[[int], Tensor]] = {
    "normal": VALUES["normal"],
    "few": VALUES["few"],
    "equal": VALUES["equal"],
    "neighbours": VALUES["neighbours"],
    "ascending": lambda n: torch.arange(n).double(),
    "misleading": misleading,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", MANY)
def test_many_elements(isa: str, kind: str, dtype: torch.dtype) -> None:
    # Around parts of 16384, and where the sample is full.
    for n in (16_383, 16_384, 16_385, 2**17):
        values = MANY[kind](n).to(dtype)
        for share in (None, 0.5, 0.001, 0.0):
            mask = None if share is None else random_mask(n, share)
            count = n if mask is None else int(mask.sum())
            for k in {0, 1, count // 20, count // 3, count - 1, count} - {-1}:
                for largest in (True, False):
                    found = topk_mask(values, k, largest=largest, mask=mask)
                    assert torch.equal(found, by_sort(values, k, largest, mask)), (n, share, k)


@pytest.mark.parametrize("kind", MANY)
def test_threads_do_not_matter(isa: str, kind: str) -> None:
    n = 2**17 + 5
    values, index, mask = MANY[kind](n).float(), random_index(n, n), random_mask(n, 0.5)
    for how in ({"rng": RNG, "streams": (3, 4)}, {"largest": False}):
        expected = topk_mask_reference(values, rate=0.4, mask=mask, index=index, **how)
        for found in with_threads(
            lambda how=how: topk_mask(values, rate=0.4, mask=mask, index=index, **how)
        ):
            assert torch.equal(found, expected)


# -- torch ----------------------------------------------------------------------------------------


def test_opcheck() -> None:
    values, index, mask = VALUES["few"](20).float(), random_index(50, 20), random_mask(50, 0.5)
    check, native = torch.library.opcheck, torch.ops.kgrec_fast.topk_mask.default
    check(native, (values, 7, None, True, mask, RNG, [1, 2], index))
    check(native, (values, None, 0.5, False, None, None, [], index))


def _selection(values: Tensor, index: Tensor, mask: Tensor, rng: Tensor) -> Tensor:
    return topk_mask(values, rate=0.3, mask=mask, rng=rng, streams=(1, 2), index=index)


def test_compiles_whole_and_needs_no_data() -> None:
    given = (VALUES["few"](20).float(), random_index(100, 20), random_mask(100, 0.5), RNG)
    expected = _selection(*given)
    compiled = torch.compile(_selection, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), expected)
    with FakeTensorMode() as mode:
        fake = _selection(*(mode.from_tensor(x) for x in given))
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


def test_gradients_stop_here(isa: str) -> None:
    values = VALUES["few"](20).float().requires_grad_()
    assert not topk_mask(values, 7, index=random_index(50, 20)).requires_grad


# -- errors ---------------------------------------------------------------------------------------


def test_bad_arguments_are_named(isa: str) -> None:
    x, index = torch.zeros(5), torch.zeros(7, dtype=torch.int32)
    mask = torch.zeros(5, dtype=torch.bool)
    for call, error, message in (
        (lambda: topk_mask(x, 1, index=[1]), TypeError, "index is a list, expected an int32"),
        (lambda: topk_mask(x, 1, index=index.long()), TypeError, r"index is a torch\.int64 tensor"),
        (lambda: topk_mask(x, 1, index=index[None]), ValueError, r"index has shape \[1, 7\]"),
        (lambda: topk_mask(x, 1, index=index.to("meta")), ValueError, "index is on meta"),
        (lambda: topk_mask(x, 8, index=index), ValueError, "k is 8, expected 0 <= k <= 7"),
        (lambda: topk_mask(x, 1, mask=mask, index=index), ValueError, r"mask .* \[5\], .* \[7\]"),
        (lambda: topk_mask(x[:0], 1, index=index), ValueError, "expected 0 <= index < 0"),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("streams", [(), (1, 2)])
@pytest.mark.parametrize("wrong", [-1, 5, 2**31 - 1, -(2**31)])
def test_an_index_out_of_range_is_named(isa: str, wrong: int, streams: tuple[int, ...]) -> None:
    """Wherever it stands, masked or not."""
    for n, place in ((1, 0), (600, 599), (40_000, 0), (40_000, 39_999)):
        index = torch.full((n,), 2, dtype=torch.int32)
        index[place] = wrong
        mask = torch.arange(n) != place
        low, high = min(wrong, int(index.min())), max(wrong, int(index.max()))
        for kept in (None, mask):
            with pytest.raises(
                ValueError, match=f"index has numbers from {low} to {high}, expected 0 <= index < 5"
            ):
                topk_mask(torch.zeros(5), 1, mask=kept, rng=RNG, streams=streams, index=index)
