"""What follows every hop: message dropout, L2 normalisation of each row, the running residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_number
from kgrec_fast.ops import _common
from kgrec_fast.ops.random import check_rng, check_stream, keep_mask_reference

EPS = 1e-12
"""Norms below it are replaced by it, as `torch.nn.functional.normalize` does."""


def _check(
    x: Tensor, residual: Tensor | None, p: float, rng: Tensor | None, stream: int, training: bool
) -> tuple[Tensor, Tensor | None, float, Tensor | None, int]:
    """Validates; returns all but `training`: x and residual in one dtype, and None for rng where
    nothing is dropped.
    """
    for name, tensor in (("x", x), ("residual", x if residual is None else residual)):
        if not isinstance(tensor, Tensor) or tensor.dtype not in _common.FLOAT_TYPES:
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} is {found}, expected a floating-point tensor")
        _common.check_dense(name, tensor)
    if x.dim() != 2:
        raise ValueError(f"x has shape {list(x.shape)}, expected two dimensions")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual has shape {list(residual.shape)}, expected {list(x.shape)}, the shape of x"
        )
    if residual is not None and residual.device != x.device:
        raise ValueError(f"residual is on {residual.device}, expected {x.device}, the device of x")
    p, stream = check_number("p", p), check_stream(stream)
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p is {p}, expected 0 <= p < 1")
    drops = training and p > 0.0
    if residual is not None and residual.dtype != x.dtype:
        dtype = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(dtype), residual.to(dtype)
    return x, residual, p, check_rng(rng, x.device) if drops else None, stream


def _check_row_ids(row_ids: Tensor | None, x: Tensor) -> None:
    if row_ids is None:
        return
    if not isinstance(row_ids, Tensor) or row_ids.dtype != torch.int64:
        found = row_ids.dtype if isinstance(row_ids, Tensor) else type(row_ids).__name__
        raise TypeError(f"row_ids is {found}, expected an int64 tensor")
    _common.check_dense("row_ids", row_ids)
    if row_ids.shape != x.shape[:1]:
        raise ValueError(f"row_ids has shape {list(row_ids.shape)}, expected [{x.size(0)}]")
    _common.check_device("row_ids", row_ids, x.device)


def _keep(rng: Tensor, stream: int, p: float, x: Tensor, row_ids: Tensor | None) -> Tensor:
    """Which elements of `x` are kept."""
    if row_ids is None or row_ids.numel() == 0:
        return keep_mask_reference(rng, stream, p, x.shape)
    rows = int(row_ids.max()) + 1
    return keep_mask_reference(rng, stream, p, torch.Size([rows, x.size(1)]))[row_ids]


def dropout_normalize_add_reference(
    x: Tensor,
    residual: Tensor | None,
    p: float,
    rng: Tensor | None,
    stream: int = 0,
    training: bool = True,
    row_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`dropout_normalize_add` in plain PyTorch."""
    x, residual, p, rng, stream = _check(x, residual, p, rng, stream, training)
    _check_row_ids(row_ids, x)
    message = x if x.dtype == torch.float64 else x.float()
    if rng is not None:
        keep = _keep(rng, stream, p, x, row_ids)
        message = torch.where(keep, message * (1.0 / (1.0 - p)), 0.0)
    norm = torch.linalg.vector_norm(message, dim=1, keepdim=True).clamp_min(EPS)
    is_zero = (message == 0).all(dim=1, keepdim=True)
    # The branch of zero rows is a constant: it stops the gradient of 1 / EPS.
    y = torch.where(is_zero, 0.0, message / norm).to(x.dtype)
    return y, y if residual is None else residual + y


def dropout_normalize_add(
    x: Tensor,
    residual: Tensor | None,
    p: float,
    rng: Tensor | None,
    stream: int = 0,
    training: bool = True,
    row_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Message dropout, L2 normalisation of each row, and the sum with the residual.

    With m_ij = x_ij / (1 - p) where uniform(rng, stream, i * D + j) >= p and 0 elsewhere,

        y_i = m_i / max(|m_i|_2, 1e-12),        out_i = residual_i + y_i.

    The draws compare 24 random bits, so that p is met to 2**-24. Half types compute in float32,
    which holds 1e-12, and round y before it is added. Unlike `torch.nn.functional.normalize`,
    whose gradient at a row of zeros is 1e12 times the incoming one (NaN in float16), a row that is
    exactly zero after dropout gets a zero gradient. Backward keeps y and one number a row; on CUDA
    it draws the mask anew, on the CPU it reads it off y, where -0 was dropped. O(N * D).

    Args:
        x: [N, D], floating point.
        residual: [N, D]; where its dtype differs from x's, both take the promoted one. None stands
            for zeros, and the two results are one.
        p: share of the elements dropped, 0 <= p < 1.
        rng: int64[2], (seed, step), on the device of x; may be None where nothing is dropped.
        stream: stream number of this use, see `kgrec_fast.ops.random.Stream`.
        training: False switches the dropout off.
        row_ids: int64 [N], the numbers i that the rows have in the draws, not checked; None for
            0 .. N - 1. So a few rows of a larger matrix are dropped as they are in that.

    Returns:
        (y, residual + y), both [N, D].

    Raises:
        TypeError: x or residual is not floating point, or rng is not an int64 tensor.
        ValueError: a shape, a device, p or stream is not as described.
    """
    x, residual, p, rng, stream = _check(x, residual, p, rng, stream, training)
    _check_row_ids(row_ids, x)
    if not _common.runs_native(x.device):
        return dropout_normalize_add_reference(
            x, residual, p, rng, stream, rng is not None, row_ids
        )
    if rng is not None:
        rng = rng.contiguous()
    if row_ids is not None:
        row_ids = row_ids.contiguous()
    y, out, _ = _dropout_normalize_add(x, residual, rng, p, stream, row_ids)
    return y, y if residual is None else out


def _setup_context(ctx: Any, inputs: _common.Inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, residual, rng, ctx.p, ctx.stream, row_ids = inputs
    y, out, norm = output
    ctx.has_residual = residual is not None
    ctx.mark_non_differentiable(*([norm] if ctx.has_residual else [norm, out]))
    # The next hop reads y and the model's result is the residual: often only one has a gradient.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(y, norm, rng, row_ids)


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_out: Tensor | None, _: None
) -> _common.Gradients:
    y, norm, rng, row_ids = ctx.saved_tensors
    grad_out = grad_out if ctx.has_residual else None
    grad_x = None
    if ctx.needs_input_grad[0] and not (grad_y is None and grad_out is None):
        grad_x = _dropout_normalize_add_backward(
            grad_y, grad_out, y, norm, rng, ctx.p, ctx.stream, row_ids
        )
    return grad_x, grad_out, None, None, None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::dropout_normalize_add")
    def _(x: Tensor, residual: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        norm = x.new_empty(x.size(0), dtype=_common.accumulate_dtype(x.dtype))
        out = x.new_empty(0 if residual is None else x.size(0), x.size(1))
        return x.new_empty(x.shape), out, norm

    @torch.library.register_fake("kgrec_fast::dropout_normalize_add_backward")
    def _(grad_y: Tensor | None, grad_out: Tensor | None, y: Tensor, *_: Any) -> Tensor:
        return y.new_empty(y.shape)

    _dropout_normalize_add = _common.differentiable(
        "dropout_normalize_add", _setup_context, _backward
    )
    _dropout_normalize_add_backward = _common.register_no_grad("dropout_normalize_add_backward")
