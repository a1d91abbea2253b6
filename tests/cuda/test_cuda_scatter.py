"""Scatter kernels for CUDA, on the CPU, against float64; sorted as the binding sorts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from segment_cases import (
    DTYPES,
    WIDTHS,
    assert_as_good,
    call,
    same_bits,
    softmax_gradient,
    sums,
    values,
)
from torch import Tensor

from kgrec_fast.ops.scatter import scatter_softmax_reference


def groups(index: Tensor, size: int, **how: object) -> dict[str, Tensor]:
    ordered, perm = index.sort(stable=True)
    ptr = torch.full((size + 1,), -1)
    run("scatter_pointers", sorted=ordered, ptr=ptr, **how)
    return {"ptr": ptr, "perm": perm, "index": index}


def scatter_sum(src: Tensor, index: Tensor, size: int, **how: object) -> Tensor:
    """src [batches, rows, width]"""
    batches, rows, width = src.shape
    operands = groups(index, size, **how)
    shape = (batches, size, width)
    return call("segment_reduce", src, shape, rows=rows, batches=batches, **operands, **how)


def softmax(src: Tensor, index: Tensor, size: int, **how: object) -> Tensor:
    operands = groups(index, size, **how)
    return call("segment_softmax", src, src.shape, rows=len(src), **operands, **how)


def backward(grad: Tensor, out: Tensor, index: Tensor, size: int, **how: object) -> Tensor:
    operands = {**groups(index, size, **how), "grad": grad}
    return call("segment_softmax_backward", out, out.shape, rows=len(out), **operands, **how)


def an_index(rows: int, size: int, hub: int = 0) -> Tensor:
    """Random, with cells that nothing names, and the first `hub` rows in one cell."""
    index = torch.randint(0, max(size - 2, 1), (rows,), generator=torch.Generator().manual_seed(1))
    index[:hub] = 2
    return index[torch.randperm(rows, generator=torch.Generator().manual_seed(2))]


CASES = {
    "short": (60, 13, 0),
    "long": (1100, 9, 800),
    "one": (30, 1, 0),
    "none": (0, 5, 0),
    "wide": (20, 600, 0),
}


@pytest.mark.parametrize("size", [0, 1, 300])
def test_pointers(size: int) -> None:
    index = torch.tensor([-7, -1, 0, 0, 2, 299, 300, 10**15])
    ptr = groups(index, size)["ptr"]
    assert torch.equal(ptr, torch.searchsorted(index, torch.arange(size + 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sum(dtype: torch.dtype, width: int, case: tuple[int, int, int]) -> None:
    rows, size, hub = case
    index = an_index(rows, size, hub)
    src = values((2, rows, width), dtype, 1)
    zeros = src.new_zeros(2, size, width)
    exact = zeros.double().index_add(1, index, src.double())
    plain = sums(zeros).index_add(1, index, sums(src)).to(dtype)
    got = scatter_sum(src, index, size)
    assert_as_good(got, plain, exact)
    assert not got[:, index.bincount(minlength=size) == 0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_softmax(dtype: torch.dtype, width: int, case: tuple[int, int, int]) -> None:
    rows, size, hub = case
    index = an_index(rows, size, hub)
    src, grad = (values((rows, width), dtype, seed) for seed in (2, 3))
    out = softmax(src, index, size)
    exact = scatter_softmax_reference(src.double(), index, None, size)
    assert_as_good(out, scatter_softmax_reference(src, index, None, size), exact)

    got = backward(grad, out, index, size)
    exact = softmax_gradient(grad.double(), out.double(), index, size)
    assert_as_good(got, softmax_gradient(grad, out, index, size).to(dtype), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 64])
def test_order_and_grid_do_not_matter(dtype: torch.dtype, width: int) -> None:
    index, size = an_index(560, 9, 530), 9
    src, grad = (values((560, width), dtype, seed) for seed in (4, 5))

    def everything(**how: object) -> list[Tensor]:
        out = softmax(src, index, size, **how)
        total = scatter_sum(src.unsqueeze(0), index, size, **how)
        return [out, total, backward(grad, out, index, size, **how)]

    expected = everything()
    for order, seed in ORDERS:
        results = everything(order=order, seed=seed, max_blocks=seed)
        assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


def test_rows_out_of_range_are_left_out() -> None:
    index = torch.tensor([2, -1, 0, 3, 2, 10**15, -(2**63), 0])
    good = (index >= 0) & (index < 3)
    src = values((8, 4), torch.float32, 6)
    total = scatter_sum(src.unsqueeze(0), index, 3)[0]
    torch.testing.assert_close(total, torch.zeros(3, 4).index_add(0, index[good], src[good]))
    out = softmax(src, index, 3)
    torch.testing.assert_close(out[good], scatter_softmax_reference(src[good], index[good]))
    assert out[~good].isnan().all()
    assert backward(src, out, index, 3)[good].isfinite().all()


def test_sanitized(tmp_path: Path) -> None:
    index = an_index(540, 6, 520)
    index[:2] = torch.tensor([-1, 6])
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for width in (1, 8):
                src = values((540, width), dtype, 1)
                backward(src, softmax(src, index, 6), index, 6)
                scatter_sum(src.view(2, 270, width), index[:270].contiguous(), 6)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
