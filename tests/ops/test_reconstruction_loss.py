"""Reconstruction of edges against loops and the published formula, and against float64."""

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
    slots: int, width: int, relations: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(slots, width), (slots, width), (relations, width)]
    operands = [0.5 * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [x.to(dtype) for x in operands], torch.randint(
        max(relations, 1), (slots,), generator=generator
    )


def some_weights(slots: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(slots, generator=generator, dtype=torch.float64)
    return torch.where(weight < 0.3, 0.0, weight)


def published(
    head: Tensor, tail: Tensor, relation: Tensor, ids: Tensor, weight: Tensor | None = None
) -> Tensor:
    weight = head.new_ones(head.shape[0]) if weight is None else weight
    score = (head * tail * relation[ids]).sum(1)
    return -(weight * torch.log(torch.sigmoid(score))).sum() / weight.sum()


def with_grads(function: Any, operands: list[Tensor], *arguments: Any) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in operands]
    loss = function(*leaves, *arguments)
    return loss.detach(), *torch.autograd.grad(3 * loss, leaves)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("slots", [1, 63, 64, 200])
def test_is_the_published_formula(slots: int, width: int, isa: str) -> None:
    operands, ids = sample(slots, width)
    for weight in (None, some_weights(slots) + (slots == 1)):
        wanted = with_grads(published, operands, ids, weight)
        for given in (ids, ids.int()):
            ours = with_grads(ops.reconstruction_loss, operands, given, weight)
            torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)
        reference = with_grads(ops.reconstruction_loss_reference, operands, ids, weight)
        torch.testing.assert_close(reference, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("relations", [1, 7, 70_000])
def test_gradients_of_relations_by_loops(relations: int, isa: str) -> None:
    operands, ids = sample(100, 5, relations)
    head, tail, relation = operands
    weight = some_weights(100)
    _, _, _, grad = with_grads(ops.reconstruction_loss, operands, ids, weight)
    wanted: dict[int, Tensor] = {}
    for i, r in enumerate(ids.tolist()):
        score = float((head[i] * tail[i] * relation[r]).sum())
        share = -3 * float(weight[i] / weight.sum()) / (1 + math.exp(score))
        wanted[r] = wanted.get(r, torch.zeros(5).double()) + share * head[i] * tail[i]
    for r, row in wanted.items():
        torch.testing.assert_close(grad[r], row, rtol=1e-10, atol=1e-13)
    rest = torch.ones(relations, dtype=torch.bool)
    rest[ids] = False
    assert not grad[rest].any()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("width", [17, 64])
def test_is_as_exact_as_pytorch_in_every_type(width: int, dtype: torch.dtype, isa: str) -> None:
    operands, ids = sample(300, width, dtype=dtype)
    arguments = (ids, some_weights(300).to(torch.float32))
    wide = [x.double() for x in operands]
    exact = with_grads(ops.reconstruction_loss_reference, wide, *arguments)
    theirs = with_grads(ops.reconstruction_loss_reference, operands, *arguments)
    ours = with_grads(ops.reconstruction_loss, operands, *arguments)
    assert ours[0].dtype == torch.float32
    assert all(grad.dtype == dtype for grad in ours[1:])
    for one, other, wanted in zip(ours, theirs, exact, strict=True):
        assert_as_good_as(one, other, wanted)


def test_gradcheck(isa: str) -> None:
    operands, ids = sample(6, 5)
    leaves = [x.requires_grad_() for x in operands]
    for weight in (None, some_weights(6)):
        torch.autograd.gradcheck(
            lambda *x, weight=weight: ops.reconstruction_loss(*x, ids, weight), leaves
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [-1e30, -1000.0, -20.0, 0.0, 3.0, 1000.0, 1e30])
def test_any_score(score: float, dtype: torch.dtype, isa: str) -> None:
    operands = [torch.full((1, 1), x, dtype=dtype) for x in (score, 1.0, 1.0)]
    loss, grad, *_ = with_grads(ops.reconstruction_loss, operands, torch.zeros(1).long())
    rtol = 1e-6 if dtype == torch.float32 else 1e-13
    small = math.exp(-abs(score)) if abs(score) < 700 else 0.0
    assert loss.item() == pytest.approx(max(-score, 0) + math.log1p(small), rel=rtol)
    rest = (1.0 if score < 0 else small) / (1 + small)
    assert grad.item() == pytest.approx(-3 * rest, rel=rtol)


def test_slots_of_weight_zero_contribute_nothing(isa: str) -> None:
    operands, ids = sample(150, 64, dtype=torch.float32)
    keep = torch.arange(150) % 3 != 0
    ours = with_grads(ops.reconstruction_loss, operands, ids, keep)
    for x in operands[:2]:
        x[~keep] = 1e18
    again = with_grads(ops.reconstruction_loss, operands, ids, keep)
    assert all(torch.equal(a, b) for a, b in zip(ours[:2], again[:2], strict=True))
    kept = [operands[0][keep], operands[1][keep], operands[2]]
    alone = with_grads(ops.reconstruction_loss, kept, ids[keep])
    torch.testing.assert_close(ours[0], alone[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[3], alone[3], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(again[3], alone[3], rtol=1e-5, atol=1e-7)
    for grad, wanted in zip(ours[1:3], alone[1:3], strict=True):
        assert not grad[~keep].any()
        torch.testing.assert_close(grad[keep], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("slots", "relations"), [(0, 0), (0, 3), (5, 3)])
def test_without_any_weight_all_is_zero(slots: int, relations: int, isa: str) -> None:
    operands, ids = sample(slots, 4, relations)
    for weight in (torch.zeros(slots), *([None] if slots == 0 else [])):
        loss, *grads = with_grads(ops.reconstruction_loss, operands, ids, weight)
        assert loss.item() == 0
        assert [g.shape for g in grads] == [x.shape for x in operands]
        assert not any(g.any() for g in grads)


def test_nan_is_not_lost(isa: str) -> None:
    operands, ids = sample(90, 16, dtype=torch.float32)
    operands[1][70, 3] = math.nan
    assert ops.reconstruction_loss(*operands, ids).isnan()


def test_strided(isa: str) -> None:
    operands, ids = sample(70, 64, dtype=torch.float32)
    plain = with_grads(ops.reconstruction_loss, operands, ids)
    both = torch.cat(operands[:2], 1)
    for views in (
        [both[:, :64], both[:, 64:], operands[2]],
        [x.t().contiguous().t() for x in operands],
    ):
        other = with_grads(ops.reconstruction_loss, views, ids.repeat_interleave(2)[::2])
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@pytest.mark.parametrize("width", [5, 64])
def test_threads_and_repetition_do_not_matter(width: int, restore_threads: None, isa: str) -> None:
    operands, ids = sample(5001, width, 30, torch.float32)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(with_grads(ops.reconstruction_loss, operands, ids, some_weights(5001)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_double_backward_raises() -> None:
    operands, ids = sample(6, 4)
    leaves = [x.requires_grad_() for x in operands]
    loss = ops.reconstruction_loss(*leaves, ids)
    (grad, *_) = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted: bool) -> None:
    operands, ids = sample(9, 6, dtype=torch.float32)
    weight = some_weights(9).float() if weighted else None
    leaves = [x.clone().requires_grad_() for x in operands]
    torch.library.opcheck(torch.ops.kgrec_fast.reconstruction_loss.default, (*leaves, ids, weight))
    loss, score, total = torch.ops.kgrec_fast.reconstruction_loss(*operands, ids, weight)
    torch.library.opcheck(
        torch.ops.kgrec_fast.reconstruction_loss_backward.default,
        (torch.ones_like(loss), *operands, ids, weight, score, total),
    )


def test_fake_tensors() -> None:
    with FakeTensorMode():
        leaves = [torch.empty(n, 4, dtype=torch.half, requires_grad=True) for n in (7, 7, 3)]
        loss = ops.reconstruction_loss(*leaves, torch.empty(7, dtype=torch.int32))
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        loss.backward()
        assert leaves[2].grad.shape == (3, 4)
        assert leaves[2].grad.dtype == torch.half


def test_compiled() -> None:
    operands, ids = sample(90, 64, dtype=torch.float32)
    weight = some_weights(90)

    def step(head: Tensor, tail: Tensor, relation: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
        return ops.reconstruction_loss(head / 2, tail, relation + 1, ids, weight)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    plain = with_grads(step, operands, ids, weight)
    for one, other in zip(with_grads(compiled, operands, ids, weight), plain, strict=True):
        assert torch.equal(one, other)


def test_bad_arguments_are_named(isa: str) -> None:
    (head, tail, relation), ids = sample(5, 4)
    call = ops.reconstruction_loss
    with pytest.raises(TypeError, match="head is a list"):
        call([1.0], tail, relation, ids)
    with pytest.raises(TypeError, match=r"relation has dtype torch\.float32"):
        call(head, tail, relation.float(), ids)
    with pytest.raises(ValueError, match="tail has 4 rows, expected at least 5"):
        call(head, tail[1:], relation, ids)
    with pytest.raises(ValueError, match="tail has 5 rows, expected 4"):
        call(head[1:], tail, relation, ids[1:])
    with pytest.raises(ValueError, match="relation has 3 columns"):
        call(head, tail, relation[:, 1:], ids)
    with pytest.raises(TypeError, match=r"relation_ids is torch\.int16"):
        call(head, tail, relation, ids.short())
    with pytest.raises(TypeError, match="relation_ids is list"):
        call(head, tail, relation, [0] * 5)
    with pytest.raises(ValueError, match=r"relation_ids has shape \[4\], expected \[5\]"):
        call(head, tail, relation, ids[1:])
    with pytest.raises(ValueError, match="relation_ids is on meta"):
        call(head, tail, relation, ids.to("meta"))
    for bad in (7, -1, 2**32):
        ids[3] = bad
        with pytest.raises(RuntimeError, match=rf"relation_ids\[3\] is {bad}, expected .* below 7"):
            call(head, tail, relation, ids)
    with pytest.raises(ValueError, match=r"weight has shape \[4\], expected \[5\]"):
        call(head, tail, relation, ids, torch.ones(4))
