"""What the tests of the segment, scatter and dropout ops share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from kgrec_fast import _library, ops

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Relative error of one rounding, twice over, and the distance of numbers too small for that.
EPS = {dtype: torch.finfo(dtype).eps for dtype in FLOATS}
SUBNORMAL = {dtype: torch.finfo(dtype).tiny * torch.finfo(dtype).eps for dtype in FLOATS}

# (shape of src, shape of index, dim): every way in which an index broadcasts.
LAYOUTS = [
    ((7,), (7,), -1),
    ((7,), (7,), 0),
    ((30, 20), (20,), -1),
    ((30, 20), (30,), 0),
    ((30, 20), (30,), -2),
    ((30, 20), (30, 20), 1),
    ((30, 20), (30, 20), 0),
    ((30, 20), (1, 20), 1),
    ((30, 20), (30, 1), 0),
    ((4, 6, 5), (6,), 1),
    ((4, 6, 5), (4, 6), 1),
    ((4, 6, 5), (4, 6, 5), 2),
    ((4, 6, 5), (4, 6, 1), 1),
    ((4, 6, 5), (4, 1, 5), 2),
    ((4, 6, 5), (1, 6, 5), 1),
    ((200, 64), (200,), 0),
]


@pytest.fixture(params=["reference", *_library.supported_isas()])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test on the reference ops and on every instruction set of this machine."""
    if request.param == "reference":
        with ops.use_reference():
            yield request.param
        return
    before = _library.isa()
    _library.set_isa(request.param)
    yield request.param
    _library.set_isa(before)


def random_values(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Normal numbers, rounded to `dtype`; small integers for integer types."""
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=shape))
    return values.to(dtype) if dtype.is_floating_point else (values * 5).abs().to(dtype)


def strided(x: Tensor) -> Tensor:
    """The same values, no dimension contiguous."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.size(-1), dtype=x.dtype).transpose(0, -1).contiguous()
    view = wide.transpose(0, -1)[..., ::2]
    view.copy_(x)
    assert not view.is_contiguous()
    return view


def with_threads(call: Callable[[], Tensor]) -> list[Tensor]:
    """Results of a call under 1, 2, 3 and again 3 threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            results.append(call())
        return results
    finally:
        torch.set_num_threads(before)


def expand(index: np.ndarray, shape: tuple[int, ...], dim: int) -> np.ndarray:
    """The index at every element of src."""
    if index.ndim == 1:
        index = index.reshape([1] * (dim % len(shape)) + [-1])
    return np.broadcast_to(index.reshape(index.shape + (1,) * (len(shape) - index.ndim)), shape)


def indices(shape: tuple[int, ...], size: int = 5) -> Tensor:
    """Not sorted, and never the value 3."""
    drawn = np.random.default_rng(9).integers(0, size - 1, shape)
    return torch.from_numpy(np.where(drawn == 3, size - 1, drawn))


def id_of(layout: object) -> str:
    return str(layout).replace(" ", "")
