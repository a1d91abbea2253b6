"""Reductions and softmax over rows in arbitrary index order, as torch_scatter and PyG define them.

Nothing is sorted and nothing added atomically: threads share the cells of the result, and each cell
adds its elements in their order in `src`. Where the index is found sorted, and rows are not too
narrow for that to pay, the segment ops serve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.ops import _common
from kgrec_fast.ops._scatter_index import Values, check_dim, check_shapes
from kgrec_fast.ops.segment import (
    FLOATS,
    INTEGERS,
    check_src,
    segment_softmax,
    segment_softmax_reference,
    softmax_by_index,
    widened,
)


def _sum_reference(src: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    shape = [*src.shape[:dim], size, *src.shape[dim + 1 :]]
    zeros = widened(src.new_zeros(shape))
    return zeros.scatter_add(dim, index.expand_as(src), widened(src)).to(src.dtype)


def _takes_native(src: Tensor) -> bool:
    """Integers, exact in any order, take torch's own kernel."""
    return src.dtype in FLOATS and src.numel() > 0 and _common.runs_native(src.device)


def _sum(src: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    if not _takes_native(src):
        return _sum_reference(src, index, dim, size)
    # The op knows [rows, width] and [batches, rows, width], and one index a row.
    rows = index.flatten()
    if rows.numel() == index.size(dim):
        rows = rows.expand(src.size(dim))
        if dim == 0 and src.dim() == 2:  # a view of it would cost autograd a node
            return _scatter_sum(src, rows, size)
        batches, cells = math.prod(src.shape[:dim]), size
    else:
        batches, (rows, cells) = 1, _cells(index, dim, size, src)
    views = (rows.numel(), src.numel() // (batches * rows.numel()))
    total = _scatter_sum(src.reshape((batches, *views) if batches > 1 else views), rows, cells)
    return total.view(*src.shape[:dim], size, *src.shape[dim + 1 :])


def _checked_sum(src: Tensor, index: Tensor, dim: int, values: Values) -> Tensor:
    """`_sum` of an index whose values nobody has looked at.

    The native op looks at one index a row anyway, and an error alone is worth a second look.
    """
    size = values.size
    if size is None or index.numel() != index.size(dim) or not _takes_native(src):
        return _sum(src, index, dim, values.checked())
    try:
        return _sum(src, index, dim, size)
    except RuntimeError:
        values.checked()
        raise


def _cells(index: Tensor, dim: int, size: int, src: Tensor) -> tuple[Tensor, int]:
    """Numbers through what an index of several dimensions names, up to its own last dimension.

    Returns one number (int64 [E]) for each of the E places of src up to there, and their bound.
    """
    last = max(d for d, n in enumerate(index.shape) if n != 1 or d == dim)
    shape = [*src.shape[:dim], size, *src.shape[dim + 1 : last + 1]]
    named = index.reshape(index.shape[: last + 1]).expand(src.shape[: last + 1])
    number = torch.zeros_like(named)
    for d, n in enumerate(shape):
        place = torch.arange(n, device=src.device).view(-1, *[1] * (last - d))
        number = number * n + (named if d == dim else place)
    return number.flatten(), math.prod(shape)


def _accumulate(out: Tensor, total: Tensor) -> Tensor:
    """Adds total to the leading part of out: out may be larger, as in Tensor.scatter_add_."""
    part = out
    for d, n in enumerate(total.shape):
        part = part.narrow(d, 0, n)
    part.add_(total)
    return out


def _count(index: Tensor, dim: int, size: int) -> Tensor:
    """How often each output cell is named, at least 1.

    Counts the index as given: a single index for the whole of dim counts once, as in torch_scatter.
    """
    shape = [*index.shape[:dim], size, *index.shape[dim + 1 :]]
    zeros = torch.zeros(shape, dtype=torch.int64, device=index.device)
    return zeros.scatter_add(dim, index, torch.ones_like(index)).clamp_min(1)


def _check_mean_out(index: Tensor, dim: int, out: Tensor | None) -> None:
    """The counts have the shape of the index, and must reach every cell of a larger out."""
    if out is not None and any(
        d != dim and n not in (1, m)
        for d, (n, m) in enumerate(zip(index.shape, out.shape, strict=True))
    ):
        raise ValueError(
            f"out has shape {list(out.shape)}, expected one to which the counts of an index of "
            f"shape {list(index.shape)} broadcast"
        )


def _divide(total: Tensor, index: Tensor, dim: int, in_place: bool) -> Tensor:
    if total.numel() == 0:
        return total
    count = _count(index, dim, total.size(dim))
    if total.is_floating_point():
        count = count.to(total.dtype)
        return total.div_(count) if in_place else total / count
    return total.copy_(total.long().div_(count, rounding_mode="floor"))


def scatter_sum_reference(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """`scatter_sum` in plain PyTorch."""
    check_src(src, FLOATS + INTEGERS)
    index, dim, values = check_shapes(src, index, dim, out, dim_size)
    size = values.checked()
    total = _sum_reference(src, index, dim, size)
    return total if out is None else _accumulate(out, total)


def scatter_mean_reference(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """`scatter_mean` in plain PyTorch."""
    check_src(src, FLOATS + INTEGERS)
    index, dim, values = check_shapes(src, index, dim, out, dim_size)
    size = values.checked()
    _check_mean_out(index, dim, out)
    total = _sum_reference(widened(src), index, dim, size)
    if out is not None:
        total = _accumulate(out, total)
    return _divide(total, index, dim, in_place=True).to(src.dtype)


def _softmax(
    softmax: Callable[[Tensor, Tensor, int], Tensor],
    src: Tensor,
    index: Tensor | None,
    num_nodes: int | None,
    dim: int,
) -> Tensor:
    """Validates, and hands rows [E, F] with their index [E] and its bound to softmax."""
    if index is None:
        raise ValueError("index and ptr are both None, expected one of them")
    index, dim, values = check_shapes(src, index, dim, None, num_nodes, "num_nodes")
    size = values.checked()
    if src.numel() == 0:
        return src.clone()
    if index.numel() > index.size(dim):
        cell, cells = _cells(index, dim, size, src)
        return softmax(src.reshape(cell.numel(), -1), cell, cells).view(src.shape)
    rows = src.movedim(dim, 0)
    index = index.flatten().expand(rows.size(0))
    out = softmax(rows.reshape(rows.size(0), -1), index, size)
    return out.view(rows.shape).movedim(0, dim)


def scatter_softmax_reference(
    src: Tensor,
    index: Tensor | None = None,
    ptr: Tensor | None = None,
    num_nodes: int | None = None,
    dim: int = 0,
) -> Tensor:
    """`scatter_softmax` in plain PyTorch."""
    check_src(src, FLOATS)
    if ptr is not None:
        dim = check_dim(dim, src)
        return segment_softmax_reference(src.movedim(dim, 0), ptr).movedim(0, dim)

    def plain(rows: Tensor, index: Tensor, size: int) -> Tensor:
        return softmax_by_index(widened(rows), index, size).to(rows.dtype)

    return _softmax(plain, src, index, num_nodes, dim)


def scatter_sum(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Sum of the elements of src with the same index along dim, as `torch_scatter.scatter_sum`.

    Half types accumulate in float32. O(elements of src).

    Args:
        src: [.., E, ..], float32, float64, bfloat16, float16 or an integer type.
        index: int64 or int32, [E] or anything that trailing dimensions of size 1 and expansion
            turn into the shape of src.
        dim: dimension of src along which the index runs.
        out: the sums are added into it, in place, and it is returned.
        dim_size: size of the result along dim; the largest index plus one where absent.

    Returns:
        [.., dim_size, ..], dtype of src; cells that no index names are 0.

    Raises:
        TypeError: a dtype is not as described.
        ValueError: a shape or device is not as described, or an index is out of range (looked for
            on the CPU only; the message names the first such position).
    """
    check_src(src, FLOATS + INTEGERS)
    index, dim, values = check_shapes(src, index, dim, out, dim_size)
    total = _checked_sum(src, index, dim, values)
    return total if out is None else _accumulate(out, total)


def scatter_mean(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
) -> Tensor:
    """Mean of the elements of src with the same index, as `torch_scatter.scatter_mean`.

    Integers are rounded down. With `out` the sums are added into it first, and the whole is divided
    by how often src names each cell. Arguments, result and errors as in `scatter_sum`.
    """
    check_src(src, FLOATS + INTEGERS)
    index, dim, values = check_shapes(src, index, dim, out, dim_size)
    _check_mean_out(index, dim, out)
    total = _checked_sum(widened(src), index, dim, values)
    if out is not None:
        total = _accumulate(out, total)
    # The op may give back a view, which autograd does not let change.
    in_place = out is not None or not total.requires_grad
    return _divide(total, index, dim, in_place).to(src.dtype)


def scatter_softmax(
    src: Tensor,
    index: Tensor | None = None,
    ptr: Tensor | None = None,
    num_nodes: int | None = None,
    dim: int = 0,
) -> Tensor:
    """Softmax over the elements with the same index along dim, as `torch_geometric.utils.softmax`.

    An index of more dimensions serves as well, as in `torch_scatter.composite.scatter_softmax`.
    out_e = exp(src_e - m) / (sum of exp(src_f - m) over the group + 1e-16), m the group's maximum.
    Half types compute in float32. O(elements of src).

    Args:
        src: [.., E, ..], floating point.
        index: int64 or int32, [E] or anything that broadcasts as in `scatter_sum`, in any order;
            not looked at where ptr is given.
        ptr: int64 [S + 1], segments of sorted rows in place of an index.
        num_nodes: number of groups; the largest index plus one where absent.
        dim: dimension of src along which the index runs.

    Returns:
        [.., E, ..], dtype of src.

    Raises:
        TypeError: a dtype is not as described.
        ValueError: neither index nor ptr is given, a shape or device is not as described, or an
            index is out of range (the message names the first such position).
    """
    check_src(src, FLOATS)
    if ptr is not None:
        dim = check_dim(dim, src)
        return segment_softmax(src.movedim(dim, 0), ptr).movedim(0, dim)
    if not _common.runs_native(src.device):
        return scatter_softmax_reference(src, index, None, num_nodes, dim)
    return _softmax(_scatter_softmax, src, index, num_nodes, dim)


def _sum_setup(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _sum_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    (index,) = ctx.saved_tensors
    return grad.index_select(grad.dim() - 2, index), None, None


def _softmax_setup(ctx: Any, inputs: _common.Inputs, output: Tensor) -> None:
    _, index, ctx.size = inputs
    ctx.save_for_backward(output, index)


def _softmax_backward(ctx: Any, grad: Tensor) -> _common.Gradients:
    out, index = ctx.saved_tensors
    grad_src = _scatter_softmax_backward(grad, out, index, ctx.size)
    return grad_src, None, None


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::scatter_sum")
    def _(src: Tensor, index: Tensor, size: int) -> Tensor:
        return src.new_empty(*src.shape[:-2], size, src.size(-1))

    @torch.library.register_fake("kgrec_fast::scatter_add_")
    def _(x: Tensor, src: Tensor, index: Tensor, include_self: bool) -> None:
        return None

    @torch.library.register_fake("kgrec_fast::scatter_softmax")
    def _(src: Tensor, index: Tensor, size: int) -> Tensor:
        return src.new_empty(src.shape)

    @torch.library.register_fake("kgrec_fast::scatter_softmax_backward")
    def _(grad_out: Tensor, out: Tensor, index: Tensor, size: int) -> Tensor:
        return out.new_empty(out.shape)

    _scatter_sum: _common.TensorOp = _common.differentiable(
        "scatter_sum", _sum_setup, _sum_backward
    )
    _scatter_softmax = _common.differentiable("scatter_softmax", _softmax_setup, _softmax_backward)
    _scatter_softmax_backward = _common.register_no_grad("scatter_softmax_backward")
