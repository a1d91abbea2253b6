"""Segment kernels for CUDA, on the CPU, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from emulator import ORDERS, recording, run_sanitized
from segment_cases import (
    DTYPES,
    LENGTHS,
    WIDTHS,
    assert_as_good,
    call,
    pointers,
    same_bits,
    softmax_gradient,
    values,
)
from torch import Tensor

from kgrec_fast.ops.segment import (
    segment_mean_reference,
    segment_softmax_reference,
    segment_sum_reference,
)


def reduced(src: Tensor, ptr: Tensor, mean: bool, **how: object) -> Tensor:
    shape = (ptr.numel() - 1, src.size(1))
    return call("segment_reduce", src, shape, ptr, len(src), mean=mean, **how)


def spread(per_segment: Tensor, ptr: Tensor, rows: int, mean: bool, **how: object) -> Tensor:
    shape = (rows, per_segment.size(1))
    return call("segment_spread", per_segment, shape, ptr, rows, mean=mean, **how)


def softmax(src: Tensor, ptr: Tensor, **how: object) -> Tensor:
    return call("segment_softmax", src, src.shape, ptr, len(src), **how)


def backward(grad: Tensor, out: Tensor, ptr: Tensor, **how: object) -> Tensor:
    return call("segment_softmax_backward", out, out.shape, ptr, len(out), grad=grad, **how)


def segments(lengths: list[int]) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths).long())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_sum_and_mean(dtype: torch.dtype, width: int, lengths: list[int]) -> None:
    ptr = pointers(lengths)
    src = values((sum(lengths), width), dtype, 1)
    for mean, reference in ((False, segment_sum_reference), (True, segment_mean_reference)):
        got = reduced(src, ptr, mean)
        assert_as_good(got, reference(src, ptr), reference(src.double(), ptr))
        assert not got[ptr.diff() == 0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_spread(dtype: torch.dtype, width: int, lengths: list[int]) -> None:
    ptr, segment, rows = pointers(lengths), segments(lengths), sum(lengths)
    per_segment = values((len(lengths), width), dtype, 2)
    assert same_bits(spread(per_segment, ptr, rows, False), per_segment[segment])
    count = ptr.diff()[segment].unsqueeze(1)
    exact = per_segment.double()[segment] / count
    assert_as_good(spread(per_segment, ptr, rows, True), exact.to(dtype), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_softmax(dtype: torch.dtype, width: int, lengths: list[int]) -> None:
    ptr = pointers(lengths)
    src, grad = (values((sum(lengths), width), dtype, seed) for seed in (3, 4))
    out = softmax(src, ptr)
    exact = segment_softmax_reference(src.double(), ptr)
    assert_as_good(out, segment_softmax_reference(src, ptr), exact)

    got, index = backward(grad, out, ptr), segments(lengths)
    plain = softmax_gradient(grad, out, index, len(lengths)).to(dtype)
    exact = softmax_gradient(grad.double(), out.double(), index, len(lengths))
    assert_as_good(got, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 64, 100])
def test_order_and_grid_do_not_matter(dtype: torch.dtype, width: int) -> None:
    lengths = [4, 0, 520, 9, 30]
    ptr, rows = pointers(lengths), sum(lengths)
    src, grad = (values((rows, width), dtype, seed) for seed in (5, 6))

    def everything(**how: object) -> list[Tensor]:
        out = softmax(src, ptr, **how)
        mean = reduced(src, ptr, True, **how)
        return [
            out,
            backward(grad, out, ptr, **how),
            mean,
            reduced(src, ptr, False, **how),
            spread(mean, ptr, rows, True, **how),
        ]

    expected = everything()
    for order, seed in ORDERS:
        results = everything(order=order, seed=seed, max_blocks=seed)
        assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_aligned(dtype: torch.dtype) -> None:
    ptr = pointers(LENGTHS["short"])
    rows, width = int(ptr[-1]), 64
    src = values((rows * width + 1,), dtype, 7)[1:].view(rows, width)
    exact = segment_softmax_reference(src.double(), ptr)
    assert_as_good(softmax(src, ptr), segment_softmax_reference(src, ptr), exact)


@pytest.mark.parametrize("rows", [40, 1100])
def test_infinite_and_missing_numbers_stay_in_their_segment(rows: int) -> None:
    """As in the reference, in short and in long segments."""
    inf = torch.inf
    ptr = pointers([rows] * 6)
    src = values((6 * rows, 2), torch.float32, 8)
    src[: rows - 1, 0] = -inf  # one finite element at the end
    src[rows : 2 * rows, 0] = -inf
    src[2 * rows + 3, 0] = inf
    src[3 * rows + 3, 0] = torch.nan
    src[4 * rows : 5 * rows, 0] = -inf
    src[4 * rows + 3, 0] = torch.nan
    got, expected = softmax(src, ptr), segment_softmax_reference(src, ptr)
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert got[:rows].isfinite().all()
    assert got[rows : 5 * rows, 0].isnan().all()


@pytest.mark.parametrize("bad", [[0, -5, 10**15, 3, 9000], [700, 600, 0, -1], [-(2**63), 2**62]])
def test_bad_pointers_touch_nothing_else(bad: list[int]) -> None:
    src, ptr = values((700, 4), torch.float32, 9), torch.tensor(bad)
    out = softmax(src, ptr)
    backward(src, out, ptr)
    spread(reduced(src, ptr, True), ptr, 700, True)


def test_rows_of_no_segment_become_nan() -> None:
    src, ptr = torch.ones(6, 1), torch.tensor([1, 3, 4])
    assert softmax(src, ptr).isnan().flatten().tolist() == [True, *[False] * 3, True, True]
    assert softmax(src, torch.tensor([0])).isnan().all()


def test_sanitized(tmp_path: Path) -> None:
    ptr = pointers([3, 0, 515, 2])
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for width in (1, 8, 100):
                src = values((520, width), dtype, 1)
                out = softmax(src, ptr)
                backward(src, out, ptr)
                spread(reduced(src, ptr, True), ptr, 520, True)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
