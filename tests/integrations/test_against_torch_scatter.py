"""Scatter functions against torch_scatter and torch_geometric themselves, on random cases.

Needs both packages. What they are asked lies within what they define: no half types, which they
accumulate in half, and no means of integers with more elements a cell than the type can count.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch_geometric.utils
import torch_scatter as theirs
import torch_scatter.composite
from torch import Tensor

from kgrec_fast.integrations import torch_geometric as our_geometric
from kgrec_fast.integrations import torch_scatter as ours

CASES = 150
REDUCTIONS = ["scatter_sum", "scatter_add", "scatter_mean"]
FLOATS = [torch.float64, torch.float32]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def random_case(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, int, int | None]:
    """src, an index that broadcasts to it, dim and dim_size."""
    rng = np.random.default_rng(seed)
    dims = int(rng.integers(1, 5))
    shape = [int(n) for n in rng.choice([0, 1, 2, 3, 5, 17], dims, p=[0.05, 0.15, *[0.2] * 4])]
    dim = int(rng.integers(dims))
    kind = rng.integers(4)
    if kind == 0:  # one index for all lines
        index_shape = [shape[dim]]
    elif kind == 1:  # one for each element
        index_shape = shape
    elif kind == 2:  # stretched
        index_shape = [1 if rng.random() < 0.4 else n for n in shape]
    else:  # one for each element of the leading dimensions; one dimension would stand for dim alone
        index_shape = shape[: max(dim + 1, min(2, dims))]
    groups = int(rng.integers(1, 8))
    index = torch.from_numpy(rng.integers(0, groups, index_shape))
    if rng.random() < 0.3 and index.numel():
        index = index.sort(-1).values
    values = torch.from_numpy(rng.normal(size=shape) * 4)
    src = values.abs().round().to(dtype) if dtype in INTEGERS else values.to(dtype)
    if rng.random() < 0.3 and dims > 1:  # not contiguous
        src = src.transpose(0, -1).contiguous().transpose(0, -1)
    dim_size = None if rng.random() < 0.5 else groups + int(rng.integers(3))
    if src.numel() == 0 and index.numel() > 0:
        dim_size = groups  # without it their scatter_mean fails
    return src, index, dim - dims if rng.random() < 0.5 else dim, dim_size


def out_for(src: Tensor, index: Tensor, dim: int) -> Tensor:
    shape = list(src.shape)
    shape[dim] = int(index.max()) + 2 if index.numel() else 3
    start = torch.arange(math.prod(shape)).remainder(7).view(shape)
    return start.to(src.dtype)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_reductions_and_their_gradients(name: str, dtype: torch.dtype) -> None:
    for seed in range(CASES):
        src, index, dim, dim_size = random_case(seed, dtype)
        results = []
        for module in (ours, theirs):
            leaf = src.clone().requires_grad_()
            out = getattr(module, name)(leaf, index, dim=dim, dim_size=dim_size)
            weight = torch.arange(out.numel(), dtype=dtype).cos().view(out.shape)
            (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
            results.append((out, grad))
        torch.testing.assert_close(*results, msg=lambda m, s=seed: f"case {s}: {m}")


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers(name: str, dtype: torch.dtype) -> None:
    for seed in range(CASES):
        src, index, dim, dim_size = random_case(seed, dtype)
        results = [getattr(m, name)(src, index, dim, None, dim_size) for m in (ours, theirs)]
        torch.testing.assert_close(*results, msg=lambda m, s=seed: f"case {s}: {m}")


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64])
def test_out(name: str, dtype: torch.dtype) -> None:
    for seed in range(CASES):
        src, index, dim, _ = random_case(seed, dtype)
        results = []
        for module in (ours, theirs):
            out = out_for(src, index, dim)
            assert getattr(module, name)(src, index, dim, out=out) is out
            results.append(out)
        torch.testing.assert_close(*results, msg=lambda m, s=seed: f"case {s}: {m}")


@pytest.mark.parametrize("reduce", ["sum", "add", "mean"])
def test_scatter(reduce: str) -> None:
    for seed in range(CASES):
        src, index, dim, dim_size = random_case(seed, torch.float64)
        results = [m.scatter(src, index, dim, None, dim_size, reduce) for m in (ours, theirs)]
        torch.testing.assert_close(*results, msg=lambda m, s=seed: f"case {s}: {m}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_softmax_of_torch_scatter(dtype: torch.dtype) -> None:
    for seed in range(CASES):
        src, index, dim, dim_size = random_case(seed, dtype)
        results = []
        for softmax in (ours.scatter_softmax, torch_scatter.composite.scatter_softmax):
            # Theirs writes into its argument's difference from the maximum, not into a leaf.
            leaf = src.clone().requires_grad_()
            out = softmax(leaf, index, dim=dim, dim_size=dim_size)
            weight = torch.arange(out.numel(), dtype=dtype).cos().view(out.shape)
            (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
            results.append((out, grad))
        torch.testing.assert_close(*results, msg=lambda m, s=seed: f"case {s}: {m}")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["index", "num_nodes", "ptr"])
def test_softmax_of_torch_geometric(dtype: torch.dtype, form: str) -> None:
    for seed in range(CASES):
        src, _, dim, _ = random_case(seed, dtype)
        rng = np.random.default_rng(seed)
        index = torch.from_numpy(rng.integers(0, 6, src.size(dim)))
        arguments = {"index": index, "dim": dim}
        if form == "num_nodes":
            arguments["num_nodes"] = 7
        if form == "ptr":
            count = torch.bincount(index, minlength=6)
            arguments = {"ptr": torch.cat([count.new_zeros(1), count.cumsum(0)]), "dim": dim}
        results = []
        for softmax in (our_geometric.softmax, torch_geometric.utils.softmax):
            leaf = src.clone().requires_grad_()
            out = softmax(leaf, **arguments)
            weight = torch.arange(out.numel(), dtype=dtype).cos().view(out.shape)
            (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
            results.append((out, grad))
        torch.testing.assert_close(*results, msg=lambda m, s=seed: f"case {s}: {m}")


def test_a_graph_of_real_size() -> None:
    rng = np.random.default_rng(0)
    src = torch.from_numpy(rng.normal(size=(50_000, 64))).float()
    index = torch.from_numpy(rng.zipf(1.6, 50_000) % 4_000)
    for name in REDUCTIONS:
        results = [getattr(m, name)(src, index, 0, dim_size=4_000) for m in (ours, theirs)]
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-4)
    results = [
        softmax(src, index, num_nodes=4_000)
        for softmax in (our_geometric.softmax, torch_geometric.utils.softmax)
    ]
    torch.testing.assert_close(*results)
