"""Noise, the k largest and positions of the CUDA kernels, on the CPU: bits of the references."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from emulator import ORDERS, Traffic, recording, run, run_sanitized
from torch import Tensor

from kgrec_fast.ops.gumbel import gumbel_noise_reference
from kgrec_fast.ops.selection import (
    mask_positions_reference,
    topk_mask_reference,
)

RNG = torch.tensor([123456789012345, 6])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Around groups of four, bits of a digit, what a block counts, and what needs a second digit of ids.
SIZES = (0, 1, 2, 3, 4, 5, 255, 2047, 2048, 2049, 4099)
TILE = 4096


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(kind: str, n: int, dtype: torch.dtype) -> Tensor:
    if kind == "normal":
        values = torch.randn(n, generator=_generator(1), dtype=torch.float64)
    elif kind == "few":
        values = torch.randint(-3, 4, (n,), generator=_generator(2)).double()
    elif kind == "equal":
        values = torch.full((n,), -2.5, dtype=torch.float64)
    elif kind == "NaN":
        values = torch.full((n,), math.nan, dtype=torch.float64)
    else:
        kinds = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1e-42, -1e-42, 1e-310, 6e-8]
        kinds += [1.0, -1.0, 65504.0, -65504.0, 3.0e38, -3.0e38, 2.0**-24, -(2.0**-14)]
        place = torch.randint(len(kinds), (n,), generator=_generator(3))
        values = torch.tensor(kinds, dtype=torch.float64)[place]
    return values.to(dtype)


def random_mask(n: int, share: float) -> Tensor:
    return torch.rand(n, generator=_generator(4)) < share


def noise(n: int, rng: Tensor, stream: int, **how: object) -> Tensor:
    out = torch.full((n,), math.nan)
    run("gumbel_noise", rng=rng, stream=stream, out=out, **how)
    return out


def topk(
    values: Tensor,
    k: int | None = None,
    rate: float | None = None,
    largest: bool = True,
    mask: Tensor | None = None,
    streams: tuple[int, ...] = (),
    **how: object,
) -> Tensor:
    out = torch.full((values.numel(),), 77, dtype=torch.uint8)
    run(
        "topk_mask",
        dtype=values.dtype,
        values=values,
        k=-1 if k is None else k,
        rate=0.0 if rate is None else rate,
        largest=largest,
        mask=None if mask is None else mask.view(torch.uint8),
        rng=RNG if streams else None,
        num_streams=len(streams),
        out=out,
        **{f"stream{i}": stream for i, stream in enumerate(streams)},
        **how,
    )
    assert bool((out <= 1).all()), "written everywhere"
    return out.bool()


def reference(values: Tensor, *args: object, **named: object) -> Tensor:
    return topk_mask_reference(values, *args, rng=RNG, **named)  # type: ignore[arg-type]


def positions(mask: Tensor, count: int, **how: object) -> Tensor:
    out = torch.full((count,), -77)
    run("mask_positions", mask=mask.view(torch.uint8), out=out, **how)
    return out


# -- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 257, 4099])
def test_noise_has_the_bits_of_the_reference(n: int) -> None:
    for rng, stream in ((RNG, 7), (torch.tensor([-1, 2**32 - 1]), 2**32 - 1)):
        found, expected = noise(n, rng, stream), gumbel_noise_reference(n, rng, stream)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize(("seed", "element"), [(463, 28180), (207, 39758)])
def test_extreme_draws(seed: int, element: int) -> None:
    """24 bits that are all 0, and all 1."""
    rng, n = torch.tensor([seed, 0]), element + 1
    found = noise(n, rng, 0)
    assert torch.equal(found[element:], gumbel_noise_reference(n, rng, 0)[element:])
    assert float(found[element]) in (float(found.min()), float(found.max()))


# -- the k largest --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "few", "equal", "NaN", "awkward"])
def test_masks_are_those_of_the_reference(kind: str, dtype: torch.dtype) -> None:
    for n in SIZES:
        values, mask = numbers(kind, n, dtype), random_mask(n, 0.6)
        for k in {0, min(1, n), n // 3, n}:
            assert torch.equal(topk(values, k), reference(values, k))
            how = {"largest": False, "mask": mask}
            assert torch.equal(topk(values, k, **how), reference(values, k, **how))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_rate_is_a_share_of_the_set_bits(rate: float) -> None:
    for n in (1, 10, 1000, 4099):
        values = numbers("few", n, torch.float32)
        for mask in (None, random_mask(n, 0.5), random_mask(n, 0.0)):
            expected = reference(values, rate=rate, mask=mask)
            assert torch.equal(topk(values, rate=rate, mask=mask), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("streams", [(3,), (0x500, 0x700), (1, 1, 2, 2**32 - 1)])
def test_noise_is_added_stream_by_stream(dtype: torch.dtype, streams: tuple[int, ...]) -> None:
    for n in (1, 18, 2500):
        values, mask = numbers("normal", n, dtype), random_mask(n, 0.7)
        for largest in (True, False):
            how = {"largest": largest, "mask": mask, "streams": streams}
            assert torch.equal(topk(values, n // 3, **how), reference(values, n // 3, **how))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_anywhere_in_memory(dtype: torch.dtype) -> None:
    values, mask = numbers("few", 1000, dtype), random_mask(1000, 0.6)
    for first in (1, 2, 3, 4):
        found = topk(values[first:], 300, mask=mask[first:])
        assert torch.equal(found, reference(values[first:], 300, mask=mask[first:]))


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_and_grid_do_not_matter(order: str, seed: int, dtype: torch.dtype) -> None:
    n = 9001
    for kind, streams in (("normal", (3,)), ("few", ()), ("equal", ())):
        values, mask = numbers(kind, n, dtype), random_mask(n, 0.6)
        expected = reference(values, 2100, mask=mask, streams=streams)
        for max_blocks in (0, 1, 2):
            how = {"order": order, "seed": seed, "max_blocks": max_blocks}
            found = topk(values, 2100, mask=mask, streams=streams, **how)
            assert torch.equal(found, expected)
    for max_blocks in (0, 1, 2):
        how = {"order": order, "seed": seed, "max_blocks": max_blocks}
        assert torch.equal(noise(n, RNG, 5, **how), gumbel_noise_reference(n, RNG, 5))


def test_passes_with_nothing_to_find_out_read_nothing() -> None:
    """Noise without ties: no pass over the digits of the ids reads a key."""
    n = 4096
    out = torch.zeros(n, dtype=torch.uint8)

    def reads(values: Tensor) -> int:
        traffic: list[Traffic] = run(
            "topk_mask",
            dtype=values.dtype,
            values=values,
            k=1000,
            rate=0.0,
            largest=True,
            num_streams=0,
            out=out,
            count=True,
        )
        return sum(t.bytes for t in traffic if t.array == "keys" and not t.write)

    distinct = torch.arange(n).flip(0).float() * 0.37
    assert reads(distinct) <= 3 * 4 * n  # two more digits at most, and the mask
    assert reads(torch.ones(n)) == 5 * 4 * n  # two of the key, two of the id, and the mask


# -- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
def test_positions_of_set_bits(n: int, share: float) -> None:
    mask = random_mask(n, share)
    total = int(mask.sum())
    for count in {0, 1, total // 2, total, n + 5}:
        assert torch.equal(positions(mask, count), mask_positions_reference(mask, count))


def test_more_tiles_than_the_scan_has_threads() -> None:
    mask = torch.zeros(260 * TILE, dtype=torch.bool)
    mask[torch.tensor([5, TILE, 255 * TILE + 3, 256 * TILE, 259 * TILE + 4095])] = True
    for how in ({}, {"max_blocks": 1}, {"max_blocks": 7, "order": "backward"}):
        found = positions(mask, 6, **how)
        assert torch.equal(found, mask_positions_reference(mask, 6))


def test_masks_anywhere_in_memory() -> None:
    mask = random_mask(6000, 0.4)
    for first in (1, 7, 16):
        expected = mask_positions_reference(mask[first:], 3000)
        assert torch.equal(positions(mask[first:], 3000), expected)


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("max_blocks", [0, 1, 2])
def test_order_and_grid_do_not_matter_for_positions(order: str, seed: int, max_blocks: int) -> None:
    mask = random_mask(5 * TILE + 11, 0.3)
    for count in (10, 3000, 9000):
        found = positions(mask, count, order=order, seed=seed, max_blocks=max_blocks)
        assert torch.equal(found, mask_positions_reference(mask, count))


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for n in (0, 1, 7, 1026):
            noise(n, RNG, 3)
            mask = random_mask(n, 0.6)
            for dtype in DTYPES:
                values = numbers("awkward", n, dtype)
                topk(values, n // 3, mask=mask, streams=(1, 2))
                topk(values, rate=0.4, largest=False)
            positions(mask, n // 2)
            positions(mask, n + 3)
        topk(numbers("equal", 2500, torch.float32), 1200)
        positions(random_mask(2 * TILE + 3, 0.5), TILE)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
