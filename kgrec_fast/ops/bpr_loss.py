"""Bayesian personalised ranking of pairs, with the L2 penalty of what they read."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_number
from kgrec_fast.ops import _common


def check_weight(weight: Tensor | None, rows: int, like: Tensor) -> Tensor | None:
    """`weight` [rows] without gradient, in the type of sums of `like`."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or not (
        weight.dtype in _common.FLOAT_TYPES or weight.dtype == torch.bool
    ):
        found = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight is {found}, expected a floating-point or bool tensor")
    _common.check_dense("weight", weight)
    if weight.shape != (rows,):
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [{rows}]")
    _common.check_device("weight", weight, like.device)
    dtype = _common.accumulate_dtype(like.dtype)
    weight = weight.detach() if weight.requires_grad else weight
    return weight.to(dtype).contiguous()


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """sum(w * values) / sum(w), and 0 where the weights sum to 0."""
    if weight is None:
        return values.mean() if values.numel() > 0 else values.sum()
    total = weight.sum()
    kept = torch.where(weight == 0, 0.0, values * weight).sum()
    return torch.where(total == 0, 0.0, kept / torch.where(total == 0, 1.0, total))


def _check(
    user: Tensor,
    positive: Tensor,
    negative: Tensor,
    reg_weight: float,
    weight: Tensor | None,
    eps: float,
) -> tuple[float, Tensor | None, float]:
    """Validates; returns the last three, the weight as kernels take it."""
    _common.check_matrix("user", user, 0)
    pairs = user.size(0)
    _common.check_matrix("positive", positive, pairs, like=user)
    _common.check_matrix("negative", negative, pairs, like=user)
    if positive.size(0) != pairs or negative.size(0) != pairs:
        raise ValueError(
            f"positive and negative have {positive.size(0)} and {negative.size(0)} rows, "
            f"expected {pairs}, as user"
        )
    reg_weight, eps = check_number("reg_weight", reg_weight), check_number("eps", eps)
    if not -math.inf < reg_weight < math.inf:
        raise ValueError(f"reg_weight is {reg_weight}, expected a finite number")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps is {eps}, expected a finite number of at least 0")
    return reg_weight, check_weight(weight, pairs, user), eps


def bpr_loss_reference(
    user: Tensor,
    positive: Tensor,
    negative: Tensor,
    reg_weight: float,
    weight: Tensor | None = None,
    eps: float = 1e-10,
) -> Tensor:
    """`bpr_loss` in plain PyTorch."""
    reg_weight, weight, eps = _check(user, positive, negative, reg_weight, weight, eps)
    dtype = _common.accumulate_dtype(user.dtype)
    user, positive, negative = user.to(dtype), positive.to(dtype), negative.to(dtype)
    gap = (user * (positive - negative)).sum(1)
    value = -torch.log(eps + torch.sigmoid(gap)) if eps > 0 else F.softplus(-gap)
    squares = (user.square() + positive.square() + negative.square()).sum(1)
    return weighted_mean(value + reg_weight / 2 * squares, weight)


def bpr_loss(
    user: Tensor,
    positive: Tensor,
    negative: Tensor,
    reg_weight: float,
    weight: Tensor | None = None,
    eps: float = 1e-10,
) -> Tensor:
    """Bayesian personalised ranking with an L2 penalty, a weighted mean over pairs.

    With W the sum of the weights and gap_b = <u_b, p_b - n_b>,

        sum_b w_b ( -log(eps + sigmoid(gap_b)) + reg_weight (|u_b|^2 + |p_b|^2 + |n_b|^2) / 2 ) / W,

    and 0 where W is 0. Pairs of weight 0 contribute nothing. `eps` 0 is the log-sigmoid; neither it
    nor its gradient overflows for any gap. Half types compute in float32, sums over pairs in
    float64; under autocast they may stand beside float32. Backward keeps one number a pair. Once
    differentiable. O(B * D).

    Args:
        user: [B, D], floating point.
        positive: [B, D], of the same dtype: items that the users know.
        negative: [B, D], of the same dtype: items that they don't.
        reg_weight: of the penalty.
        weight: [B], floating point or bool, of the pairs; ones where it is None. No gradient.
        eps: at least 0, added to the sigmoid as published implementations do.

    Returns:
        Scalar, float64 for float64, else float32.

    Raises:
        TypeError: a dtype is not as described.
        ValueError: a shape, a device, reg_weight or eps is not as described.
    """
    user, positive, negative = _common.autocast(user, positive, negative, widen=True)  # type: ignore[assignment]
    reg_weight, weight, eps = _check(user, positive, negative, reg_weight, weight, eps)
    if not _common.runs_native(user.device):
        return bpr_loss_reference(user, positive, negative, reg_weight, weight, eps)
    return _bpr_loss(user, positive, negative, weight, reg_weight, eps)[0]


def _setup_context(ctx: Any, inputs: _common.Inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    user, positive, negative, weight, ctx.reg_weight, ctx.eps = inputs
    _, gap, total = output
    ctx.mark_non_differentiable(gap, total)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(user, positive, negative, weight, gap, total)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> _common.Gradients:
    if grad is None:
        return None, None, None, None, None, None
    grads = _bpr_loss_backward(grad, *ctx.saved_tensors, ctx.reg_weight, ctx.eps)
    return *grads, None, None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::bpr_loss")
    def _(user: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _common.accumulate_dtype(user.dtype)
        return (
            user.new_empty((), dtype=dtype),
            user.new_empty(user.size(0), dtype=dtype),
            user.new_empty((), dtype=torch.float64),
        )

    @torch.library.register_fake("kgrec_fast::bpr_loss_backward")
    def _(grad: Tensor, user: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        shape = user.shape
        return user.new_empty(shape), user.new_empty(shape), user.new_empty(shape)

    _bpr_loss: _common.TensorsOp = _common.differentiable("bpr_loss", _setup_context, _backward)
    _bpr_loss_backward = _common.register_no_grad("bpr_loss_backward")
