"""What the tests of kernels on graphs share."""

from __future__ import annotations

import torch
from graph_helpers import CASES, Case
from torch import Tensor

from kgrec_fast.cuda_plan import CHUNK
from kgrec_fast.ops._common import accumulate_dtype

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}


def _all_bins() -> Case:
    """Rows and columns in each bin, hubs of three chunks among them."""
    generator = torch.Generator().manual_seed(3)
    edges = torch.randint(40, (2, 7000), generator=generator)
    edges[0, : 2 * CHUNK + 200] = 7
    edges[1, CHUNK : 3 * CHUNK + 200] = 11
    edges[:, -1000:] = edges[:, -1000:] % 30
    few = torch.stack([torch.arange(300) % 60 + 40, torch.arange(300) % 50 + 40])
    types = torch.randint(6, (7300,), generator=generator)
    return Case(torch.cat([edges, few], 1), types, 105, 95, 6)


def _many_chunks() -> Case:
    """A row and a column of more chunks than a warp adds up alone, beside others of a few."""
    generator = torch.Generator().manual_seed(4)
    long = 66 * CHUNK + 5
    edges = torch.randint(20, (2, 2 * long + 9 * CHUNK), generator=generator)
    edges[0, :long] = 3
    edges[1, long : 2 * long] = 11
    edges[0, 2 * long :] = torch.arange(9 * CHUNK) % 3 + 8
    return Case(edges, torch.randint(6, (edges.size(1),), generator=generator), 25, 22, 6)


BINS = _all_bins()
MANY_CHUNKS = _many_chunks()
SMALL = CASES["bipartite"]

sums = accumulate_dtype  # the type that values of a type are added up in


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    as_bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[one.element_size()]
    return torch.equal(one.view(as_bits), other.view(as_bits))
