"""Segment reductions and softmax against loops in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from segment_helpers import (
    EPS,
    FLOATS,
    INTEGERS,
    backend,  # noqa: F401
    random_values,
    strided,
    with_threads,
)

from kgrec_fast import ops

# Empty segments at either end and in between, a single row, a hub, nothing at all.
POINTERS = [
    [0],
    [0, 0],
    [0, 0, 3, 3, 4, 9, 9],
    [0, 1, 2, 3],
    [0, 300],
    [0, 5, 5, 4505, 4510],
]
SHAPES = [(), (3,), (16,), (2, 5), (0,)]
REDUCTIONS = ["segment_sum", "segment_mean"]


def loop_reduce(name: str, src: np.ndarray, ptr: list[int]) -> np.ndarray:
    """Python's exact sums (math.fsum), segment by segment."""
    flat = src.reshape(src.shape[0], math.prod(src.shape[1:]))
    out = np.zeros((len(ptr) - 1, flat.shape[1]))
    for s, (begin, end) in enumerate(itertools.pairwise(ptr)):
        for j in range(flat.shape[1]):
            total = math.fsum(flat[begin:end, j])
            out[s, j] = total / max(end - begin, 1) if name == "segment_mean" else total
    return out.reshape(len(ptr) - 1, *src.shape[1:])


def loop_softmax(src: np.ndarray, ptr: list[int]) -> np.ndarray:
    flat = src.reshape(src.shape[0], math.prod(src.shape[1:]))
    out = np.zeros_like(flat)
    for begin, end in itertools.pairwise(ptr):
        for j in range(flat.shape[1] if end > begin else 0):
            rows = flat[begin:end, j]
            highest = max(rows)
            exps = [math.exp(value - highest) for value in rows]
            out[begin:end, j] = np.array(exps) / (math.fsum(exps) + 1e-16)
    return out.reshape(src.shape)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("ptr", POINTERS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reductions_of_floats(
    backend: str,  # noqa: F811
    name: str,
    ptr: list[int],
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> None:
    src = random_values((ptr[-1], *shape), dtype)
    out = getattr(ops, name)(src, torch.tensor(ptr))
    wide = src.double().numpy()
    expected = loop_reduce(name, wide, ptr)
    assert out.dtype == dtype
    assert out.shape == expected.shape
    # One rounding of the result, and one of the accumulator for every term.
    accumulator = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    magnitude = loop_reduce(name, np.abs(wide), ptr)
    terms = np.diff(ptr).reshape(-1, *[1] * len(shape)) if len(ptr) > 1 else 0
    bound = EPS[dtype] * np.abs(expected) + terms * accumulator * magnitude
    assert (np.abs(out.double().numpy() - expected) <= bound).all()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_add_exactly_and_wrap(backend: str, dtype: torch.dtype) -> None:  # noqa: F811
    values = [100, 100, 100, 7, 2]
    total = ops.segment_sum(torch.tensor(values).to(dtype), torch.tensor([0, 3, 3, 5]))
    expected = torch.tensor([300, 0, 9]).to(dtype)  # 300 wraps in eight bits
    assert total.dtype == dtype
    assert torch.equal(total, expected)


def test_mean_of_integers_rounds_down(backend: str) -> None:  # noqa: F811
    src = torch.tensor([[-3, 3], [-4, 4], [5, 1]], dtype=torch.int32)
    out = ops.segment_mean(src, torch.tensor([0, 2, 2, 3]))
    assert out.tolist() == [[-4, 3], [0, 0], [5, 1]]


@pytest.mark.parametrize("ptr", POINTERS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax(
    backend: str,  # noqa: F811
    ptr: list[int],
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> None:
    src = 5 * random_values((ptr[-1], *shape), dtype)
    out = ops.segment_softmax(src, torch.tensor(ptr))
    expected = loop_softmax(src.double().numpy(), ptr)
    assert out.dtype == dtype
    assert out.shape == src.shape
    # The argument of exp, up to some 50, is rounded once, and so is every term of the sum.
    terms = 100 + max(np.diff(ptr), default=0)
    bound = (EPS[dtype] + terms * accumulator_eps(dtype)) * expected + tiny(dtype)
    assert (np.abs(out.double().numpy() - expected) <= bound).all()


def accumulator_eps(dtype: torch.dtype) -> float:
    return EPS[torch.float64 if dtype == torch.float64 else torch.float32]


def tiny(dtype: torch.dtype) -> float:
    """Results below the smallest normal number lose bits."""
    return torch.finfo(dtype).tiny


def test_softmax_keeps_infinities(backend: str) -> None:  # noqa: F811
    inf = math.inf
    src = torch.tensor([0.0, -inf, -inf, -inf, 1e30, -1e30])
    out = ops.segment_softmax(src, torch.tensor([0, 2, 4, 6]))
    assert out[:2].tolist() == [1.0, 0.0]
    assert out[2:4].isnan().all(), "no maximum to subtract"
    assert out[4:].tolist() == [1.0, 0.0]
    nan = ops.segment_softmax(torch.tensor([1.0, math.nan, 2.0]), torch.tensor([0, 2, 3]))
    assert nan.isnan().tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["segment_sum", "segment_mean", "segment_softmax"])
@pytest.mark.parametrize("shape", [(9,), (9, 3), (9, 2, 2)])
def test_gradients(backend: str, name: str, shape: tuple[int, ...]) -> None:  # noqa: F811
    ptr = torch.tensor([0, 0, 3, 4, 4, 9])
    src = random_values(shape, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: getattr(ops, name)(x, ptr), (src,))


@pytest.mark.parametrize("name", ["segment_sum", "segment_mean"])
def test_second_derivatives(backend: str, name: str) -> None:  # noqa: F811
    ptr = torch.tensor([0, 0, 3, 4, 4, 9])
    src = random_values((9, 2), torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: getattr(ops, name)(x, ptr), (src,))


@pytest.mark.parametrize("name", ["segment_sum", "segment_mean", "segment_softmax"])
def test_strided_input(backend: str, name: str) -> None:  # noqa: F811
    ptr = torch.tensor([0, 4, 4, 9])
    src = random_values((9, 6), torch.float32)
    op = getattr(ops, name)
    assert torch.equal(op(strided(src), ptr), op(src, ptr))
    assert torch.equal(op(src, torch.stack([ptr, ptr], 1)[:, 0]), op(src, ptr))


@pytest.mark.parametrize("name", ["segment_sum", "segment_mean", "segment_softmax"])
@pytest.mark.parametrize("width", [1, 8])
def test_threads_and_repetition_do_not_matter(backend: str, name: str, width: int) -> None:  # noqa: F811
    ptr = torch.tensor([0, 10, 40_000, 40_000, *range(40_001, 60_001, 4)])
    src = random_values((int(ptr[-1]), width), torch.float32)
    results = with_threads(lambda: getattr(ops, name)(src, ptr))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", ["segment_sum", "segment_mean", "segment_softmax"])
def test_errors_name_the_argument(backend: str, name: str) -> None:  # noqa: F811
    op, src = getattr(ops, name), torch.ones(4, 2)
    with pytest.raises(TypeError, match=r"src is torch.complex64"):
        op(torch.ones(4, dtype=torch.complex64), torch.tensor([0, 4]))
    with pytest.raises(TypeError, match="src is list"):
        op([1.0], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="src has no dimension"):
        op(torch.tensor(1.0), torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"ptr is torch.int32"):
        op(src, torch.tensor([0, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"ptr has shape \[0\]"):
        op(src, torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ptr\[0\] is 1, expected 0"):
        op(src, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match=r"ptr\[-1\] is 5, expected 4"):
        op(src, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"ptr\[2\] is 1 after 3"):
        op(src, torch.tensor([0, 3, 1, 4]))
    with pytest.raises(ValueError, match="ptr is on meta"):
        op(src, torch.tensor([0, 4], device="meta"))


@pytest.mark.parametrize("name", ["segment_sum", "segment_mean", "segment_softmax"])
@pytest.mark.parametrize("shape", [(9,), (9, 3), (0, 4)])
def test_opcheck(name: str, shape: tuple[int, ...]) -> None:
    ptr = torch.tensor([0, 0, 3, 9]) if shape[0] else torch.tensor([0, 0])
    src = random_values(shape, torch.float32).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.kgrec_fast, name).default, (src, ptr))


def test_gradient_of_a_tensor_large_enough_for_huge_pages() -> None:
    rows, width = 150_001, 64  # 38 MB
    src = torch.zeros(rows, width, requires_grad=True)
    ptr = torch.tensor([0, 3, 3, 100_000, rows])
    grad_out = random_values((4, width), torch.float32)
    (grad,) = torch.autograd.grad(ops.segment_sum(src, ptr), src, grad_out)
    assert torch.equal(grad, grad_out.repeat_interleave(ptr.diff(), 0))
