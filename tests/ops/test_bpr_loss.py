"""Ranking of pairs with its penalty against the published formula, and against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graph_helpers import HALF_TYPES, assert_as_good_as
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast import ops

WIDTHS = (1, 3, 17, 32, 64, 128, 300)


def sample(
    pairs: int, width: int, dtype: torch.dtype = torch.float64, scale: float = 0.5
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = scale * torch.randn(3, pairs, width, generator=generator, dtype=torch.float64)
    return list(values.to(dtype))


def some_weights(pairs: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(pairs, generator=generator, dtype=torch.float64)
    return torch.where(weight < 0.3, 0.0, weight)


def published(
    user: Tensor,
    positive: Tensor,
    negative: Tensor,
    reg_weight: float,
    weight: Tensor | None = None,
    eps: float = 1e-10,
) -> Tensor:
    weight = user.new_ones(user.shape[0]) if weight is None else weight
    gap = (user * positive).sum(1) - (user * negative).sum(1)
    penalty = user.norm(dim=1) ** 2 + positive.norm(dim=1) ** 2 + negative.norm(dim=1) ** 2
    ranking = -(weight * torch.log(eps + torch.sigmoid(gap))).sum() / weight.sum()
    return ranking + reg_weight * (weight * penalty).sum() / 2 / weight.sum()


def with_grads(function: Any, operands: list[Tensor], *arguments: Any) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in operands]
    loss = function(*leaves, *arguments)
    return loss.detach(), *torch.autograd.grad(3 * loss, leaves)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("pairs", [1, 63, 64, 200])
def test_is_the_published_formula(pairs: int, width: int, isa: str) -> None:
    operands = sample(pairs, width)
    for weight in (None, some_weights(pairs) + (pairs == 1)):
        for eps in (1e-10, 1e-2, 0.0):
            ours = with_grads(ops.bpr_loss, operands, 0.1, weight, eps)
            wanted = with_grads(published, operands, 0.1, weight, eps)
            torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-13)
            reference = with_grads(ops.bpr_loss_reference, operands, 0.1, weight, eps)
            torch.testing.assert_close(reference, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("width", [17, 64])
def test_is_as_exact_as_pytorch_in_every_type(width: int, dtype: torch.dtype, isa: str) -> None:
    operands = sample(300, width, dtype)
    arguments = (0.01, some_weights(300).to(torch.float32), 1e-10)
    exact = with_grads(ops.bpr_loss_reference, [x.double() for x in operands], *arguments)
    theirs = with_grads(ops.bpr_loss_reference, operands, *arguments)
    ours = with_grads(ops.bpr_loss, operands, *arguments)
    assert ours[0].dtype == torch.float32
    assert all(grad.dtype == dtype for grad in ours[1:])
    for one, other, wanted in zip(ours, theirs, exact, strict=True):
        assert_as_good_as(one, other, wanted)


@pytest.mark.parametrize("eps", [0.0, 1e-10, 0.1])
def test_gradcheck(eps: float, isa: str) -> None:
    operands = [x.requires_grad_() for x in sample(5, 6)]
    for weight in (None, some_weights(5)):
        torch.autograd.gradcheck(
            lambda *x, weight=weight: ops.bpr_loss(*x, 0.3, weight, eps), operands
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [-1e18, -1000.0, -90.0, -20.0, 0.0, 3.0, 20.0, 1000.0, 1e18])
def test_any_gap(gap: float, dtype: torch.dtype, isa: str) -> None:
    user, positive = torch.ones(1, 1, dtype=dtype), torch.full((1, 1), gap, dtype=dtype)
    negative = torch.zeros(1, 1, dtype=dtype)
    rtol = 1e-6 if dtype == torch.float32 else 1e-13
    small = math.exp(-abs(gap)) if abs(gap) < 700 else 0.0
    sigmoid, rest = (small / (1 + small), 1 / (1 + small))[:: 1 if gap < 0 else -1]

    loss, grad, *_ = with_grads(ops.bpr_loss, [user, positive, negative], 0.0, None, 0.0)
    assert loss.item() == pytest.approx(max(-gap, 0) + math.log1p(small), rel=rtol)
    assert grad.item() == pytest.approx(-3 * rest * gap, rel=rtol)

    eps = 1e-10
    loss, grad, *_ = with_grads(ops.bpr_loss, [user, positive, negative], 0.0, None, eps)
    wanted = (
        -math.log(eps + sigmoid) if gap < 0 else math.log1p(small) - math.log1p(eps * (1 + small))
    )
    assert loss.item() == pytest.approx(wanted, rel=rtol)
    assert grad.item() == pytest.approx(-3 * rest * sigmoid / (eps + sigmoid) * gap, rel=rtol)


def test_pairs_of_weight_zero_contribute_nothing(isa: str) -> None:
    operands = sample(150, 64, torch.float32)
    keep = torch.arange(150) % 3 != 0
    ours = with_grads(ops.bpr_loss, operands, 0.1, keep)
    for x in operands:
        x[~keep] = 1e18  # whose squares overflow
    again = with_grads(ops.bpr_loss, operands, 0.1, keep)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    alone = with_grads(ops.bpr_loss, [x[keep] for x in operands], 0.1)
    torch.testing.assert_close(ours[0], alone[0], rtol=1e-6, atol=0)
    for grad, wanted in zip(ours[1:], alone[1:], strict=True):
        assert not grad[~keep].any()
        torch.testing.assert_close(grad[keep], wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("pairs", [0, 5])
def test_without_any_weight_all_is_zero(pairs: int, isa: str) -> None:
    for weight in (torch.zeros(pairs), *([None] if pairs == 0 else [])):
        loss, *grads = with_grads(ops.bpr_loss, sample(pairs, 4), 0.1, weight)
        assert loss.item() == 0
        assert all(grad.shape == (pairs, 4) and not grad.any() for grad in grads)


def test_types_of_weights(isa: str) -> None:
    operands = sample(90, 16, torch.float32)
    weight = (some_weights(90) > 0.5).float()
    wanted = with_grads(ops.bpr_loss, operands, 0.1, weight)
    for other in (weight.bool(), weight.double(), weight.half(), weight.repeat(2, 1).t()[:, 0]):
        found = with_grads(ops.bpr_loss, operands, 0.1, other)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    weight.requires_grad_()
    leaf = operands[0].requires_grad_()
    ops.bpr_loss(leaf, *operands[1:], 0.1, weight).backward()
    assert weight.grad is None
    assert leaf.grad is not None


def test_nan_is_not_lost(isa: str) -> None:
    operands = sample(90, 16, torch.float32)
    operands[1][70, 3] = math.nan
    assert ops.bpr_loss(*operands, 0.0).isnan()
    assert ops.bpr_loss(*operands, 0.0, None, 0.0).isnan()


def test_strided(isa: str) -> None:
    operands = sample(70, 64, torch.float32)
    plain = with_grads(ops.bpr_loss, operands, 0.1)
    wide = torch.cat(operands, 1)
    for views in (
        [wide[:, i * 64 :][:, :64] for i in range(3)],
        [x.t().contiguous().t() for x in operands],
    ):
        other = with_grads(ops.bpr_loss, views, 0.1)
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("width", [5, 64])
def test_threads_and_repetition_do_not_matter(width: int, restore_threads: None, isa: str) -> None:
    operands, weight = sample(5001, width, torch.float32), some_weights(5001)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(with_grads(ops.bpr_loss, operands, 0.1, weight))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_double_backward_raises() -> None:
    leaves = [x.requires_grad_() for x in sample(6, 4)]
    (grad, *_) = torch.autograd.grad(ops.bpr_loss(*leaves, 0.1), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted: bool) -> None:
    operands = sample(9, 6, torch.float32)
    weight = some_weights(9).float() if weighted else None
    leaves = [x.clone().requires_grad_() for x in operands]
    torch.library.opcheck(torch.ops.kgrec_fast.bpr_loss.default, (*leaves, weight, 0.1, 1e-10))
    loss, gap, total = torch.ops.kgrec_fast.bpr_loss(*operands, weight, 0.1, 1e-10)
    torch.library.opcheck(
        torch.ops.kgrec_fast.bpr_loss_backward.default,
        (torch.ones_like(loss), *operands, weight, gap, total, 0.1, 1e-10),
    )


def test_fake_tensors() -> None:
    with FakeTensorMode():
        leaves = [torch.empty(7, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        loss = ops.bpr_loss(*leaves, 0.1, torch.empty(7, dtype=torch.bool))
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        loss.backward()
        assert leaves[2].grad.dtype == torch.bfloat16


def test_compiled() -> None:
    operands, weight = sample(90, 64, torch.float32), some_weights(90)

    def step(user: Tensor, positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
        return ops.bpr_loss(2 * user, positive, negative + 1, 0.1, weight)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    plain = with_grads(step, operands, weight)
    for one, other in zip(with_grads(compiled, operands, weight), plain, strict=True):
        assert torch.equal(one, other)


def test_bad_arguments_are_named() -> None:
    user, positive, negative = sample(5, 4)
    call = ops.bpr_loss
    with pytest.raises(TypeError, match="user is a list"):
        call([1.0], positive, negative, 0.1)
    with pytest.raises(TypeError, match=r"negative has dtype torch\.float32"):
        call(user, positive, negative.float(), 0.1)
    with pytest.raises(ValueError, match="positive has 4 rows"):
        call(user, positive[1:], negative, 0.1)
    with pytest.raises(ValueError, match="positive and negative have 5 and 5 rows, expected 4"):
        call(user[1:], positive, negative, 0.1)
    with pytest.raises(ValueError, match="negative has 3 columns"):
        call(user, positive, negative[:, 1:], 0.1)
    with pytest.raises(ValueError, match="negative is on meta"):
        call(user, positive, negative.to("meta"), 0.1)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"reg_weight is {bad}"):
            call(user, positive, negative, bad)
    for bad in (-1e-10, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"eps is {bad}"):
            call(user, positive, negative, 0.1, None, bad)
    with pytest.raises(TypeError, match=r"weight is torch\.int64"):
        call(user, positive, negative, 0.1, torch.ones(5, dtype=torch.int64))
    with pytest.raises(TypeError, match="weight is list"):
        call(user, positive, negative, 0.1, [1.0] * 5)
    with pytest.raises(ValueError, match=r"weight has shape \[4\], expected \[5\]"):
        call(user, positive, negative, 0.1, torch.ones(4))
    with pytest.raises(ValueError, match="weight is on meta"):
        call(user, positive, negative, 0.1, torch.ones(5, device="meta"))
