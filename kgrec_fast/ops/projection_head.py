"""The two dense layers in front of a contrast, in one pass over the rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.ops import _common
from kgrec_fast.ops._projection import takes_kernel


def _check(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    _common.check_matrix("x", x, 0)
    _common.check_matrix("w1", w1, 1, like=x)
    _common.check_matrix("w2", w2, 1)
    if w2.size(1) != w1.size(0):
        raise ValueError(f"w2 has {w2.size(1)} columns, expected {w1.size(0)}, the rows of w1")
    for name, bias, weight in (("b1", b1, w1), ("b2", b2, w2)):
        if not isinstance(bias, Tensor):
            raise TypeError(f"{name} is a {type(bias).__name__}, expected a torch.Tensor")
        _common.check_dense(name, bias)
        if bias.shape != (weight.size(0),):
            raise ValueError(f"{name} has shape {list(bias.shape)}, expected [{weight.size(0)}]")
    for name, other in (("w2", w2), ("b1", b1), ("b2", b2)):
        if other.dtype != x.dtype:
            raise TypeError(f"{name} has dtype {other.dtype}, expected {x.dtype}, as x")
        _common.check_device(name, other, x.device)


def projection_head_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """`projection_head` in plain PyTorch."""
    return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)


def projection_head(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """``relu(x w1^T + b1) w2^T + b2``: the projection in front of the contrast of KGRec's views.

    float32 and float64 on the CPU take a kernel, which holds no hidden rows outside of the caches:
    backward makes them anew. Half types and CUDA take torch's own products. O(n * H * (D + O)).

    Args:
        x: [n, D], floating point.
        w1: [H, D], of the same dtype, as of `torch.nn.Linear`.
        b1: [H].
        w2: [O, H].
        b2: [O].

    Returns:
        [n, O]. The kernel's is once differentiable; equal for every number of threads.

    Raises:
        TypeError: an argument is no tensor, or a dtype is not as described.
        ValueError: a shape or a device is not as described.
    """
    x, w1, b1, w2, b2 = _common.autocast(x, w1, b1, w2, b2)  # type: ignore[assignment]
    _check(x, w1, b1, w2, b2)
    if not takes_kernel(x):
        return projection_head_reference(x, w1, b1, w2, b2)
    return _projection_head(x, w1, b1, w2, b2)


def _setup_context(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: Any, grad_out: Tensor) -> _common.Gradients:
    grads: _common.Gradients = _projection_head_backward(grad_out, *ctx.saved_tensors)
    return grads


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::projection_head")
    def _(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return x.new_empty(x.size(0), w2.size(0))

    @torch.library.register_fake("kgrec_fast::projection_head_backward")
    def _(
        grad_out: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        shapes = (x.shape, w1.shape, b1.shape, w2.shape, w2.shape[:1])
        return tuple(x.new_empty(shape) for shape in shapes)  # type: ignore[return-value]

    _projection_head: _common.TensorOp = _common.differentiable(
        "projection_head", _setup_context, _backward
    )
    _projection_head_backward = _common.register_no_grad("projection_head_backward")
