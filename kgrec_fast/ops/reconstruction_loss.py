"""Loss of masked edges, reconstructed from their ends and their relation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.ops import _common
from kgrec_fast.ops.bpr_loss import check_weight, weighted_mean


def _check(
    head: Tensor, tail: Tensor, relation: Tensor, relation_ids: Tensor, weight: Tensor | None
) -> Tensor | None:
    """Validates; returns the weight as kernels take it."""
    _common.check_matrix("head", head, 0)
    slots = head.size(0)
    _common.check_matrix("tail", tail, slots, like=head)
    if tail.size(0) != slots:
        raise ValueError(f"tail has {tail.size(0)} rows, expected {slots}, as head")
    _common.check_matrix("relation", relation, 0, like=head)
    if not isinstance(relation_ids, Tensor) or relation_ids.dtype not in (torch.int32, torch.int64):
        is_tensor = isinstance(relation_ids, Tensor)
        found = relation_ids.dtype if is_tensor else type(relation_ids).__name__
        raise TypeError(f"relation_ids is {found}, expected an int64 or int32 tensor")
    _common.check_dense("relation_ids", relation_ids)
    if relation_ids.shape != (slots,):
        raise ValueError(f"relation_ids has shape {list(relation_ids.shape)}, expected [{slots}]")
    _common.check_device("relation_ids", relation_ids, head.device)
    return check_weight(weight, slots, head)


def reconstruction_loss_reference(
    head: Tensor,
    tail: Tensor,
    relation: Tensor,
    relation_ids: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """`reconstruction_loss` in plain PyTorch."""
    weight = _check(head, tail, relation, relation_ids, weight)
    dtype = _common.accumulate_dtype(head.dtype)
    rows = relation.to(dtype).index_select(0, relation_ids)
    score = (head.to(dtype) * (tail.to(dtype) * rows)).sum(1)
    return weighted_mean(F.softplus(-score), weight)


def reconstruction_loss(
    head: Tensor,
    tail: Tensor,
    relation: Tensor,
    relation_ids: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Weighted mean of -log sigmoid(<head, tail * relation>) over slots of edges.

    With s_i = <h_i, t_i * relation[r_i]>, sum_i w_i softplus(-s_i) / sum_i w_i, and 0 where the
    weights sum to 0. Slots of weight 0 contribute nothing. No score makes it overflow. Half types
    compute in float32, sums over slots in float64; under autocast they may stand beside float32.
    Backward keeps one number a slot and adds up each relation's gradient in the order of the slots.
    Once differentiable. O(m * D + R * D); on CUDA each relation looks at all m ids.

    Args:
        head: [m, D], floating point.
        tail: [m, D], of the same dtype.
        relation: [R, D], of the same dtype.
        relation_ids: int64 or int32 [m], the row of `relation` for each slot. On CUDA they go
            unchecked: a slot with an id out of range makes the loss NaN.
        weight: [m], floating point or bool, of the slots; ones where it is None. No gradient.

    Returns:
        Scalar, float64 for float64, else float32.

    Raises:
        TypeError: a dtype is not as described.
        ValueError: a shape or a device is not as described.
        RuntimeError: an id is out of range (CPU).
    """
    head, tail, relation = _common.autocast(head, tail, relation, widen=True)  # type: ignore[assignment]
    weight = _check(head, tail, relation, relation_ids, weight)
    if not _common.runs_native(head.device):
        return reconstruction_loss_reference(head, tail, relation, relation_ids, weight)
    return _reconstruction_loss(head, tail, relation, relation_ids, weight)[0]


def _setup_context(ctx: Any, inputs: _common.Inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, score, total = output
    ctx.mark_non_differentiable(score, total)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, score, total)


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> _common.Gradients:
    if grad is None:
        return None, None, None, None, None
    grads = _reconstruction_loss_backward(grad, *ctx.saved_tensors)
    return *grads, None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::reconstruction_loss")
    def _(head: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _common.accumulate_dtype(head.dtype)
        return (
            head.new_empty((), dtype=dtype),
            head.new_empty(head.size(0), dtype=dtype),
            head.new_empty((), dtype=torch.float64),
        )

    @torch.library.register_fake("kgrec_fast::reconstruction_loss_backward")
    def _(
        grad: Tensor, head: Tensor, tail: Tensor, relation: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (
            head.new_empty(head.shape),
            head.new_empty(head.shape),
            relation.new_empty(relation.shape),
        )

    _reconstruction_loss: _common.TensorsOp = _common.differentiable(
        "reconstruction_loss", _setup_context, _backward
    )
    _reconstruction_loss_backward = _common.register_no_grad("reconstruction_loss_backward")
