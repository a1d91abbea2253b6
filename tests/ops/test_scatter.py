"""Scatter reductions against loops over elements, and against literal tables."""

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
    LAYOUTS,
    SUBNORMAL,
    backend,  # noqa: F401
    expand,
    id_of,
    indices,
    random_values,
    strided,
    with_threads,
)
from torch import Tensor

from kgrec_fast import ops


def loop(
    src: np.ndarray, index: np.ndarray, dim: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums, sums of magnitudes and counts, element by element."""
    dim %= src.ndim
    shape = (*src.shape[:dim], size, *src.shape[dim + 1 :])
    total, magnitude = np.zeros(shape, src.dtype), np.zeros(shape, src.dtype)
    count = np.zeros(shape, np.int64)
    full = expand(index, src.shape, dim)
    for place in itertools.product(*map(range, src.shape)):
        cell = (*place[:dim], full[place], *place[dim + 1 :])
        total[cell] += src[place]
        magnitude[cell] += abs(src[place])
        count[cell] += 1
    return total, magnitude, count


@pytest.mark.parametrize("layout", LAYOUTS, ids=id_of)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim_size", [None, 9])
def test_floats(backend: str, layout: tuple, dtype: torch.dtype, dim_size: int | None) -> None:  # noqa: F811
    shape, index_shape, dim = layout
    src, index = random_values(shape, dtype), indices(index_shape)
    size = int(index.max()) + 1 if dim_size is None else dim_size
    total, magnitude, count = loop(src.double().numpy(), index.numpy(), dim, size)
    accumulator = EPS[torch.float64 if dtype == torch.float64 else torch.float32]
    for op, divisor in ((ops.scatter_sum, 1), (ops.scatter_mean, np.maximum(count, 1))):
        out = op(src, index, dim, dim_size=dim_size)
        expected = total / divisor
        assert out.dtype == dtype
        assert out.shape == expected.shape
        # One rounding of the result, one of the accumulator for every term.
        bound = (
            EPS[dtype] * np.abs(expected)
            + (1 + count) * accumulator * magnitude / divisor
            + SUBNORMAL[dtype]
        )
        assert (np.abs(out.double().numpy() - expected) <= bound).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=id_of)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_exact(backend: str, layout: tuple, dtype: torch.dtype) -> None:  # noqa: F811
    shape, index_shape, dim = layout
    src, index = random_values(shape, dtype), indices(index_shape)
    total, _, count = loop(src.numpy().astype(np.int64), index.numpy(), dim, 5)
    wrapped = torch.from_numpy(total).to(dtype)
    assert torch.equal(ops.scatter_sum(src, index, dim, dim_size=5), wrapped)
    mean = torch.from_numpy(wrapped.numpy().astype(np.int64) // np.maximum(count, 1)).to(dtype)
    assert torch.equal(ops.scatter_mean(src, index, dim, dim_size=5), mean)


# src, index, dim, dim_size, sum, mean
TABLE = [
    ([1, 3, 2, 4, 5, 6], [0, 1, 0, 1, 1, 3], -1, None, [3, 12, 0, 6], [1.5, 4, 0, 6]),
    ([1, 3, 2, 4, 5, 6], [0, 0, 1, 1, 1, 3], -1, 5, [4, 11, 0, 6, 0], [2, 11 / 3, 0, 6, 0]),
    (
        [[1, 2], [5, 6], [3, 4], [7, 8], [9, 10], [11, 12]],
        [0, 1, 0, 1, 1, 3],
        0,
        None,
        [[4, 6], [21, 24], [0, 0], [11, 12]],
        [[2, 3], [7, 8], [0, 0], [11, 12]],
    ),
    (
        [[1, 5, 3, 7, 9, 11], [2, 4, 8, 10, 12, 14]],
        [[0, 1, 0, 1, 1, 3], [0, 0, 1, 0, 1, 2]],
        1,
        None,
        [[4, 21, 0, 11], [16, 20, 14, 0]],
        [[2, 7, 0, 11], [16 / 3, 10, 14, 0]],
    ),
    (
        [[[1, 2], [5, 6], [3, 4]], [[10, 11], [7, 9], [12, 13]]],
        [[0, 1, 0], [2, 0, 2]],
        1,
        None,
        [[[4, 6], [5, 6], [0, 0]], [[7, 9], [0, 0], [22, 24]]],
        [[[2, 3], [5, 6], [0, 0]], [[7, 9], [0, 0], [11, 12]]],
    ),
    # A single index for the whole dimension counts once in the mean.
    ([[1, 2], [3, 4]], [[0], [1]], 1, 2, [[3, 0], [0, 7]], [[3, 0], [0, 7]]),
]


@pytest.mark.parametrize(("src", "index", "dim", "dim_size", "total", "mean"), TABLE)
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
def test_table(
    backend: str,  # noqa: F811
    src: list,
    index: list,
    dim: int,
    dim_size: int | None,
    total: list,
    mean: list,
    dtype: torch.dtype,
    index_dtype: torch.dtype,
) -> None:
    values, places = torch.tensor(src, dtype=dtype), torch.tensor(index, dtype=index_dtype)
    expected = torch.tensor(mean, dtype=torch.float64)
    expected = expected.to(dtype) if dtype.is_floating_point else expected.floor().to(dtype)
    assert torch.equal(
        ops.scatter_sum(values, places, dim, dim_size=dim_size), torch.tensor(total, dtype=dtype)
    )
    assert torch.equal(ops.scatter_mean(values, places, dim, dim_size=dim_size), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_out_is_added_into(backend: str, dtype: torch.dtype) -> None:  # noqa: F811
    src = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=dtype)
    index = torch.tensor([2, 0, 2])
    out = torch.full((4, 2), 10, dtype=dtype)
    assert ops.scatter_sum(src, index, 0, out=out) is out
    assert out.tolist() == [[13, 14], [10, 10], [16, 18], [10, 10]]
    out = torch.full((4, 2), 10, dtype=dtype)
    assert ops.scatter_mean(src, index, 0, out=out, dim_size=1) is out
    assert out.tolist() == [[13, 14], [10, 10], [8, 9], [10, 10]]
    # Only the part that src reaches, as Tensor.scatter_add_ does.
    wide = torch.zeros((4, 3), dtype=dtype)
    ops.scatter_sum(src, index, 0, out=wide)
    assert wide.tolist() == [[3, 4, 0], [0, 0, 0], [6, 8, 0], [0, 0, 0]]


def test_gradient_reaches_src_and_out(backend: str) -> None:  # noqa: F811
    index = torch.tensor([2, 0, 2, 1])
    src = random_values((4, 3), torch.float64).requires_grad_()
    start = random_values((3, 3), torch.float64, 1).requires_grad_()
    for op in (ops.scatter_sum, ops.scatter_mean):

        def call(src: Tensor, start: Tensor, op: object = op) -> Tensor:
            return op(src, index, 0, out=start.clone())

        assert torch.autograd.gradcheck(call, (src, start))


@pytest.mark.parametrize("name", ["scatter_sum", "scatter_mean"])
@pytest.mark.parametrize("layout", [x for x in LAYOUTS if math.prod(x[0]) < 200], ids=id_of)
def test_gradients(backend: str, name: str, layout: tuple) -> None:  # noqa: F811
    shape, index_shape, dim = layout
    src, index = random_values(shape, torch.float64).requires_grad_(), indices(index_shape)

    def call(x: Tensor) -> Tensor:
        return getattr(ops, name)(x, index, dim, dim_size=6)

    assert torch.autograd.gradcheck(call, (src,))
    assert torch.autograd.gradgradcheck(call, (src,))


@pytest.mark.parametrize("name", ["scatter_sum", "scatter_mean"])
def test_gradients_of_wide_rows_in_order(backend: str, name: str) -> None:  # noqa: F811
    """The op sums these as segments."""
    index = torch.arange(40) // 3
    src = random_values((40, 64), torch.float64).requires_grad_()
    weight = random_values((14, 64), torch.float64)
    getattr(ops, name)(src, index, 0).mul(weight).sum().backward()
    share = index.bincount().double()[index] if name == "scatter_mean" else torch.ones(40)
    torch.testing.assert_close(src.grad, weight[index] / share.double()[:, None])


@pytest.mark.parametrize(
    ("shape", "index_shape", "dim", "expected"),
    [
        ((0,), (0,), 0, (0,)),
        ((0, 3), (0,), 0, (0, 3)),
        ((4, 0), (4,), 0, (0, 0)),
        ((0, 4), (4,), 1, (0, 0)),
    ],
)
def test_nothing(
    backend: str,  # noqa: F811
    shape: tuple[int, ...],
    index_shape: tuple[int, ...],
    dim: int,
    expected: tuple[int, ...],
) -> None:
    src, index = torch.ones(shape, requires_grad=True), torch.zeros(index_shape, dtype=torch.int64)
    for op in (ops.scatter_sum, ops.scatter_mean):
        assert op(src, index, dim).shape == expected
        filled = op(src, index, dim, dim_size=3)
        assert filled.size(dim) == 3
        assert not filled.any()
        filled.sum().backward()
    assert ops.scatter_softmax(src, index, dim=dim).shape == shape


def test_strided_input(backend: str) -> None:  # noqa: F811
    src, index = random_values((30, 20), torch.float32), indices((30,))
    other = torch.stack([index, index], 1)[:, 0]
    for op in (ops.scatter_sum, ops.scatter_mean):
        assert torch.equal(op(strided(src), other, 0), op(src, index, 0))
    assert torch.equal(ops.scatter_softmax(strided(src), other), ops.scatter_softmax(src, index))


@pytest.mark.parametrize("name", ["scatter_sum", "scatter_mean", "scatter_softmax"])
@pytest.mark.parametrize("shape", [(40_000,), (20_000, 16)])
def test_threads_and_repetition_do_not_matter(
    backend: str,  # noqa: F811
    name: str,
    shape: tuple[int, ...],
) -> None:
    src = random_values(shape, torch.float32)
    # Half of the rows name one hub.
    index = torch.from_numpy(np.random.default_rng(3).integers(0, 2000, shape[0]) // 2 * 2)
    index[::2] = 77
    results = with_threads(lambda: getattr(ops, name)(src, index, dim=0))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", ["scatter_sum", "scatter_mean", "scatter_softmax"])
def test_errors_name_the_argument(backend: str, name: str) -> None:  # noqa: F811
    op, src, index = getattr(ops, name), torch.ones(4, 2), torch.tensor([0, 1, 1, 0])
    size = {"num_nodes": 2} if name == "scatter_softmax" else {"dim_size": 2}
    with pytest.raises(ValueError, match=r"index\[2\] is -1, expected an index >= 0"):
        op(src, torch.tensor([0, 1, -1, -2]), dim=0)
    with pytest.raises(ValueError, match=r"index\[1\] is 2, expected 0 <= index < 2"):
        op(src, torch.tensor([0, 2, 5, 0]), dim=0, **size)
    with pytest.raises(TypeError, match=r"index is torch.float32"):
        op(src, index.float(), dim=0)
    with pytest.raises(TypeError, match="src is list"):
        op([1.0], index, dim=0)
    with pytest.raises(ValueError, match=r"index has shape \[3\]"):
        op(src, index[:3], dim=0)
    with pytest.raises(ValueError, match="dim is 2, expected -2 <= dim < 2"):
        op(src, index, dim=2)
    with pytest.raises(ValueError, match=f"{next(iter(size))} is -1"):
        op(src, index, dim=0, **{next(iter(size)): -1})
    with pytest.raises(ValueError, match="src has no dimension"):
        op(torch.tensor(1.0), torch.tensor([0]), dim=0)
    with pytest.raises(ValueError, match="index is on meta"):
        op(src, index.to("meta"), dim=0)


def test_errors_of_out_and_of_softmax() -> None:
    src, index = torch.ones(4, 2), torch.tensor([0, 1, 1, 0])
    with pytest.raises(TypeError, match=r"out is torch.float64"):
        ops.scatter_sum(src, index, 0, out=torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"out has shape \[2, 1\]"):
        ops.scatter_sum(src, index, 0, out=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"index\[1\] is 1, expected .*out.size\(0\)"):
        ops.scatter_sum(src, index, 0, out=torch.zeros(1, 2))
    wide = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"out has shape \[2, 3\], expected one to which"):
        ops.scatter_mean(src, index.view(4, 1).expand(4, 2), 0, out=wide)
    assert not wide.any(), "checked before anything is written"
    with pytest.raises(ValueError, match="index and ptr are both None"):
        ops.scatter_softmax(src)
    with pytest.raises(TypeError, match=r"src is torch.int64"):
        ops.scatter_softmax(src.long(), index)


def test_native_ops_check_the_index_themselves() -> None:
    for op in (torch.ops.kgrec_fast.scatter_sum, torch.ops.kgrec_fast.scatter_softmax):
        with pytest.raises(RuntimeError, match=r"index\[1\] is -4"):
            op(torch.ones(3, 2), torch.tensor([0, -4, 7]), 2)


@pytest.mark.parametrize("index", [[3, 0, 3, 1], [0, 0, 2, 3], []])
def test_opcheck(index: list[int]) -> None:
    places = torch.tensor(index, dtype=torch.int64)
    src = random_values((len(index), 3), torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.kgrec_fast.scatter_softmax.default, (src, places, 5))
    batched = random_values((2, len(index), 3), torch.float32).requires_grad_()
    for rows in (src, batched):
        torch.library.opcheck(torch.ops.kgrec_fast.scatter_sum.default, (rows, places, 5))


def test_compiles_into_one_graph() -> None:
    ptr, index, rng = (
        torch.tensor([0, 2, 2, 5]),
        torch.tensor([2, 0, 1, 2, 0]),
        torch.tensor([3, 4]),
    )

    def call(x: Tensor) -> Tensor:
        y, out = ops.dropout_normalize_add(x, x * 2, 0.3, rng, 1)
        results = [
            ops.segment_sum(out, ptr),
            ops.segment_mean(y, ptr),
            ops.segment_softmax(y, ptr),
            ops.scatter_sum(out, index, 0, dim_size=3),
            ops.scatter_mean(out, index, 0, dim_size=3),
            ops.scatter_softmax(out, index, num_nodes=3),
        ]
        return torch.stack([result.pow(2).sum() for result in results])

    x = random_values((5, 3), torch.float32).requires_grad_()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    eager = call(x)
    assert torch.equal(compiled(x), eager)
    (expected,) = torch.autograd.grad(eager.sum(), x)
    (grad,) = torch.autograd.grad(compiled(x).sum(), x)
    assert torch.equal(grad, expected)
