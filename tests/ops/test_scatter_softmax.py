"""Softmax over rows of equal index against a loop over groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from segment_helpers import (
    EPS,
    FLOATS,
    LAYOUTS,
    backend,  # noqa: F401
    expand,
    id_of,
    indices,
    random_values,
)

from kgrec_fast import _library, ops

SOFTMAX_LAYOUTS = [((50,), 0), ((50, 3), 0), ((3, 50), -1), ((50, 20), 0), ((2, 50, 3), 1)]


def loop_softmax(src: np.ndarray, index: np.ndarray, dim: int) -> np.ndarray:
    rows = np.moveaxis(src, dim, 0)
    flat = rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
    out = np.zeros_like(flat)
    for group in set(index.tolist()):
        members = np.flatnonzero(index == group)
        for j in range(flat.shape[1]):
            highest = max(flat[members, j])
            exps = [math.exp(value - highest) for value in flat[members, j]]
            out[members, j] = np.array(exps) / (math.fsum(exps) + 1e-16)
    return np.moveaxis(out.reshape(rows.shape), 0, dim)


@pytest.mark.parametrize(("shape", "dim"), SOFTMAX_LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("order", ["shuffled", "sorted", "ptr"])
def test_softmax(
    backend: str,  # noqa: F811
    shape: tuple[int, ...],
    dim: int,
    dtype: torch.dtype,
    order: str,
) -> None:
    src = 5 * random_values(shape, dtype)
    index = indices((50,))
    if order != "shuffled":
        index = index.sort().values
    if order == "ptr":
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), index.bincount().cumsum(0)])
        out = ops.scatter_softmax(src, ptr=ptr, dim=dim)
    else:
        out = ops.scatter_softmax(src, index, dim=dim, num_nodes=8)
    expected = loop_softmax(src.double().numpy(), index.numpy(), dim)
    assert out.dtype == dtype
    # The argument of exp, up to some 50, is rounded once, and so is every term of the sum.
    accumulator = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    bound = (EPS[dtype] + 150 * accumulator) * expected + torch.finfo(dtype).tiny
    assert (np.abs(out.double().numpy() - expected) <= bound).all()


def test_softmax_keeps_infinities(backend: str) -> None:  # noqa: F811
    inf, nan = math.inf, math.nan
    src = torch.tensor([0.0, -inf, 1e30, -inf, 2.0, -inf, -1e30, nan])
    out = ops.scatter_softmax(src, torch.tensor([0, 1, 2, 0, 3, 1, 2, 3]))
    expected = torch.tensor([1.0, nan, 1.0, 0.0, nan, nan, 0.0, nan])
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(out.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("layout", LAYOUTS, ids=id_of)
@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_of_a_broadcast_index(backend: str, layout: tuple, dtype: torch.dtype) -> None:  # noqa: F811
    """Every line of src along dim has an index of its own."""
    shape, index_shape, dim = layout
    src, index = 5 * random_values(shape, dtype), indices(index_shape)
    lines = np.moveaxis(src.double().numpy(), dim, -1)
    full = np.moveaxis(expand(index.numpy(), shape, dim), dim, -1)
    expected = np.stack(
        [
            loop_softmax(line, own, 0)
            for line, own in zip(
                lines.reshape(-1, shape[dim]), full.reshape(-1, shape[dim]), strict=True
            )
        ]
    )
    expected = np.moveaxis(expected.reshape(lines.shape), -1, dim)
    out = ops.scatter_softmax(src, index, dim=dim, num_nodes=8)
    assert out.dtype == dtype
    accumulator = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    bound = (EPS[dtype] + 150 * accumulator) * expected + torch.finfo(dtype).tiny
    assert (np.abs(out.double().numpy() - expected) <= bound).all()


@pytest.mark.parametrize(("shape", "dim"), [((9,), 0), ((9, 3), 0), ((2, 9), -1)])
@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_softmax_gradients(backend: str, shape: tuple[int, ...], dim: int, order: str) -> None:  # noqa: F811
    src, index = random_values(shape, torch.float64).requires_grad_(), indices((9,))
    if order == "sorted":
        index = index.sort().values
    assert torch.autograd.gradcheck(lambda x: ops.scatter_softmax(x, index, dim=dim), (src,))


def test_softmax_has_no_silent_second_derivative() -> None:
    src = random_values((5,), torch.float64).requires_grad_()
    out = ops.scatter_softmax(src, torch.tensor([1, 0, 1, 0, 1]))
    (grad,) = torch.autograd.grad(out.pow(2).sum(), src, create_graph=True)
    if _library.CPU.loaded:
        with pytest.raises(RuntimeError, match="not differentiable"):
            grad.sum().backward()


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if math.prod(x[0]) < 200], ids=id_of)
def test_softmax_gradients_of_a_broadcast_index(backend: str, layout: tuple) -> None:  # noqa: F811
    shape, index_shape, dim = layout
    src, index = random_values(shape, torch.float64).requires_grad_(), indices(index_shape)
    assert torch.autograd.gradcheck(lambda x: ops.scatter_softmax(x, index, dim=dim), (src,))
