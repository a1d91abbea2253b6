"""What the tests of the segment and scatter kernels share."""

from __future__ import annotations

import math

import torch
from emulator import run
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WIDTHS = (1, 2, 64, 100)
# Chunks hold 512 places: segments on either side of that, and one that goes over several.
LENGTHS = {
    "short": [3, 0, 1, 17, 40, 0, 2],
    "long": [0, 5, 1300, 0, 513, 512, 1],
    "one": [600],
    "empty": [0, 0, 0],
    "none": [],
}
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def pointers(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def sums(x: Tensor) -> Tensor:
    """In the type of sums."""
    return x if x.dtype == torch.float64 else x.float()


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    as_bits = BITS[one.element_size()]
    return torch.equal(one.view(as_bits), other.view(as_bits))


def assert_as_good(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """At most twice as far from float64 as plain PyTorch is in the same dtype, or two roundings.

    In float64 both are the same, and round themselves: some more roundings are allowed there.
    """
    assert got.shape == exact.shape
    if not exact.numel():
        return
    error = (got.double() - exact).abs()
    roundings = (32 if got.dtype == torch.float64 else 2) * torch.finfo(got.dtype).eps
    limit = 2 * (plain.double() - exact).abs().max() + roundings * exact.abs().max()
    assert bool((error <= limit).all()), f"{float(error.max())} > {float(limit)}"


def softmax_gradient(grad: Tensor, out: Tensor, index: Tensor, size: int) -> Tensor:
    """out * (grad - sum over the group of out * grad), in the type of sums."""
    y, g = sums(out), sums(grad)
    total = y.new_zeros(size, *y.shape[1:]).index_add(0, index, y * g)
    return y * (g - total[index])


def call(
    name: str,
    src: Tensor,
    out_shape: tuple[int, ...],
    ptr: Tensor,
    rows: int,
    **more: object,
) -> Tensor:
    """A result that is filled with NaN before; more are operands or say how to run."""
    out = torch.full(out_shape, math.nan, dtype=src.dtype)
    width = src.shape[-1]
    run(name, dtype=src.dtype, src=src, out=out, ptr=ptr, rows=rows, width=width, **more)
    return out
