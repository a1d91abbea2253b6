"""Losses of the CUDA kernels, forward and backward, on the CPU, against float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from graph_cases import DTYPES, EPS, same_bits, sums, values
from torch import Tensor

from kgrec_fast import ops

# With a kernel of their own, and without; fewer and more rows than a chunk, and than a block takes.
SHAPES = [(1, 32), (70, 64), (20, 128), (9, 256), (7, 1), (66, 7), (130, 30), (3, 129), (2, 300)]
TAU, REG_WEIGHT, RELATIONS = 0.4, 0.1, 5


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def close(found: Tensor, exact: Tensor, width: int, size: float) -> bool:
    """Sums of D terms of `size` in the accumulate type, and a rounding of the result."""
    error = (found.double() - exact).abs()
    limit = exact.abs() * EPS[found.dtype] + 2 * (16 + width) * EPS[sums(found.dtype)] * size
    return bool((error <= limit + torch.finfo(found.dtype).tiny).all())


# -- Contrast ----------------------------------------------------------------------------------


def views(rows: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    permutation = torch.randperm(rows, generator=generator)
    return values((rows, width), dtype, 1), values((rows, width), dtype, 2), permutation


def contrast(
    z1: Tensor, z2: Tensor, permutation: Tensor, grad: Tensor, **how: object
) -> list[Tensor]:
    """Loss, gradients, what is kept and the inverse permutation."""
    rows, acc = z1.shape[0], sums(z1.dtype)
    loss, kept = empty((rows,), acc), empty((rows, 8), acc)
    inverse = torch.full((rows,), -1, dtype=torch.int32)
    grads = [empty(z1.shape, z1.dtype) for _ in range(2)]
    given = {"z1": z1, "z2": z2, "permutation": permutation, "inverse": inverse, "kept": kept}
    run("contrast_loss", dtype=z1.dtype, tau=TAU, loss=loss, **given, **how)
    outputs = {"grad_z1": grads[0], "grad_z2": grads[1]}
    arguments = {**given, "grad": grad.unsqueeze(1), **outputs}
    run("contrast_loss_backward", dtype=z1.dtype, tau=TAU, **arguments, **how)
    return [loss, *grads, kept, inverse]


def exact_contrast(z1: Tensor, z2: Tensor, permutation: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [z.detach().double().requires_grad_() for z in (z1, z2)]
    loss = ops.contrast_loss_reference(*leaves, permutation, TAU)
    return loss.detach(), *torch.autograd.grad(loss, leaves, grad.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contrast(shape: tuple[int, int], dtype: torch.dtype) -> None:
    z1, z2, permutation = views(*shape, dtype)
    grad = values(shape[:1], sums(dtype), 3)
    found = contrast(z1, z2, permutation, grad)
    exact = exact_contrast(z1, z2, permutation, grad)
    assert torch.equal(found[4].long(), permutation.argsort())
    assert not found[3].isnan().any()
    # The gradient of a row is some cosines' over tau and the row's length.
    shortest = min(float(z.double().norm(dim=1).min()) for z in (z1, z2))
    largest = float(grad.abs().max()) / TAU / shortest
    for one, wanted, size in zip(found, exact, (1 / TAU, largest, largest), strict=False):
        assert close(one, wanted, shape[1], 4 * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 7])
def test_contrast_of_zero_and_tiny_rows(width: int, dtype: torch.dtype) -> None:
    z1, z2, permutation = views(20, width, dtype)
    z1[3], z2[5] = 0, -0.0
    if dtype != torch.float16:
        z1[8] = 1e-30
    found = contrast(z1, z2, permutation, torch.ones(20, dtype=sums(dtype)))
    assert all(x.isfinite().all() for x in found[:2])
    assert not found[1][3].any()
    assert not found[2][5].any()
    assert found[3][3, 0] == 0
    assert found[3][5, 1] == 0
    assert found[3][8, 0] > (1e11 if dtype != torch.float16 else 0)
    exact = exact_contrast(z1, z2, permutation, torch.ones(20))
    assert close(found[0], exact[0], width, 4 / TAU)
    if dtype != torch.float16:
        torch.testing.assert_close(
            found[1][8].double(), exact[1][8], rtol=1e-2 + width * EPS[dtype], atol=1e9
        )


def test_contrast_of_strided_rows() -> None:
    z1, z2, permutation = views(20, 64, torch.float32)
    grad = values((20,), torch.float32, 3)
    plain = contrast(z1, z2, permutation, grad)
    for gap in (4, 3):  # with vectors, and without
        wide = torch.zeros(20, 2 * (64 + gap))
        wide[:, gap : gap + 64], wide[:, -64:] = z1, z2
        other = contrast(
            wide[:, gap : gap + 64], wide[:, -64:], permutation, grad.repeat(3, 1).t()[:, 0]
        )
        exact = exact_contrast(z1, z2, permutation, grad)
        assert torch.equal(other[4], plain[4])
        for one, wanted in zip(other, exact, strict=False):
            torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [64, 7])
def test_contrast_of_no_permutation_stays_inside(width: int) -> None:
    z1, z2, permutation = views(20, width, torch.float32)
    permutation[[2, 3, 4]] = torch.tensor([20, -1, 2**40])
    found = contrast(z1, z2, permutation, torch.ones(20))
    bad = torch.zeros(20, dtype=torch.bool)
    bad[[2, 3, 4]] = True
    assert torch.equal(found[0].isnan(), bad)


# -- Ranking -----------------------------------------------------------------------------------


def pairs(rows: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    return [0.5 * values((rows, width), dtype, seed) for seed in (1, 2, 3)]


def weights(rows: int, dtype: torch.dtype) -> Tensor:
    weight = values((rows,), torch.float64, 4).abs()
    return torch.where(weight < 0.3, 0.0, weight).to(sums(dtype))


def mean(
    name: str, given: dict, kept: str, leaves: list[str], grad: float, **how: object
) -> list[Tensor]:
    """Loss, gradients, what is kept of each row, and the sum of the weights."""
    like = given[leaves[0]]
    dtype, acc = like.dtype, sums(like.dtype)
    loss, total = empty((1,), acc), empty((1,), torch.float64)
    row = empty((like.shape[0],), acc)
    run(name, dtype=dtype, loss=loss, total=total, **{kept: row}, **given, **how)
    grads = {f"grad_{leaf}": empty(given[leaf].shape, dtype) for leaf in leaves}
    one = torch.full((1,), grad, dtype=acc)
    run(
        f"{name}_backward",
        dtype=dtype,
        grad=one,
        total=total,
        **{kept: row},
        **given,
        **grads,
        **how,
    )
    return [loss, *grads.values(), row, total]


def bpr(
    operands: list[Tensor], weight: Tensor | None, eps: float = 1e-10, **how: object
) -> list[Tensor]:
    names = ["user", "positive", "negative"]
    given = dict(zip(names, operands, strict=True))
    given |= {"weight": weight, "reg_weight": REG_WEIGHT, "eps": eps}
    return mean("bpr_loss", given, "gap", names, 3.0, **how)


def exact_bpr(
    operands: list[Tensor], weight: Tensor | None, eps: float = 1e-10
) -> tuple[Tensor, ...]:
    leaves = [x.detach().double().requires_grad_() for x in operands]
    wide = None if weight is None else weight.double()
    loss = ops.bpr_loss_reference(*leaves, REG_WEIGHT, wide, eps)
    return loss.detach(), *torch.autograd.grad(3 * loss, leaves)


@pytest.mark.parametrize("eps", [0.0, 1e-10])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bpr(shape: tuple[int, int], dtype: torch.dtype, eps: float) -> None:
    operands = pairs(*shape, dtype)
    largest = max(float(x.abs().max()) for x in operands)
    for weight in (None, weights(shape[0], dtype) + 0.5):
        found = bpr(operands, weight, eps)
        exact = exact_bpr(operands, weight, eps)
        share = 3 * (1.0 if weight is None else float(weight.max())) / float(found[-1])
        assert close(found[0], exact[0], shape[1], largest**2)
        for one, wanted in zip(found[1:4], exact[1:], strict=True):
            assert close(one, wanted, shape[1], 2 * share * largest * (1 + largest**2))


@pytest.mark.parametrize("width", [64, 7])
def test_bpr_of_large_gaps(width: int) -> None:
    ends = torch.tensor([-1e15, -1000.0, 1000.0, 1e15])
    user, positive, negative = (torch.zeros(4, width) for _ in range(3))
    user[:, 0], positive[:, 0] = 1, ends
    for eps in (0.0, 1e-10):
        found = bpr([user, positive, negative], None, eps)
        exact = exact_bpr([user, positive, negative], None, eps)
        for one, wanted in zip(found, exact, strict=False):
            torch.testing.assert_close(one.double().view_as(wanted), wanted, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 70])
def test_bpr_without_any_weight(rows: int, dtype: torch.dtype) -> None:
    for weight in (torch.zeros(rows, dtype=sums(dtype)), *([None] if rows == 0 else [])):
        found = bpr(pairs(rows, 32, dtype), weight)
        assert not any(x.any() for x in (*found[:4], found[-1]))


def test_bpr_skips_pairs_of_weight_zero() -> None:
    operands = pairs(150, 64, torch.float32)
    weight = weights(150, torch.float32)
    before = bpr(operands, weight)
    for x in operands:
        x[weight == 0] = 1e18
    after = bpr(operands, weight)
    assert all(torch.equal(a, b) for a, b in zip(before[:4], after[:4], strict=True))
    assert not after[1][weight == 0].any()


# -- Reconstruction ----------------------------------------------------------------------------


def slots(
    rows: int, width: int, dtype: torch.dtype, relations: int = RELATIONS
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(rows)
    operands = [0.5 * values((rows, width), dtype, seed) for seed in (1, 2)]
    ids = torch.randint(max(1, relations - 1), (rows,), generator=generator)  # the last has none
    return [*operands, 0.5 * values((relations, width), dtype, 3)], ids


def reconstruction(
    operands: list[Tensor], ids: Tensor, weight: Tensor | None, **how: object
) -> list[Tensor]:
    names = ["head", "tail", "relation"]
    given = dict(zip(names, operands, strict=True))
    given |= {"weight": weight, "ids" if ids.dtype == torch.int64 else "short_ids": ids}
    return mean("reconstruction_loss", given, "score", names, 3.0, **how)


def exact_reconstruction(
    operands: list[Tensor], ids: Tensor, weight: Tensor | None
) -> tuple[Tensor, ...]:
    leaves = [x.detach().double().requires_grad_() for x in operands]
    wide = None if weight is None else weight.double()
    loss = ops.reconstruction_loss_reference(*leaves, ids, wide)
    return loss.detach(), *torch.autograd.grad(3 * loss, leaves)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reconstruction(shape: tuple[int, int], dtype: torch.dtype) -> None:
    operands, ids = slots(*shape, dtype)
    largest = max(float(x.abs().max()) for x in operands)
    for weight in (None, weights(shape[0], dtype) + 0.5):
        found = reconstruction(operands, ids, weight)
        exact = exact_reconstruction(operands, ids, weight)
        share = 3 * (1.0 if weight is None else float(weight.max())) / float(found[-1])
        assert close(found[0], exact[0], shape[1], largest**3)
        for one, wanted, terms in zip(found[1:4], exact[1:], (1, 1, shape[0]), strict=True):
            size = share * terms * largest**2 * (1 + largest**3)
            assert close(one, wanted, shape[1], size)
        assert not found[3][RELATIONS - 1].any()
        short = reconstruction(operands, ids.int(), weight)
        assert all(same_bits(a, b) for a, b in zip(found, short, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "relations"), [(0, 0), (0, 3), (70, 3)])
def test_reconstruction_without_any_weight(rows: int, relations: int, dtype: torch.dtype) -> None:
    operands, ids = slots(rows, 32, dtype, relations)
    found = reconstruction(operands, ids, torch.zeros(rows, dtype=sums(dtype)))
    assert not any(x.any() for x in (*found[:4], found[-1]))


@pytest.mark.parametrize("width", [64, 7])
def test_ids_out_of_range_stay_inside(width: int) -> None:
    operands, ids = slots(70, width, torch.float32)
    ids[[3, 9, 11]] = torch.tensor([-1, RELATIONS, 2**40])
    found = reconstruction(operands, ids, None)
    assert found[0].isnan()
    bad = torch.zeros(70, dtype=torch.bool)
    bad[[3, 9, 11]] = True
    assert torch.equal(found[4].isnan(), bad)
    assert found[3].isfinite().all()
    none = reconstruction([*operands[:2], operands[2][:0]], ids, None)
    assert none[0].isnan()


# -- All ---------------------------------------------------------------------------------------


def everything(shape: tuple[int, int], dtype: torch.dtype, **how: object) -> list[Tensor]:
    z1, z2, permutation = views(*shape, dtype)
    weight = weights(shape[0], dtype)
    return [
        *contrast(z1, z2, permutation, values(shape[:1], sums(dtype), 3), **how),
        *bpr(pairs(*shape, dtype), weight, **how),
        *reconstruction(*slots(*shape, dtype), weight, **how),
    ]


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("shape", [(150, 64), (70, 7), (66, 129)], ids=str)
def test_order_and_grid_do_not_matter(shape: tuple[int, int], order: str, seed: int) -> None:
    plain = everything(shape, torch.float32)
    for max_blocks in (1, 3):
        found = everything(shape, torch.float32, order=order, seed=seed, max_blocks=max_blocks)
        assert all(same_bits(a, b) for a, b in zip(plain, found, strict=True))


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for shape in ((66, 64), (5, 7), (2, 129)):
                everything(shape, dtype)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
