"""The op that adds rows in place, and the gradients of selected rows that are made with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from segment_helpers import EPS, random_values, with_threads
from torch import Tensor
from torch._subclasses import FakeTensorMode

from kgrec_fast import ops
from kgrec_fast.nn import _rows
from kgrec_fast.nn._rows import only_rows, readers

FLOATS = [torch.float32, torch.float64]
scatter_add_ = torch.ops.kgrec_fast.scatter_add_


def operands(size: int, rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [size, width], src [rows, width], and an index [rows] that names some rows often."""
    index = torch.randint(size, (rows,), generator=torch.Generator().manual_seed(2))
    index[::3] = size - 1
    return random_values((size, width), dtype), random_values((rows, width), dtype, 1), index


def added(x: Tensor, src: Tensor, index: Tensor, include_self: bool) -> Tensor:
    """What the op makes of a copy of x."""
    out = x.clone()
    scatter_add_(out, src, index, include_self)
    return out


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("width", [1, 7, 16, 64, 65])
@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_a_loop_over_rows(
    isa: str, dtype: torch.dtype, width: int, include_self: bool
) -> None:
    x, src, index = operands(11, 40, width, dtype)
    named = torch.zeros(11, dtype=torch.bool)
    named[index] = True
    assert not named.all()
    exact, magnitude = x.double().clone(), x.double().abs()
    if not include_self:
        exact[named], magnitude[named] = 0, 0
    for e, row in enumerate(index.tolist()):
        exact[row] += src[e].double()
        magnitude[row] += src[e].double().abs()
    found = added(x, src, index, include_self)
    # Each term is rounded once, at no more than the sum of magnitudes.
    bound = index.bincount(minlength=11).unsqueeze(1) * EPS[dtype] * magnitude
    assert ((found.double() - exact).abs() <= bound).all()
    assert torch.equal(found[~named], x[~named])


@pytest.mark.parametrize("dtype", FLOATS)
def test_gives_the_bits_of_torch(isa: str, dtype: torch.dtype) -> None:
    x, src, index = operands(300, 900, 33, dtype)
    assert torch.equal(added(x, src, index, True), x.index_add(0, index, src))
    fresh = x.index_fill(0, index, 0).index_add(0, index, src)
    x[index] = torch.nan  # is not read
    assert torch.equal(added(x, src, index, False)[index], fresh[index])


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_do_not_matter(dtype: torch.dtype, include_self: bool) -> None:
    x, src, index = operands(1000, 4000, 100, dtype)
    first, *others = with_threads(lambda: added(x, src, index, include_self))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("size", "rows", "width"), [(0, 0, 4), (5, 0, 4), (5, 3, 0), (1, 3, 1)])
def test_empty_and_single(size: int, rows: int, width: int) -> None:
    x, src = torch.ones(size, width), torch.full((rows, width), 2.0)
    expected = x + 2 * rows if size == 1 else x
    assert torch.equal(added(x, src, torch.zeros(rows, dtype=torch.int64), True), expected)


def test_strided_operands() -> None:
    x, src, index = operands(9, 20, 12, torch.float32)
    x, src, index = x[:, 2:9], src.t().contiguous().t()[:, 3:10], torch.stack([index] * 2, 1)[:, 0]
    whole = x.new_zeros(9, 12)
    view = whole[:, 2:9].copy_(x)
    scatter_add_(view, src, index, True)
    assert torch.equal(view, x.index_add(0, index, src))
    assert torch.equal(whole[:, [0, 1, 9, 10, 11]], torch.zeros(9, 5))


def test_errors_name_the_argument() -> None:
    x, src, index = torch.zeros(4, 3), torch.ones(2, 3), torch.tensor([0, 3])
    for wrong, message in (
        ((x.long(), src, index), "x has dtype Long, expected float32"),
        ((x.half(), src, index), "x is expected in float32 or float64"),
        ((x[0], src, index), "x has 1 dimensions, expected 2"),
        ((torch.zeros(3, 4).t(), src, index), "x is expected with unit stride in rows that do not"),
        ((torch.zeros(1, 3).expand(4, 3), src, index), "x is expected with unit stride in rows"),
        ((x, src.double(), index), "src has dtype Double, expected Float"),
        ((x, src[:, :2], index), "src has 2 columns, expected 3"),
        ((x, src, index[:1]), "index has 1 elements, expected 2"),
        ((x, src, index.int()), "index has dtype Int, expected int64"),
        ((x, src, torch.tensor([0, 4])), r"index\[1\] is 4, expected 0 <= index < 4"),
        ((x, src, torch.tensor([-1, 4])), r"index\[0\] is -1, expected 0 <= index < 4"),
        ((x[:0], src, index), r"index\[0\] is 0, expected 0 <= index < 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            scatter_add_(*wrong, True)
    assert not x.any()


def test_opcheck() -> None:
    for include_self in (True, False):
        args = (*operands(9, 20, 5, torch.float32), include_self)
        torch.library.opcheck(torch.ops.kgrec_fast.scatter_add_.default, args)


# -- the gradients made with it ------------------------------------------------------------------


def gradient(read: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(read(x).square().sum(), x)
    return found


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16])
@pytest.mark.parametrize("rows", [5, 200])  # fewer and more than filling them pays for
def test_gradient_of_rows(
    rows: int, dtype: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, index = operands(100, rows, 8, dtype)
    expected = gradient(lambda x: x.index_select(0, index), x)
    if not native:
        monkeypatch.setattr(_rows, "takes_kernel", lambda x: False)
    found = gradient(lambda x: only_rows(x, index), x)
    torch.testing.assert_close(found[index], expected[index])
    found = gradient(lambda x: readers(x, index)[0], x)
    torch.testing.assert_close(found, expected)


def test_gradient_of_several_readers() -> None:
    x, _, index = operands(50, 30, 8, torch.float64)

    def read(chosen: Tensor, whole: Tensor, first: tuple[Tensor, ...]) -> Tensor:
        assert len(first) == 2
        return torch.cat([chosen, 2 * first[0], first[1].sin(), whole.t().mm(whole)])

    found = gradient(lambda x: read(*readers(x, index, 20, copies=2)), x)
    torch.testing.assert_close(found, gradient(lambda x: read(x[index], x, (x[:20],) * 2), x))


def test_a_gradient_in_columns_takes_torch() -> None:
    x, _, index = operands(50, 30, 8, torch.float64)
    weight = random_values((8, 50), torch.float64, 3)

    def read(chosen: Tensor, whole: Tensor) -> Tensor:
        return (whole.t() * weight).sum() + chosen.sum()

    found = x.clone().requires_grad_()
    chosen, whole, _ = readers(found, index)
    read(chosen, whole).backward()
    expected = weight.t().index_add(0, index, torch.ones(30, 8, dtype=torch.float64))
    torch.testing.assert_close(found.grad, expected)


def test_fake_tensors_and_references_take_torch() -> None:
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.ones(50, 4)).requires_grad_()
        (found,) = torch.autograd.grad(readers(x, torch.arange(3))[0].sum(), x)
        assert found.shape == (50, 4)
    x = torch.ones(50, 4, requires_grad=True)
    with ops.use_reference(), torch.profiler.profile() as profile:
        readers(x, torch.arange(3))[0].sum().backward()
    names = {event.name for event in profile.events()}
    assert "aten::index_add_" in names
    assert "kgrec_fast::scatter_add_" not in names
