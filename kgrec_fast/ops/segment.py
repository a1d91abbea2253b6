"""Reductions and softmax over sorted segments: rows ptr[s] .. ptr[s+1]-1 belong to segment s."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.ops import _common

FLOATS = _common.FLOAT_TYPES
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SOFTMAX_EPS = 1e-16
"""Added to every sum of exponentials, as torch_geometric does."""


def widened(src: Tensor) -> Tensor:
    """Half types as float32, in which they accumulate; others as they are."""
    return src.float() if src.dtype in _common.HALF_TYPES else src


def check_src(src: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """TypeError unless src is a tensor of an allowed dtype, ValueError unless it has dimensions."""
    if not isinstance(src, Tensor) or src.dtype not in allowed:
        found = src.dtype if isinstance(src, Tensor) else type(src).__name__
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise TypeError(f"src is {found}, expected a tensor of {names}")
    _common.check_dense("src", src)
    if src.dim() == 0:
        raise ValueError("src has no dimension, expected at least one")


def check_ptr(ptr: Tensor, size: int, device: torch.device) -> None:
    """Validates the segment pointers of `size` rows; errors as in `segment_sum`."""
    if not isinstance(ptr, Tensor) or ptr.dtype != torch.int64:
        found = ptr.dtype if isinstance(ptr, Tensor) else type(ptr).__name__
        raise TypeError(f"ptr is {found}, expected an int64 tensor")
    _common.check_dense("ptr", ptr)
    if ptr.dim() != 1 or ptr.numel() == 0:
        raise ValueError(f"ptr has shape {list(ptr.shape)}, expected [segments + 1]")
    if ptr.device != device:
        raise ValueError(f"ptr is on {ptr.device}, expected {device}, the device of src")
    if not _common.readable(ptr):
        return
    first, last = int(ptr[0]), int(ptr[-1])
    if first != 0:
        raise ValueError(f"ptr[0] is {first}, expected 0")
    if last != size:
        raise ValueError(f"ptr[-1] is {last}, expected {size}, the number of rows of src")
    falls = ptr[1:] < ptr[:-1]
    if bool(falls.any()):
        s = int(falls.nonzero()[0])
        raise ValueError(
            f"ptr must not decrease: ptr[{s + 1}] is {int(ptr[s + 1])} after {int(ptr[s])}"
        )


def _segment_of_rows(ptr: Tensor, size: int) -> Tensor:
    segments = torch.arange(ptr.numel() - 1, device=ptr.device)
    return segments.repeat_interleave(ptr.diff(), output_size=size)


def _per_row(per_segment: Tensor, src: Tensor) -> Tensor:
    """Shapes [S] like [S, 1, ..] so that it broadcasts over the trailing dimensions of src."""
    return per_segment.view(-1, *[1] * (src.dim() - 1))


def segment_sum_reference(src: Tensor, ptr: Tensor) -> Tensor:
    """`segment_sum` in plain PyTorch."""
    check_src(src, FLOATS + INTEGERS)
    check_ptr(ptr, src.size(0), src.device)
    zeros = widened(src.new_zeros(ptr.numel() - 1, *src.shape[1:]))
    return zeros.index_add(0, _segment_of_rows(ptr, src.size(0)), widened(src)).to(src.dtype)


def segment_mean_reference(src: Tensor, ptr: Tensor) -> Tensor:
    """`segment_mean` in plain PyTorch."""
    total = segment_sum_reference(widened(src) if isinstance(src, Tensor) else src, ptr)
    count = _per_row(ptr.diff().clamp_min(1), src)
    if src.is_floating_point():
        return (total / count.to(total.dtype)).to(src.dtype)
    return total.to(torch.int64).div(count, rounding_mode="floor").to(src.dtype)


def segment_softmax_reference(src: Tensor, ptr: Tensor) -> Tensor:
    """`segment_softmax` in plain PyTorch."""
    check_src(src, FLOATS)
    check_ptr(ptr, src.size(0), src.device)
    segment = _segment_of_rows(ptr, src.size(0))
    return softmax_by_index(widened(src), segment, ptr.numel() - 1).to(src.dtype)


def softmax_by_index(src: Tensor, index: Tensor, num_nodes: int) -> Tensor:
    """exp(src - max) / (sum + 1e-16) along dimension 0 over rows of equal index [E], unchecked."""
    groups = src.new_zeros(num_nodes, *src.shape[1:])
    expanded = _per_row(index, src).expand_as(src)
    highest = groups.scatter_reduce(0, expanded, src.detach(), "amax", include_self=False)
    out = (src - highest.index_select(0, index)).exp()
    total = groups.index_add(0, index, out) + SOFTMAX_EPS
    return out / total.index_select(0, index)


def segment_sum(src: Tensor, ptr: Tensor) -> Tensor:
    """Sum of the rows of every segment; 0 for empty segments.

    Half types accumulate in float32. Bitwise repeatable, whatever the number of threads: segments
    of more than 4,096 rows are cut there. Integers, exact in any order, take torch's own kernels.
    O(E * F).

    Args:
        src: [E, ...], float32, float64, bfloat16, float16 or an integer type.
        ptr: int64 [S + 1], from 0 to E, never decreasing.

    Returns:
        [S, ...], dtype of src.

    Raises:
        TypeError: src or ptr has another dtype.
        ValueError: src has no dimension, or ptr is not as described (its values are looked at on
            the CPU only: a GPU would have to be waited for).
    """
    check_src(src, FLOATS + INTEGERS)
    check_ptr(ptr, src.size(0), src.device)
    return sum_segments(src, ptr)


def sum_segments(src: Tensor, ptr: Tensor) -> Tensor:
    """`segment_sum` of operands that are known to fit: no value of them is looked at."""
    if src.dtype in INTEGERS or not _common.runs_native(src.device):
        return segment_sum_reference(src, ptr)
    return _segment_sum(src, ptr)


def segment_mean(src: Tensor, ptr: Tensor) -> Tensor:
    """Mean of the rows of every segment; 0 for empty segments, rounded down for integers.

    Arguments, result and errors as in `segment_sum`.
    """
    check_src(src, FLOATS + INTEGERS)
    check_ptr(ptr, src.size(0), src.device)
    if src.dtype in INTEGERS or not _common.runs_native(src.device):
        return segment_mean_reference(src, ptr)
    return _segment_mean(src, ptr)


def segment_softmax(src: Tensor, ptr: Tensor) -> Tensor:
    """Softmax over the rows of every segment, for each trailing position on its own.

    out_e = exp(src_e - m) / (sum of exp(src_f - m) over the segment + 1e-16), m the segment's
    maximum, as `torch_geometric.utils.softmax` with `ptr`. Half types compute in float32. A segment
    whose maximum is infinite gives NaN, as softmax does. O(E * F).

    Args:
        src: [E, ...], floating point.
        ptr: int64 [S + 1], from 0 to E, never decreasing.

    Returns:
        [E, ...], dtype of src.

    Raises:
        TypeError: src is not floating point, or ptr not int64.
        ValueError: src has no dimension, or ptr is not as described.
    """
    check_src(src, FLOATS)
    check_ptr(ptr, src.size(0), src.device)
    if not _common.runs_native(src.device):
        return segment_softmax_reference(src, ptr)
    return _segment_softmax(src, ptr)


def _save_ptr(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    src, ptr = inputs
    ctx.rows = src.size(0)
    ctx.save_for_backward(ptr)


def _sum_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    (ptr,) = ctx.saved_tensors
    return _segment_spread(grad, ptr, ctx.rows, False), None


def _mean_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    (ptr,) = ctx.saved_tensors
    return _segment_spread(grad, ptr, ctx.rows, True), None


def _spread_setup(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    _, ptr, _, ctx.mean = inputs
    ctx.save_for_backward(ptr)


def _spread_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    (ptr,) = ctx.saved_tensors
    reduce = _segment_mean if ctx.mean else _segment_sum
    return reduce(grad, ptr), None, None, None


def _softmax_setup(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    _, ptr = inputs
    ctx.save_for_backward(output, ptr)


def _softmax_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    out, ptr = ctx.saved_tensors
    return _segment_softmax_backward(grad, out, ptr), None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::segment_sum")
    def _(src: Tensor, ptr: Tensor) -> Tensor:
        return src.new_empty(ptr.size(0) - 1, *src.shape[1:])

    @torch.library.register_fake("kgrec_fast::segment_mean")
    def _(src: Tensor, ptr: Tensor) -> Tensor:
        return src.new_empty(ptr.size(0) - 1, *src.shape[1:])

    @torch.library.register_fake("kgrec_fast::segment_spread")
    def _(per_segment: Tensor, ptr: Tensor, rows: int, mean: bool) -> Tensor:
        return per_segment.new_empty(rows, *per_segment.shape[1:])

    @torch.library.register_fake("kgrec_fast::segment_softmax")
    def _(src: Tensor, ptr: Tensor) -> Tensor:
        return src.new_empty(src.shape)

    @torch.library.register_fake("kgrec_fast::segment_softmax_backward")
    def _(grad_out: Tensor, out: Tensor, ptr: Tensor) -> Tensor:
        return out.new_empty(out.shape)

    _segment_sum: _common.TensorOp = _common.differentiable("segment_sum", _save_ptr, _sum_backward)
    _segment_mean: _common.TensorOp = _common.differentiable(
        "segment_mean", _save_ptr, _mean_backward
    )
    _segment_spread: _common.TensorOp = _common.differentiable(
        "segment_spread", _spread_setup, _spread_backward
    )
    _segment_softmax: _common.TensorOp = _common.differentiable(
        "segment_softmax", _softmax_setup, _softmax_backward
    )
    _segment_softmax_backward = _common.register_no_grad("segment_softmax_backward")
