"""Dropout, normalisation and residual of the CUDA kernels, on the CPU, against float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from torch import Tensor

from kgrec_fast.ops.dropout_normalize_add import dropout_normalize_add_reference
from kgrec_fast.ops.random import keep_mask_reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
# Widths with a kernel of their own, and some without; more rows than a block takes at once.
SHAPES = [(7, 1), (9, 3), (5, 8), (20, 30), (300, 32), (70, 64), (40, 128), (20, 256), (3, 300)]
RNG = (123456789012345, 6)
STREAM = 0x0101


def sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def dropout(p: float) -> dict:
    return {"rng": torch.tensor(RNG), "p": p, "stream": STREAM} if p > 0 else {}


def forward(
    x: Tensor, residual: Tensor | None, p: float, **how: object
) -> tuple[Tensor, Tensor, Tensor]:
    y, out = (torch.full(x.shape, math.nan, dtype=x.dtype) for _ in range(2))
    norm = torch.full(x.shape[:1], math.nan, dtype=sums(x.dtype))
    operands = {"x": x, "residual": residual, "y": y, "norm": norm}
    operands["out"] = None if residual is None else out
    run("dropout_normalize_add", dtype=x.dtype, **operands, **dropout(p), **how)
    return y, out, norm


def backward(
    grad_y: Tensor | None,
    grad_out: Tensor | None,
    y: Tensor,
    norm: Tensor,
    p: float,
    **how: object,
) -> Tensor:
    grad_x = torch.full(y.shape, math.nan, dtype=y.dtype)
    operands = {"grad_y": grad_y, "grad_out": grad_out, "y": y, "norm": norm, "grad_x": grad_x}
    run("dropout_normalize_add_backward", dtype=y.dtype, **operands, **dropout(p), **how)
    return grad_x


def same_bits(one: Tensor, other: Tensor) -> bool:
    as_bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[one.element_size()]
    return torch.equal(one.view(as_bits), other.view(as_bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_values(dtype: torch.dtype, shape: tuple[int, int], p: float) -> None:
    x, residual = values(shape, dtype, 1), values(shape, dtype, 2)
    y, out, norm = forward(x, residual, p)
    exact, _ = dropout_normalize_add_reference(
        x.double(), residual.double(), p, torch.tensor(RNG), STREAM
    )
    # Scaling, squares, root and quotient each round once; the squares add up D terms.
    bound = exact.abs() * (EPS[dtype] + (8 + shape[1]) * EPS[sums(dtype)])
    tiny = torch.finfo(dtype).tiny * EPS[dtype]
    assert bool(((y.double() - exact).abs() <= bound + tiny).all())
    assert torch.equal(out, residual + y)
    keep = keep_mask_reference(torch.tensor(RNG), STREAM, p, x.shape)
    assert not y[~keep].any()
    message = torch.where(keep, x.double() / (1 - p), 0.0)
    torch.testing.assert_close(
        norm.double(), message.norm(dim=1), rtol=(8 + shape[1]) * EPS[sums(dtype)], atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 30])
def test_rows_of_a_larger_matrix(dtype: torch.dtype, width: int) -> None:
    x, grad = values((40, width), dtype, 1), values((40, width), dtype, 2)
    ids = torch.tensor([39, 0, 7, 7, 13])
    y, _, norm = forward(x, None, 0.3)
    few_y, _, few_norm = forward(x[ids], None, 0.3, row_ids=ids)
    assert same_bits(few_y, y[ids])
    assert same_bits(few_norm, norm[ids])
    grad_x = backward(grad, None, y, norm, 0.3)
    assert same_bits(backward(grad[ids], None, few_y, few_norm, 0.3, row_ids=ids), grad_x[ids])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 64), (9, 30)], ids=str)
def test_without_a_residual(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = values(shape, dtype, 1)
    y, out, norm = forward(x, None, 0.3)
    same_y, _, same_norm = forward(x, values(shape, dtype, 2), 0.3)
    assert same_bits(y, same_y)
    assert same_bits(norm, same_norm)
    assert out.isnan().all()  # untouched


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("given", ["both", "y", "out"])
def test_gradients(dtype: torch.dtype, shape: tuple[int, int], p: float, given: str) -> None:
    x, residual = values(shape, dtype, 3), values(shape, dtype, 4)
    grad_y = values(shape, dtype, 5) if given != "out" else None
    grad_out = values(shape, dtype, 6) if given != "y" else None
    y, _, norm = forward(x, residual, p)
    grad_x = backward(grad_y, grad_out, y, norm, p)

    wide = x.double().requires_grad_()
    exact, _ = dropout_normalize_add_reference(
        wide, residual.double(), p, torch.tensor(RNG), STREAM
    )
    gradient = sum(g.double() for g in (grad_y, grad_out) if g is not None)
    exact.backward(gradient)
    # Per row: g, y and the result round once each, and g - y (g . y) may cancel.
    size = gradient.norm(dim=1, keepdim=True) / norm.double().clamp(min=1e-30).unsqueeze(1)
    error = (grad_x.double() - wide.grad).abs()
    keep = keep_mask_reference(torch.tensor(RNG), STREAM, p, x.shape)
    limit = (4 * EPS[dtype] + 2 * shape[1] * EPS[sums(dtype)]) / (1 - p) * size
    assert bool((error <= limit + torch.finfo(dtype).tiny).all())
    assert not grad_x[~keep].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 64), (9, 30), (5, 256)], ids=str)
def test_order_and_grid_do_not_matter(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual = values(shape, dtype, 1), values(shape, dtype, 2)

    def both(**how: object) -> list[Tensor]:
        y, out, norm = forward(x, residual, 0.2, **how)
        return [y, out, norm, backward(residual, x, y, norm, 0.2, **how)]

    expected = both()
    for order, seed in ORDERS:
        for max_blocks in (0, 1):
            results = both(order=order, seed=seed, max_blocks=max_blocks)
            assert all(same_bits(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 64])
def test_zero_rows_give_zero_and_zero_gradient(dtype: torch.dtype, width: int) -> None:
    x, residual = values((4, width), dtype, 1), values((4, width), dtype, 2)
    x[1] = 0
    x[3] = -0.0
    y, out, norm = forward(x, residual, 0.0)
    assert not y[[1, 3]].any()
    assert torch.equal(out[[1, 3]], residual[[1, 3]])
    assert norm[[1, 3]].tolist() == [0, 0]
    grad_x = backward(residual, residual, y, norm, 0.0)
    assert not grad_x[[1, 3]].any()
    assert grad_x[[0, 2]].isfinite().all()
    assert grad_x[[0, 2]].any()


@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float64, 1e-14), (torch.float32, 1e-14), (torch.float32, 1e-30)]
)
def test_rows_below_eps_are_divided_by_eps(dtype: torch.dtype, size: float, width: int) -> None:
    # At 1e-30 the squares vanish in float32, but the row is not zero.
    x = torch.full((2, width), size, dtype=dtype)
    y, _, norm = forward(x, torch.zeros_like(x), 0.0)
    torch.testing.assert_close(y, x * 1e12, rtol=1e-6, atol=0)
    grad_x = backward(torch.ones_like(x), None, y, norm, 0.0)
    torch.testing.assert_close(grad_x, torch.full_like(x, 1e12), rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [8, 64])
def test_nan_stays_in_its_row_and_dropped_ones_are_gone(width: int) -> None:
    x = torch.ones(3, width)
    keep = keep_mask_reference(torch.tensor(RNG), STREAM, 0.5, x.shape)
    x[0, int((~keep[0]).nonzero()[0])] = math.nan
    x[1, int(keep[1].nonzero()[0])] = math.nan
    y, _, norm = forward(x, torch.zeros_like(x), 0.5)
    assert y[[0, 2]].isfinite().all()
    assert y[1].isnan().any()
    assert backward(x, None, y, norm, 0.5)[2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("begin", [0, 3, 8])
def test_strided_rows(dtype: torch.dtype, begin: int) -> None:
    """From column 8 on vectors can be loaded, from 3 on the general kernel serves."""
    wide = values((9, 80), dtype, 1)
    x, residual = wide[:, begin : begin + 64], values((9, 64), dtype, 2)
    y, out, norm = forward(x, residual, 0.2)
    for got, expected in zip((y, out, norm), forward(x.clone(), residual, 0.2), strict=True):
        torch.testing.assert_close(got, expected, rtol=4 * EPS[dtype], atol=0)
    grad_x = backward(x, None, y, norm, 0.2)
    expected = backward(x.clone(), None, y, norm, 0.2)
    torch.testing.assert_close(grad_x, expected, rtol=8 * EPS[dtype], atol=8 * EPS[dtype])


@pytest.mark.parametrize("shape", [(0, 64), (4, 0), (0, 0)])
def test_nothing(shape: tuple[int, int]) -> None:
    x = torch.zeros(shape)
    y, _, norm = forward(x, x, 0.5)
    assert not norm.any()
    assert backward(y, y, y, norm, 0.5).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_nothing_is_read_or_written_twice(dtype: torch.dtype, p: float) -> None:
    """In units of 32 bytes: rows of x and residual, of both results, and the norms."""
    rows, width = 96, 64
    x, norm = values((rows, width), dtype, 1), torch.ones(rows, dtype=sums(dtype))
    matrix = rows * width * x.element_size() // 32
    results = {"y": x.clone(), "out": x.clone(), "norm": norm}
    traffic = run(
        "dropout_normalize_add",
        dtype=dtype,
        x=x,
        residual=x.clone(),
        **results,
        **dropout(p),
        count=True,
    )
    sectors = dict.fromkeys(("x", "residual", "y", "out"), 0)
    for t in traffic:
        if t.array in sectors:
            sectors[t.array] += t.sectors
    assert sum(sectors.values()) == 4 * matrix


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for width in (7, 64, 256):
                x = values((9, width), dtype, 1)
                y, _, norm = forward(x, x, 0.3)
                backward(x, None, y, norm, 0.3)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
