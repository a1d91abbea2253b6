"""The emulator itself: correct kernels give right results in every order, mistakes are caught."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from emulator import ORDERS, run

BLOCK = 128
MISTAKES = Path(__file__).with_name("emulator_mistakes.cpp").read_text().splitlines()
in_every_order = pytest.mark.parametrize(("order", "seed"), ORDERS)


def normal(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=n).astype(np.float32)


# -- Correct kernels -------------------------------------------------------------------------


@in_every_order
def test_block_sum(order: str, seed: int) -> None:
    x, out = normal(1000), np.full(3, np.nan, np.float32)
    run("block_sum", order=order, seed=seed, x=x, out=out)
    padded = np.concatenate([x, np.zeros(9 * BLOCK - 1000, np.float32)])
    np.testing.assert_allclose(out, padded.reshape(3, 3, BLOCK).sum((0, 2)), rtol=1e-5)


@in_every_order
def test_groups_of_a_warp_go_their_own_ways(order: str, seed: int) -> None:
    counts = np.random.default_rng(1).integers(0, 40, size=30)
    ptr = np.concatenate([[0], counts.cumsum()])
    x = np.random.default_rng(2).normal(size=ptr[-1])
    out, long_segments = np.full(30, np.nan), np.full(9, -1, np.int32)
    run("segment_sum", order=order, seed=seed, ptr=ptr, x=x, out=out, long_segments=long_segments)
    expected = [x[a:b].sum() for a, b in itertools.pairwise(ptr)]
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    padded = np.concatenate([counts > 8, np.zeros(6, bool)])
    np.testing.assert_array_equal(long_segments, padded.reshape(9, 4).sum(1))


@in_every_order
def test_warp_scan(order: str, seed: int) -> None:
    x = np.random.default_rng(0).integers(-9, 9, size=2 * BLOCK).astype(np.int32)
    out = np.zeros_like(x)
    run("warp_scan", order=order, seed=seed, x=x, out=out)
    np.testing.assert_array_equal(out, x.reshape(-1, 32).cumsum(1).ravel())


@in_every_order
def test_histogram(order: str, seed: int) -> None:
    x = np.random.default_rng(0).integers(0, 200, size=3000).astype(np.int32)
    counts = np.zeros(200, np.int64)
    run("histogram", order=order, seed=seed, x=x, counts=counts)
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=200))


@in_every_order
@pytest.mark.parametrize("width", [1, 2, 8, 32])
@pytest.mark.parametrize("argument", [0, 1, 3, 17])
def test_primitives(argument: int, width: int, order: str, seed: int) -> None:
    x = np.random.default_rng(0).integers(-50, 50, size=2 * BLOCK).astype(np.int32)
    out = np.zeros((8, x.size), np.int32)
    run("primitives", order=order, seed=seed, x=x, out=out, argument=argument, width=width)

    lane = np.arange(x.size) % 32
    warp = np.arange(x.size) - lane
    begin = lane - lane % width
    source = np.stack([begin + argument % width, lane - argument, lane + argument, lane ^ argument])
    outside = (source < begin) | (source >= begin + width)
    outside[3] = source[3] >= begin + width  # xor may look at lower segments
    source = np.where(outside, lane, source)
    np.testing.assert_array_equal(out[:4], x[warp + source])

    votes = (x > argument).reshape(-1, 32)
    ballot = (votes * 2 ** np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
    np.testing.assert_array_equal(out[4].view(np.uint32), ballot.repeat(32))
    np.testing.assert_array_equal(out[5], votes.any(1).repeat(32))
    np.testing.assert_array_equal(out[6], votes.all(1).repeat(32))
    np.testing.assert_array_equal(out[7], x.reshape(-1, width).max(1).repeat(width))


# -- Half types: every bit pattern -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_of_all_half_numbers(dtype: torch.dtype) -> None:
    bits = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.int16))
    x = bits.view(dtype)
    wide, narrow = torch.empty(65536), torch.empty_like(x)
    run("convert", x=x, wide=wide, narrow=narrow, dtype=dtype)
    expected = x.float()
    nan = expected.isnan()
    assert torch.equal(wide.isnan(), nan)
    assert torch.equal(narrow.isnan(), nan)
    assert torch.equal(wide.view(torch.int32)[~nan], expected.view(torch.int32)[~nan])
    assert torch.equal(narrow.view(torch.int16)[~nan], bits[~nan])
    # The sign of a NaN is kept.
    assert torch.equal(wide.view(torch.int32)[nan] < 0, bits[nan] < 0)


def test_rounding_to_half_types() -> None:
    # Every half number, the ties on both sides of it, and their neighbours; then random patterns.
    halves = np.arange(65536, dtype=np.uint16)
    values = [
        halves.view(np.float16).astype(np.float32),
        (halves.astype(np.uint32) << 16).view(np.float32),
    ]
    ties = [v.view(np.uint32) + t for v, t in zip(values, (0x1000, 0x8000), strict=True)]
    subnormal = ((2 * np.arange(2048) + 1) * 2.0**-25).astype(np.float32).view(np.uint32)
    patterns = np.concatenate([*(v.view(np.uint32) for v in values), *ties, subnormal])
    patterns = np.concatenate([patterns + np.uint32(d % 2**32) for d in (-1, 0, 1)])
    patterns = np.concatenate(
        [patterns, np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)]
    )
    x = torch.from_numpy(patterns.view(np.float32))
    half, bfloat16 = (
        torch.empty_like(x, dtype=torch.float16),
        x.new_empty(x.shape, dtype=torch.bfloat16),
    )
    run("narrow", x=x, half=half, bfloat16=bfloat16)
    for ours in (half, bfloat16):
        theirs = x.to(ours.dtype)
        nan = x.isnan()
        assert torch.equal(ours.isnan(), nan)
        assert torch.equal(ours.view(torch.int16)[~nan], theirs.view(torch.int16)[~nan])


# -- Mistakes --------------------------------------------------------------------------------


def results_of(kernel: str) -> list[np.ndarray]:
    results = []
    for order, seed in ORDERS:
        out = np.zeros(64, np.float32)
        run("mistake", kernel=kernel, x=normal(64), out=out, order=order, seed=seed)
        results.append(out)
    return results


@pytest.mark.parametrize("kernel", ["no_syncthreads", "no_syncwarp", "no_second_syncwarp"])
def test_a_missing_barrier_shows_in_the_order(kernel: str) -> None:
    assert len({out.tobytes() for out in results_of(kernel)}) > 1


def test_uninitialised_shared_memory_is_nan() -> None:
    for out in results_of("uninitialised_shared"):
        assert np.flatnonzero(np.isnan(out)).tolist() == [36, 37]


# What is wrong, the line that the error must name, and whether thread 37 is the one it must name.
ERRORS = {
    "barrier_after_exit": ("waits for thread 37, which has exited", "__syncthreads", False),
    "barriers_apart": ("while others wait at another one", "__syncthreads", False),
    "barrier_against_shuffle": (
        "waits for lane 5, which is at __syncthreads",
        "__shfl_sync",
        False,
    ),
    "shuffle_after_exit": ("waits for lane 5, which has exited", "__shfl_xor_sync", False),
    "syncwarp_in_branch": ("waits for lane 5, which has exited", "__syncwarp", False),
    "masks_differ": ("waits for lane", "__shfl_xor_sync", False),
    "mask_without_self": ("mask 0x00000001 does not name the lane that calls", "__shfl_sync", True),
    "source_outside_mask": (
        "reads lane 21, which mask 0x0000ffff does not name",
        "__shfl_xor",
        True,
    ),
    "primitives_differ": ("meets lane", "__a", False),
    "sites_differ": ("meets lane", "group_sum", False),
    "read_past_end": ("out-of-bounds read of 4 bytes", "load(p.x", True),
    "read_before_start": ("out-of-bounds read of 4 bytes", "load(p.x", True),
    "read_across_end": ("out-of-bounds read of 16 bytes", "Vec<double>", False),
    "write_past_end": ("out-of-bounds write of 4 bytes", "store(p.out", True),
    "write_to_input": ("write to x, which is read-only", "store(", True),
    "atomic_past_end": ("out-of-bounds read of 4 bytes", "atomicAdd", True),
    "misaligned_vector": ("misaligned read of 16 bytes", "load_vec", True),
    "misaligned_store": ("misaligned write of 16 bytes", "store_vec", True),
    "shared_index": ("index 63 of shared array row, which has 63 elements", "KGREC_SHARED", True),
    "dynamic_shared_index": (
        "index 64 of shared array row, which has 64 elements",
        "KGREC_DYNAMIC_SHARED",
        True,
    ),
    "load_past_shared": ("out-of-bounds read of 16 bytes", "load_vec", True),
}


@in_every_order
@pytest.mark.parametrize("kernel", ERRORS)
def test_a_mistake_is_an_error(kernel: str, order: str, seed: int) -> None:
    what, line, by_hub = ERRORS[kernel]
    x, out = normal(64), np.zeros(64, np.float32)
    with pytest.raises(RuntimeError) as caught:
        run("mistake", kernel=kernel, x=x, out=out, order=order, seed=seed)
    found = re.match(r"block 0, thread (\d+), emulator_mistakes.cpp:(\d+): (.*)", str(caught.value))
    assert found is not None, str(caught.value)
    thread, number, message = found.groups()
    assert what in message
    assert line in MISTAKES[int(number) - 1]
    if by_hub:
        assert thread == "37"
    # The machine is as good as new.
    sums = np.full(1, np.nan, np.float32)
    run("block_sum", order=order, seed=seed, x=x, out=sums)
    np.testing.assert_allclose(sums, x.sum(), rtol=1e-4)


def test_a_mask_must_not_name_lanes_that_the_block_does_not_have() -> None:
    x, out = normal(64), np.zeros(64, np.float32)
    with pytest.raises(RuntimeError, match="names absent lane 16: the block ends before it"):
        run("mistake", kernel="absent_lane", x=x, out=out, block=48)


# -- Traffic ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "sectors"),
    [(4, 16), (0, 1), (8, 32), (12, 32), (16, 32)],
    ids=["coalesced", "broadcast", "every sector", "every sector and a half", "every other sector"],
)
def test_sectors_of_a_warp(stride: int, sectors: int) -> None:
    x, out = normal(32 * 16 + 4), np.zeros(32, np.float32)
    read, write = sorted(
        run("access", x=x, out=out, stride=stride, count=True), key=lambda t: t.write
    )
    assert (read.array, read.write, write.array, write.write) == ("x", False, "out", True)
    # The loop goes round twice: two executions, each counted.
    assert (read.executions, read.sectors, read.bytes) == (2, 2 * sectors, 2 * 32 * 16)
    assert (write.executions, write.sectors, write.bytes) == (2, 2 * 4, 2 * 32 * 4)


@in_every_order
def test_traffic_does_not_depend_on_the_order(order: str, seed: int) -> None:
    x, out = normal(1024), np.zeros(2, np.float32)
    traffic = run("block_sum", order=order, seed=seed, x=x, out=out, count=True)
    totals = {(t.array, t.write): (t.executions, t.sectors, t.bytes) for t in traffic}
    assert totals == {("x", False): (32, 128, 4096), ("out", True): (2, 2, 8)}


def test_nothing_is_counted_unless_asked_for() -> None:
    assert run("block_sum", x=normal(10), out=np.zeros(1, np.float32)) == []


# -- Arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": normal(9).astype(np.float64)}, "array x is of type f8, expected f4"),
        ({"x": None}, "no array named x was given"),
        ({"n": 3}, "argument n was given, but never asked for"),
        ({"x": normal(9)[::2]}, "array x is strided"),
        ({"order": "sideways"}, "order is sideways"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("block_sum", **({"x": normal(9), "out": np.zeros(1, np.float32)} | arguments))


def test_an_unknown_entry_point() -> None:
    with pytest.raises(ValueError, match="no entry point named nothing"):
        run("nothing")
