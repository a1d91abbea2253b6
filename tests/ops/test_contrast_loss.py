"""Contrast of two views against the published formula, and against float64."""

from __future__ import annotations

import math

import pytest
import torch
from graph_helpers import HALF_TYPES, assert_as_good_as
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast import ops

# Fewer columns than a vector, not whole vectors, with kernels of their own, wider than those.
WIDTHS = (1, 3, 17, 32, 64, 128, 300)


def sample(
    rows: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1, z2 = torch.randn(2, rows, width, generator=generator, dtype=torch.float64).to(dtype)
    return z1, z2, torch.randperm(rows, generator=generator)


def published(z1: Tensor, z2: Tensor, permutation: Tensor, tau: float) -> Tensor:
    """As the paper's code has it: exponentials that overflow."""
    one, two = torch.nn.functional.normalize(z1), torch.nn.functional.normalize(z2)
    own = torch.exp((one * two).sum(1) / tau)
    forth = torch.exp((one * two[permutation]).sum(1) / tau)
    back = torch.exp((one[permutation] * two).sum(1) / tau)
    return -torch.log(own / (own + forth + own + back))


def with_grads(function, *arguments, grad: Tensor | None = None) -> tuple[Tensor, ...]:
    z1, z2 = (z.detach().requires_grad_() for z in arguments[:2])
    loss = function(z1, z2, *arguments[2:])
    if grad is None:
        generator = torch.Generator().manual_seed(9)
        grad = torch.randn(loss.shape, generator=generator, dtype=torch.float64).to(loss.dtype)
    return loss.detach(), *torch.autograd.grad(loss, (z1, z2), grad)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [1, 2, 5, 64, 200])
def test_is_the_published_formula(rows: int, width: int, isa: str) -> None:
    z1, z2, permutation = sample(rows, width)
    for tau in (0.2, 1.0):
        ours = with_grads(ops.contrast_loss, z1, z2, permutation, tau)
        expected = with_grads(published, z1, z2, permutation, tau)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
        reference = with_grads(ops.contrast_loss_reference, z1, z2, permutation, tau)
        torch.testing.assert_close(reference, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("width", [17, 64])
def test_is_as_exact_as_pytorch_in_every_type(width: int, dtype: torch.dtype, isa: str) -> None:
    z1, z2, permutation = sample(150, width, dtype)
    arguments = (permutation, 0.3)
    exact = with_grads(ops.contrast_loss_reference, z1.double(), z2.double(), *arguments)
    theirs = with_grads(ops.contrast_loss_reference, z1, z2, *arguments)
    ours = with_grads(ops.contrast_loss, z1, z2, *arguments)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == ours[2].dtype == dtype
    for one, other, wanted in zip(ours, theirs, exact, strict=True):
        assert_as_good_as(one, other, wanted)


def test_gradcheck(isa: str) -> None:
    z1, z2, permutation = sample(7, 5)
    for order in (permutation, torch.arange(7)):
        torch.autograd.gradcheck(
            lambda a, b, order=order: ops.contrast_loss(a, b, order, 0.4),
            (z1.requires_grad_(), z2.requires_grad_()),
        )


def test_identity_and_one_row_have_no_gradient(isa: str) -> None:
    # All four exponents are one: log 4, whatever the views.
    for rows in (1, 40):
        z1, z2, _ = sample(rows, 64, torch.float32)
        loss, *grads = with_grads(ops.contrast_loss, z1, z2, torch.arange(rows), 0.1)
        torch.testing.assert_close(loss, torch.full((rows,), math.log(4)), rtol=1e-6, atol=1e-6)
        for grad in grads:
            assert float(grad.abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [1e-3, 1e-12, 1e-30, 1e-300])
def test_tiny_temperature(tau: float, dtype: torch.dtype, isa: str) -> None:
    z1, z2, _ = sample(90, 64, dtype)
    permutation = torch.arange(90).roll(7)  # no row is its own negative
    z2[::2] = z1[::2]  # these rows' positives win, and their loss is log 2
    loss, grad1, grad2 = with_grads(ops.contrast_loss, z1, z2, permutation, tau)
    one, two = (torch.nn.functional.normalize(z.double()) for z in (z1, z2))
    own = (one * two).sum(1)
    other = torch.maximum((one * two[permutation]).sum(1), (one[permutation] * two).sum(1))
    # A temperature that the type of the sums does not hold counts as the smallest that it does.
    gap = (other - own).clamp(min=0) / max(tau, torch.finfo(dtype).tiny)
    ours = loss.double()
    assert not loss.isnan().any()
    assert (loss[::2] <= math.log(2) + 1e-6).all()
    small = gap < torch.finfo(dtype).max
    assert (ours[~small] == math.inf).all()
    # Next to the gap are log 1 to log 4, and roundings of cosines over tau.
    error = (ours - gap)[small].abs() - math.log(4) - 1e-6
    assert (error <= (1e-5 if dtype == torch.float32 else 1e-13) * (1 + 1 / tau)).all()
    if tau > 1e-30:
        assert grad1.isfinite().all()
        assert grad2.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF_TYPES])
def test_zero_rows_give_no_gradient(dtype: torch.dtype, isa: str) -> None:
    z1, z2, permutation = sample(30, 17, dtype)
    z1[[3, 8]] = 0
    z2[[8, 11]] = -0.0
    loss, grad1, grad2 = with_grads(ops.contrast_loss, z1, z2, permutation, 0.5)
    exact = with_grads(published, z1.double(), z2.double(), permutation, 0.5)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-6)
    for grad, wanted, zeros in ((grad1, exact[1], [3, 8]), (grad2, exact[2], [8, 11])):
        assert not grad[zeros].any()
        kept = [i for i in range(30) if i not in zeros]
        tolerance = 8 * torch.finfo(dtype).eps if dtype in HALF_TYPES else 1e-4
        torch.testing.assert_close(
            grad[kept].double(), wanted[kept], rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("size", [1e-14, 1e-30])
def test_rows_below_eps_are_divided_by_eps(size: float, isa: str) -> None:
    z1, z2, permutation = sample(9, 32, torch.float32)
    z1[4] = size  # in float32 the squares of the smaller vanish, but the row is not zero
    ours = with_grads(ops.contrast_loss, z1, z2, permutation, 0.5)
    wanted = with_grads(ops.contrast_loss_reference, z1.double(), z2.double(), permutation, 0.5)
    assert wanted[1][4].abs().max() > 1e9
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-4, atol=1e-5)


def test_nan_stays_with_the_rows_that_read_it(isa: str) -> None:
    z1, z2, permutation = sample(40, 64, torch.float32)
    z1[5, 7] = math.nan
    loss = ops.contrast_loss(z1, z2, permutation, 0.5)
    reads = (permutation == 5) | (torch.arange(40) == 5)
    assert torch.equal(loss.isnan(), reads)


def test_strided_and_broadcast(isa: str) -> None:
    z1, z2, permutation = sample(50, 64, torch.float32)
    plain = with_grads(ops.contrast_loss, z1, z2, permutation, 0.5, grad=torch.ones(50))
    wide = torch.zeros(50, 140)
    wide[:, 3:67], wide[:, 70:134] = z1, z2
    doubled = permutation.repeat_interleave(2)[::2]
    views = (
        (wide[:, 3:67], wide[:, 70:134], permutation),
        (z1.t().contiguous().t(), z2, doubled),
    )
    for one, two, order in views:
        other = with_grads(ops.contrast_loss, one, two, order, 0.5, grad=torch.ones(()).expand(50))
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_one_view_alone_wants_a_gradient() -> None:
    z1, z2, permutation = sample(8, 6)
    both = with_grads(ops.contrast_loss, z1, z2, permutation, 0.5, grad=torch.ones(8).double())
    z1.requires_grad_()
    ops.contrast_loss(z1, z2, permutation, 0.5).sum().backward()
    assert torch.equal(z1.grad, both[1])
    assert z2.grad is None


@pytest.mark.parametrize("width", [5, 64])
def test_threads_and_repetition_do_not_matter(width: int, restore_threads: None, isa: str) -> None:
    z1, z2, permutation = sample(3001, width, torch.float32)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(with_grads(ops.contrast_loss, z1, z2, permutation, 0.5))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing() -> None:
    loss, *grads = with_grads(ops.contrast_loss, *sample(0, 4), 0.5)
    assert loss.shape == (0,)
    assert all(grad.shape == (0, 4) for grad in grads)


def test_double_backward_raises() -> None:
    z1, z2, permutation = sample(6, 4)
    z1.requires_grad_()
    loss = ops.contrast_loss(z1, z2, permutation, 0.5)
    (grad,) = torch.autograd.grad(loss.sum(), z1, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("rows", [0, 9])
def test_opcheck(rows: int) -> None:
    z1, z2, permutation = sample(rows, 6, torch.float32)
    arguments = (z1.requires_grad_(), z2.requires_grad_(), permutation, 0.5)
    torch.library.opcheck(torch.ops.kgrec_fast.contrast_loss.default, arguments)
    loss, kept, inverse = torch.ops.kgrec_fast.contrast_loss(*arguments)
    backward = torch.ops.kgrec_fast.contrast_loss_backward.default
    given = (torch.ones(rows), z1.detach(), z2.detach(), permutation, kept.detach(), inverse, 0.5)
    torch.library.opcheck(
        backward, given, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )
    assert kept.shape == (rows, 8)
    assert loss.shape == (rows,)


def test_fake_tensors() -> None:
    with FakeTensorMode():
        z = torch.empty(7, 4, dtype=torch.bfloat16, requires_grad=True)
        loss = ops.contrast_loss(z, z, torch.empty(7, dtype=torch.int64), 0.5)
        assert loss.shape == (7,)
        assert loss.dtype == torch.float32
        loss.sum().backward()
        assert z.grad.dtype == torch.bfloat16


def test_compiled() -> None:
    z1, z2, permutation = sample(40, 64, torch.float32)

    def step(a: Tensor, b: Tensor, order: Tensor) -> Tensor:
        return ops.contrast_loss(2 * a, b + 1, order, 0.5)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    plain = with_grads(step, z1, z2, permutation)
    for one, other in zip(with_grads(compiled, z1, z2, permutation), plain, strict=True):
        assert torch.equal(one, other)


def test_what_is_no_permutation_is_named(isa: str) -> None:
    z1, z2, permutation = sample(5, 4)
    for bad in ([0, 1, 2, 3, 5], [0, 1, 2, 3, -1], [0, 1, 2, 2, 4], [0, 0, 0, 0, 0]):
        with pytest.raises(RuntimeError, match="permutation is expected to hold each of 0 to 4"):
            ops.contrast_loss(z1, z2, torch.tensor(bad), 0.5)
    z1, z2, permutation = sample(40_000, 1, torch.float32)
    permutation[39_000] = permutation[10]
    with pytest.raises(RuntimeError, match="permutation is expected to hold"):
        ops.contrast_loss(z1, z2, permutation, 0.5)


def test_bad_arguments_are_named() -> None:
    z1, z2, permutation = sample(5, 4)
    call = ops.contrast_loss
    with pytest.raises(TypeError, match="z1 is a list"):
        call([1.0], z2, permutation, 0.5)
    with pytest.raises(TypeError, match=r"z2 has dtype torch\.float32"):
        call(z1, z2.float(), permutation, 0.5)
    with pytest.raises(ValueError, match="z2 has 6 rows, expected 5"):
        call(z1, torch.zeros(6, 4, dtype=torch.float64), permutation, 0.5)
    with pytest.raises(ValueError, match="z2 has 4 rows"):
        call(z1, z2[1:], permutation, 0.5)
    with pytest.raises(ValueError, match="z2 has 3 columns"):
        call(z1, z2[:, 1:], permutation, 0.5)
    with pytest.raises(TypeError, match=r"permutation is torch\.int32"):
        call(z1, z2, permutation.int(), 0.5)
    with pytest.raises(TypeError, match="permutation is NoneType"):
        call(z1, z2, None, 0.5)
    with pytest.raises(ValueError, match=r"permutation has shape \[4\], expected \[5\]"):
        call(z1, z2, permutation[1:], 0.5)
    with pytest.raises(ValueError, match="permutation is on meta"):
        call(z1, z2, permutation.to("meta"), 0.5)
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"tau is {tau}"):
            call(z1, z2, permutation, tau)
