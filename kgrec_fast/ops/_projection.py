"""Products of embeddings with a small matrix: on the CPU by kernels of our own, else torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.ops import _common


def takes_kernel(x: Tensor) -> bool:
    """Whether an op of the CPU alone, for float32 and float64, serves `x`; else torch's own do."""
    whole = x.dtype in (torch.float32, torch.float64)
    return whole and _common.runs_cpu_op(x.device)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [N, D] times `weight` [D, D'], in autocast's type where it is on; without a gradient."""
    x, weight = _common.autocast(x.detach(), weight.detach())  # type: ignore[assignment]
    if not takes_kernel(x) or _common.keeps_to_ops():
        return x @ weight
    return torch.ops.kgrec_fast.project(x, weight)  # type: ignore[no-any-return]


def project_backward_onto(
    grad_x: Tensor | None, grad_out: Tensor, x: Tensor, weight: Tensor, needs_weight: bool = True
) -> Tensor | None:
    """Adds the gradient of `project` to `grad_x`, contiguous, where it is given; returns that of
    `weight` where it is needed.
    """
    # A graph of this pass, for second derivatives, needs ops with a gradient of their own.
    kernel = takes_kernel(x) and not torch.is_grad_enabled()
    if grad_x is not None and needs_weight and kernel:
        return torch.ops.kgrec_fast.project_backward_onto(  # type: ignore[no-any-return]
            grad_x, grad_out, x, weight
        )
    if grad_x is not None:
        grad_x.addmm_(grad_out, weight.t())
    return x.t() @ grad_out if needs_weight else None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::project")
    def _(x: Tensor, weight: Tensor) -> Tensor:
        return x.new_empty(x.size(0), weight.size(1))

    @torch.library.register_fake("kgrec_fast::project_backward_onto")
    def _(grad_x: Tensor, grad_out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return weight.new_empty(weight.shape)
