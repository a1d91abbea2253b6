"""Loss of two views of the same rows, each with one negative in each direction."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_number
from kgrec_fast.ops import _common
from kgrec_fast.ops.dropout_normalize_add import EPS

_ROW_SCALARS = 8  # kept for backward, see csrc/common/contrast_loss.h


def _check(z1: Tensor, z2: Tensor, permutation: Tensor, tau: float) -> float:
    """Validates; returns `tau` as a number."""
    _common.check_matrix("z1", z1, 0)
    _common.check_matrix("z2", z2, 0, like=z1)
    rows = z1.size(0)
    if z2.size(0) != rows:
        raise ValueError(f"z2 has {z2.size(0)} rows, expected {rows}, as z1")
    if not isinstance(permutation, Tensor) or permutation.dtype != torch.int64:
        found = permutation.dtype if isinstance(permutation, Tensor) else type(permutation).__name__
        raise TypeError(f"permutation is {found}, expected an int64 tensor")
    _common.check_dense("permutation", permutation)
    if permutation.shape != (rows,):
        raise ValueError(f"permutation has shape {list(permutation.shape)}, expected [{rows}]")
    _common.check_device("permutation", permutation, z1.device)
    tau = check_number("tau", tau)
    if not 0.0 < tau < math.inf:
        raise ValueError(f"tau is {tau}, expected a finite number above 0")
    return tau


def _normalize(z: Tensor) -> Tensor:
    z = z.to(_common.accumulate_dtype(z.dtype))
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min(EPS)
    is_zero = (z == 0).all(dim=1, keepdim=True)
    # The branch of zero rows is a constant: it stops the gradient of 1 / EPS.
    return torch.where(is_zero, 0.0, z / norm)


def contrast_loss_reference(z1: Tensor, z2: Tensor, permutation: Tensor, tau: float) -> Tensor:
    """`contrast_loss` in plain PyTorch; whether `permutation` is one goes unchecked."""
    tau = _check(z1, z2, permutation, tau)
    z1, z2 = _normalize(z1), _normalize(z2)
    positive = (z1 * z2).sum(1)
    forth = (z1 * z2.index_select(0, permutation)).sum(1)
    back = (z2 * z1.index_select(0, permutation)).sum(1)
    # Differences of cosines are divided, not cosines: no tau makes an infinity less an infinity.
    cosines = torch.stack([positive, positive, forth, back])
    top = cosines.detach().amax(0)
    return ((cosines - top) / tau).logsumexp(0) - (positive - top) / tau


def contrast_loss(z1: Tensor, z2: Tensor, permutation: Tensor, tau: float) -> Tensor:
    """Contrastive loss of each row of two views (section 3.4 of KGRec).

    With s_ij the cosine of z1_i and z2_j (norms below 1e-12 replaced by it, as in
    `torch.nn.functional.normalize`) and p the permutation, the loss of row i is

        -log( e^(s_ii / tau) / (2 e^(s_ii / tau) + e^(s_ip(i) / tau) + e^(s_p(i)i / tau)) ).

    It is computed from differences of cosines and cannot overflow before its value does. Unlike
    torch's normalize, whose gradient at a row of zeros is 1e12 times the incoming one, a row that
    is exactly zero gets a zero gradient. A row whose sum of squares overflows gives NaN. Half types
    compute in float32; under autocast they may stand beside it. Backward keeps eight numbers a row
    and reads the views again. Once differentiable. O(n * D).

    Args:
        z1: [n, D], floating point, the first view.
        z2: [n, D], of the same dtype, the second view.
        permutation: int64 [n], the row that is the negative of each row. On CUDA it goes unchecked:
            rows with an index out of range give NaN, gradients of a mapping that is none of one
            row to one are undefined.
        tau: temperature, above 0; below the smallest normal number of the result's dtype it counts
            as that.

    Returns:
        [n], float64 for float64, else float32.

    Raises:
        TypeError: a dtype is not as described.
        ValueError: a shape, a device or tau is not as described.
        RuntimeError: `permutation` is none (CPU).
    """
    z1, z2 = _common.autocast(z1, z2, widen=True)  # type: ignore[assignment]
    tau = _check(z1, z2, permutation, tau)
    if not _common.runs_native(z1.device):
        return contrast_loss_reference(z1, z2, permutation, tau)
    return _contrast_loss(z1, z2, permutation, tau)[0]


def _setup_context(ctx: Any, inputs: _common.Inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    z1, z2, permutation, ctx.tau = inputs
    _, scalars, inverse = output
    ctx.mark_non_differentiable(scalars, inverse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(z1, z2, permutation, scalars, inverse)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> _common.Gradients:
    if grad is None:
        return None, None, None, None
    grads = _contrast_loss_backward(grad, *ctx.saved_tensors, ctx.tau)
    return *grads, None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::contrast_loss")
    def _(z1: Tensor, z2: Tensor, permutation: Tensor, tau: float) -> tuple[Tensor, ...]:
        rows, dtype = z1.size(0), _common.accumulate_dtype(z1.dtype)
        return (
            z1.new_empty(rows, dtype=dtype),
            z1.new_empty((rows, _ROW_SCALARS), dtype=dtype),
            z1.new_empty(rows, dtype=torch.int32),
        )

    @torch.library.register_fake("kgrec_fast::contrast_loss_backward")
    def _(grad: Tensor, z1: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return z1.new_empty(z1.shape), z1.new_empty(z1.shape)

    _contrast_loss: _common.TensorsOp = _common.differentiable(
        "contrast_loss", _setup_context, _backward
    )
    _contrast_loss_backward = _common.register_no_grad("contrast_loss_backward")
