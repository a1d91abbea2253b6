"""Dropout, normalisation and residual against loops in float64, masks by Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from segment_helpers import (
    EPS,
    FLOATS,
    SUBNORMAL,
    backend,  # noqa: F401
    random_values,
    strided,
    with_threads,
)
from test_random import bits_by_hand
from torch import Tensor

from kgrec_fast import _library, ops
from kgrec_fast.ops.random import Stream

RNG = (123456789012345, 6)
# Fewer columns than a vector, not a multiple of four, the specialised ones, wider than those.
SHAPES = [(7, 1), (9, 3), (5, 8), (20, 30), (6, 64), (33, 65), (3, 300)]


def rng() -> Tensor:
    return torch.tensor(RNG)


def kept(shape: tuple[int, int], p: float, stream: int) -> np.ndarray:
    words = bits_by_hand(*RNG, stream, shape[0] * shape[1])
    return np.array([(word >> 8) / 2**24 >= p for word in words]).reshape(shape)


def loop(x: np.ndarray, residual: np.ndarray, keep: np.ndarray, p: float) -> tuple:
    """Row by row in Python's floats; infinite rows excepted, no row overflows."""
    y = np.zeros_like(x)
    for i, row in enumerate(x):
        message = [value / (1 - p) if k else 0.0 for value, k in zip(row, keep[i], strict=True)]
        norm = max(math.sqrt(math.fsum(m * m for m in message)), 1e-12)
        y[i] = [m / norm for m in message]
    return y, residual + y


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.75])
def test_values(
    backend: str,  # noqa: F811
    dtype: torch.dtype,
    shape: tuple[int, int],
    p: float,
) -> None:
    x, residual = random_values(shape, dtype, 1), random_values(shape, dtype, 2)
    y, out = ops.dropout_normalize_add(x, residual, p, rng(), stream=Stream.USER_MESSAGE + 1)
    keep = kept(shape, p, 0x0101)
    expected, _ = loop(x.double().numpy(), residual.double().numpy(), keep, p)
    assert y.dtype == out.dtype == dtype
    # Scaling, squares, root and quotient each round once; the squares add up D terms.
    accumulator = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    bound = np.abs(expected) * (EPS[dtype] + (8 + shape[1]) * accumulator) + SUBNORMAL[dtype]
    assert (np.abs(y.double().numpy() - expected) <= bound).all()
    assert torch.equal(out, residual + y)
    assert not y[torch.from_numpy(~keep)].any()


def test_no_dropout_needs_no_rng_and_equals_normalize(backend: str) -> None:  # noqa: F811
    x, residual = random_values((40, 64), torch.float32), random_values((40, 64), torch.float32, 1)
    for arguments in ({"p": 0.0, "rng": None}, {"p": 0.4, "rng": None, "training": False}):
        y, out = ops.dropout_normalize_add(x, residual, **arguments)
        normalized = torch.nn.functional.normalize(x)
        torch.testing.assert_close(y, normalized, rtol=64 * EPS[torch.float32], atol=0)
        assert torch.equal(out, residual + y)


def test_share_dropped_is_p(backend: str) -> None:  # noqa: F811
    x = torch.ones(1000, 64)
    y, _ = ops.dropout_normalize_add(x, x, 0.3, rng(), 5)
    dropped = float((y == 0).double().mean())
    assert abs(dropped - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 64_000)


def test_streams_steps_and_seeds_drop_differently(backend: str) -> None:  # noqa: F811
    x = torch.ones(8, 16)
    masks = {
        tuple((ops.dropout_normalize_add(x, x, 0.5, torch.tensor(r), s)[0] != 0).flatten().tolist())
        for r in ((1, 1), (1, 2), (2, 1))
        for s in (0, 1)
    }
    assert len(masks) == 6


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_rows_give_zero_and_zero_gradient(backend: str, dtype: torch.dtype) -> None:  # noqa: F811
    x = random_values((4, 16), dtype)
    x[1] = 0
    x[3] = -0.0
    x.requires_grad_()
    residual = random_values((4, 16), dtype, 1).requires_grad_()
    y, out = ops.dropout_normalize_add(x, residual, 0.0, None)
    assert not y[[1, 3]].any()
    assert torch.equal(out[[1, 3]], residual[[1, 3]])
    (y.sum() * 3 + out.sum()).backward()
    assert x.grad is not None
    assert not x.grad[[1, 3]].any()
    assert x.grad[[0, 2]].isfinite().all()
    assert x.grad[[0, 2]].any()
    assert torch.equal(residual.grad, torch.ones_like(residual))


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float64, 1e-14), (torch.float32, 1e-14), (torch.float32, 1e-30)]
)
def test_rows_below_eps_are_divided_by_eps(
    backend: str,  # noqa: F811
    dtype: torch.dtype,
    size: float,
) -> None:
    # At 1e-30 the squares vanish in float32, but the row is not zero.
    x = torch.full((2, 4), size, dtype=dtype, requires_grad=True)
    y, _ = ops.dropout_normalize_add(x, torch.zeros_like(x), 0.0, None)
    torch.testing.assert_close(y, x.detach() * 1e12, rtol=1e-6, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1e12), rtol=1e-6, atol=0)


def test_nan_stays_in_its_row_and_dropped_ones_are_gone(backend: str) -> None:  # noqa: F811
    x = torch.ones(2, 8)
    keep = kept((2, 8), 0.5, 0)
    assert not keep[0].all()
    assert keep[1].any()
    x[0, int(np.flatnonzero(~keep[0])[0])] = math.nan
    x[1, int(np.flatnonzero(keep[1])[0])] = math.nan
    y, _ = ops.dropout_normalize_add(x, torch.zeros_like(x), 0.5, rng())
    assert y[0].isfinite().all()
    assert y[1].isnan().any()


@pytest.mark.parametrize("shape", [(5, 3), (4, 8), (3, 17)])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradients(backend: str, shape: tuple[int, int], p: float) -> None:  # noqa: F811
    x = random_values(shape, torch.float64, 3).requires_grad_()
    residual = random_values(shape, torch.float64, 4).requires_grad_()

    def both(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return ops.dropout_normalize_add(x, residual, p, rng(), 2)

    if (keep := kept(shape, p, 2)).any(axis=1).all():
        assert torch.autograd.gradcheck(both, (x, residual))
    for output in (0, 1):
        x.grad = residual.grad = None
        weight = random_values(shape, torch.float64, 5)
        (both(x, residual)[output] * weight).sum().backward()
        # d y / d x by the formula, element for element.
        for i in range(shape[0]):
            message = np.where(keep[i], x[i].detach().numpy() / (1 - p), 0.0)
            norm = math.sqrt(math.fsum(message**2))
            if norm == 0:
                assert not x.grad[i].any()
                continue
            unit = message / norm
            jacobian = (np.eye(shape[1]) - np.outer(unit, unit)) / norm / (1 - p) * keep[i]
            expected = weight[i].numpy() @ jacobian
            np.testing.assert_allclose(x.grad[i].numpy(), expected, rtol=1e-10, atol=1e-12)
        assert (residual.grad is None) == (output == 0) or torch.equal(
            residual.grad, weight * output
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-30, -1e-30])
def test_what_is_zero_but_kept_has_a_gradient(
    backend: str,  # noqa: F811
    dtype: torch.dtype,
    zero: float,
) -> None:
    """Whatever its sign, and where it vanishes beside the rest of its row."""
    p, shape = 0.4, (6, 16)
    values = torch.ones(shape, dtype=dtype)
    values[:, ::2] = zero
    x = values.requires_grad_()
    y, _ = ops.dropout_normalize_add(x, None, p, rng(), 2)
    y[:, ::2].sum().backward()
    keep = torch.from_numpy(kept(shape, p, 2))
    norm = (keep[:, 1::2].sum(1, keepdim=True)).double().sqrt() / (1 - p)
    wanted = torch.zeros(shape, dtype=torch.float64)
    wanted[:, ::2] = keep[:, ::2] / norm / (1 - p)
    assert bool((keep[:, ::2].any(1) & keep[:, 1::2].any(1)).all())
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), wanted, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_shorter_types(backend: str, dtype: torch.dtype) -> None:  # noqa: F811
    shape, p = (12, 64), 0.25
    x = random_values(shape, dtype, 3).requires_grad_()
    residual = random_values(shape, dtype, 4)
    weights = [random_values(shape, dtype, seed) for seed in (5, 6)]
    y, out = ops.dropout_normalize_add(x, residual, p, rng())
    torch.autograd.backward([y, out], weights)

    wide = x.detach().double().requires_grad_()
    keep = torch.from_numpy(kept(shape, p, 0))
    message = torch.where(keep, wide / (1 - p), 0.0)
    exact = message / message.norm(dim=1, keepdim=True)
    exact.backward(weights[0].double() + weights[1].double())
    error = (x.grad.double() - wide.grad).norm() / wide.grad.norm()
    # One rounding each of the two gradients' sum, y and the result.
    assert error < 3 * EPS[dtype]


def test_double_backward_raises() -> None:
    if not _library.CPU.loaded:
        return  # the reference has second derivatives
    x = random_values((3, 4), torch.float64).requires_grad_()
    y, _ = ops.dropout_normalize_add(x, x.detach(), 0.0, None)
    (grad,) = torch.autograd.grad(y.pow(2).sum() + y[0, 0], x, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiable"):
        grad.sum().backward()


def test_strided_and_mixed_inputs(backend: str) -> None:  # noqa: F811
    x, residual = random_values((9, 20), torch.float32), random_values((9, 20), torch.float32, 1)
    plain = ops.dropout_normalize_add(x, residual, 0.2, rng())
    for left, right in ((strided(x), strided(residual)), (x.t().contiguous().t(), residual)):
        for one, other in zip(
            plain, ops.dropout_normalize_add(left, right, 0.2, rng()), strict=True
        ):
            assert torch.equal(one, other)
    wide = torch.zeros(9, 33)
    wide[:, 5:25] = x
    assert torch.equal(ops.dropout_normalize_add(wide[:, 5:25], residual, 0.2, rng())[1], plain[1])
    y, out = ops.dropout_normalize_add(x.to(torch.bfloat16), residual, 0.0, None)
    assert y.dtype == out.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)])
def test_nothing(backend: str, shape: tuple[int, int]) -> None:  # noqa: F811
    x = torch.zeros(shape, requires_grad=True)
    y, out = ops.dropout_normalize_add(x, torch.zeros(shape), 0.5, rng())
    assert y.shape == out.shape == shape
    (y.sum() + out.sum()).backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize("width", [3, 64])
def test_threads_and_repetition_do_not_matter(backend: str, width: int) -> None:  # noqa: F811
    x = random_values((5000, width), torch.float32).requires_grad_()
    residual = random_values((5000, width), torch.float32, 1)

    def call() -> Tensor:
        y, out = ops.dropout_normalize_add(x, residual, 0.1, rng())
        (grad,) = torch.autograd.grad((y * residual).sum() + out.pow(2).sum(), x)
        return torch.stack([y, out, grad])

    results = with_threads(call)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_errors_name_the_argument(backend: str) -> None:  # noqa: F811
    x = torch.ones(3, 4)
    call = ops.dropout_normalize_add
    with pytest.raises(TypeError, match=r"x is torch.int64"):
        call(torch.ones(3, 4, dtype=torch.int64), x, 0.1, rng())
    with pytest.raises(TypeError, match="residual is str"):
        call(x, "zero", 0.1, rng())
    with pytest.raises(ValueError, match=r"x has shape \[3\]"):
        call(torch.ones(3), torch.ones(3), 0.1, rng())
    with pytest.raises(ValueError, match=r"residual has shape \[4, 3\], expected \[3, 4\]"):
        call(x, torch.ones(4, 3), 0.1, rng())
    for p in (-0.1, 1.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"p is {p}"):
            call(x, x, p, rng())
    with pytest.raises(TypeError, match="rng is NoneType"):
        call(x, x, 0.1, None)
    with pytest.raises(TypeError, match=r"rng is torch.int32"):
        call(x, x, 0.1, torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"rng has shape \[1\]"):
        call(x, x, 0.1, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="stream is -1"):
        call(x, x, 0.1, rng(), stream=-1)
    with pytest.raises(ValueError, match="residual is on meta"):
        call(x, torch.ones(3, 4, device="meta"), 0.1, rng())


@pytest.mark.parametrize("width", [5, 64])
def test_without_a_residual(width: int, backend: str) -> None:  # noqa: F811
    """As with zeros; also rows of zeros, whose random numbers are not drawn, beside others."""
    x = torch.randn(50, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[10:40:2] = 0
    x[41:] = 0
    x.requires_grad_()
    grad = torch.randn(50, width, dtype=torch.float64)
    results = []
    for residual in (None, torch.zeros_like(x)):
        y, out = ops.dropout_normalize_add(x, residual, 0.3, rng())
        results.append((y, out, *torch.autograd.grad((y * grad).sum() + (out * grad).sum(), x)))
    torch.testing.assert_close(*results, rtol=1e-14, atol=0)
    assert results[0][0] is results[0][1]


@pytest.mark.parametrize("width", [5, 64])
def test_rows_of_a_larger_matrix(width: int, backend: str) -> None:  # noqa: F811
    """Some rows by number, one of them twice: dropped as they are in the whole."""
    generator = torch.Generator().manual_seed(2)
    whole = torch.randn(300, width, dtype=torch.float64, generator=generator, requires_grad=True)
    ids = torch.tensor([299, 0, 7, 7, 128])
    grad = torch.randn(5, width, dtype=torch.float64, generator=generator)
    results = []
    for few in (True, False):
        if few:
            y, out = ops.dropout_normalize_add(whole[ids], whole[ids], 0.4, rng(), 3, row_ids=ids)
        else:
            y, out = (t[ids] for t in ops.dropout_normalize_add(whole, whole, 0.4, rng(), 3))
        results.append((y, out, *torch.autograd.grad(((y + out) * grad).sum(), whole)))
    torch.testing.assert_close(*results, rtol=1e-14, atol=1e-15)
    with pytest.raises(ValueError, match=r"row_ids has shape \[4\], expected \[5\]"):
        ops.dropout_normalize_add(grad, None, 0.4, rng(), row_ids=ids[:4])
    with pytest.raises(TypeError, match=r"row_ids is torch\.int32"):
        ops.dropout_normalize_add(grad, None, 0.4, rng(), row_ids=ids.int())


@pytest.mark.parametrize("shape", [(9, 3), (4, 16), (0, 4)])
@pytest.mark.parametrize("with_rng", [True, False])
def test_opcheck(shape: tuple[int, int], with_rng: bool) -> None:
    x = random_values(shape, torch.float32).requires_grad_()
    residual = random_values(shape, torch.float32, 1).requires_grad_()
    torch.library.opcheck(
        torch.ops.kgrec_fast.dropout_normalize_add.default,
        (x, residual, rng() if with_rng else None, 0.3, 1, None),
    )
    torch.library.opcheck(
        torch.ops.kgrec_fast.dropout_normalize_add.default,
        (x, None, rng(), 0.3, 1, torch.arange(shape[0])),
    )
