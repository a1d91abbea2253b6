"""What scatter ops check of an index before they follow it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kgrec_fast._numbers import check_int
from kgrec_fast.ops import _common


class Values(NamedTuple):
    """The values of an index, as long as nobody has looked at them.

    Attributes:
        given: The index as the caller has it.
        size: What they are to be below; None for the largest of them plus one.
        bound: What `size` is called.
    """

    given: Tensor
    size: int | None
    bound: str

    def checked(self) -> int:
        """Validates 0 <= index < size, naming the first offending position; returns the size.

        On the CPU, that is (see `readable`).
        """
        index, size, bound = self
        if index.numel() == 0:
            return 0 if size is None else size
        if size is None and _common.is_batched(index):
            raise ValueError(f"{bound} is None, expected a size under torch.func.vmap")
        if not _common.readable(index):
            return int(index.max()) + 1 if size is None else size
        low, high = (int(value) for value in torch.aminmax(index))
        if low < 0 or (size is not None and high >= size):
            bad = (index < 0) if size is None else (index < 0) | (index >= size)
            position = bad.nonzero()[0].tolist()
            value = int(index[tuple(position)])
            expected = "an index >= 0" if size is None else f"0 <= index < {size} ({bound})"
            where = ", ".join(map(str, position))
            raise ValueError(f"index[{where}] is {value}, expected {expected}")
        return high + 1 if size is None else size


def _check_index(index: Tensor, device: torch.device) -> Tensor:
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
        found = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index is {found}, expected an int64 or int32 tensor")
    _common.check_dense("index", index)
    if index.device != device:
        raise ValueError(f"index is on {index.device}, expected {device}, the device of src")
    return index.long()


def check_dim(dim: int, src: Tensor) -> int:
    dim = check_int("dim", dim)
    if not -src.dim() <= dim < src.dim():
        raise ValueError(f"dim is {dim}, expected -{src.dim()} <= dim < {src.dim()}")
    return dim % src.dim()


def check_shapes(
    src: Tensor,
    index: Tensor,
    dim: int,
    out: Tensor | None,
    dim_size: int | None,
    size_name: str = "dim_size",
) -> tuple[Tensor, int, Values]:
    """Validates all but the values of the index.

    Returns index shaped to broadcast against src, dim >= 0, and the values to be looked at.
    """
    dim = check_dim(dim, src)
    index = _check_index(index, src.device)
    shape = [1] * dim + [index.numel()] if index.dim() == 1 else list(index.shape)
    shape += [1] * (src.dim() - len(shape))
    if len(shape) != src.dim() or any(
        n not in (1, m) for n, m in zip(shape, src.shape, strict=True)
    ):
        raise ValueError(
            f"index has shape {list(index.shape)}, expected one that broadcasts to "
            f"{list(src.shape)}, the shape of src, along dim {dim}"
        )
    size, bound = dim_size, size_name
    if size is not None:
        size = check_int(size_name, size)
    if out is not None:
        if not isinstance(out, Tensor) or out.dtype != src.dtype:
            found = out.dtype if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"out is {found}, expected a tensor of {src.dtype}, the dtype of src")
        if out.device != src.device:
            raise ValueError(f"out is on {out.device}, expected {src.device}, the device of src")
        if out.dim() != src.dim() or any(
            n < m for d, (n, m) in enumerate(zip(out.shape, src.shape, strict=True)) if d != dim
        ):
            raise ValueError(
                f"out has shape {list(out.shape)}, expected no dimension but {dim} smaller than "
                f"in {list(src.shape)}, the shape of src"
            )
        size, bound = out.size(dim), f"out.size({dim})"
    if size is not None and size < 0:
        raise ValueError(f"{size_name} is {size}, expected at least 0")
    # As in torch_scatter, an index that is expanded to nothing says nothing.
    given = index if src.numel() else index.new_empty(0)
    return index.view(shape), dim, Values(given, size, bound)
