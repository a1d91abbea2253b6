"""Counter-based random numbers: Philox4x32-10, the same bits on every device and in any order.

Every random op takes ``rng``, an int64[2] tensor ``(seed, step)`` on the device of its data, and a
stream number. Element ``i`` of a draw is word ``i % 4`` of one Philox block:

    key     = (seed bits 0..31, seed bits 32..63)
    counter = (block bits 0..31, block bits 32..63, step bits 0..31, stream),  block = i // 4

so that a draw depends on nothing but ``(seed, step, stream, i)``. ``csrc/common/philox.h`` defines
the same for the kernels. Decisions compare integers, hence they are bit-equal everywhere.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_int
from kgrec_fast.ops import _common

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
UNIFORM_BITS = 24
"""Bits of one uniform number: as many as a float32 holds exactly."""


class Stream(IntEnum):
    """Stream numbers, one block of 256 for each use; add the hop within a block.

    Kept equal to the enum of ``csrc/common/philox.h`` by a test.
    """

    ENTITY_MESSAGE = 0x0000
    USER_MESSAGE = 0x0100
    ITEM_MESSAGE = 0x0200
    SAMPLED_EDGES = 0x0300
    KEPT_INTERACTIONS = 0x0400
    EDGE_NOISE = 0x0500
    RANDOM_MASKED_EDGES = 0x0600
    INTERACTION_NOISE = 0x0700
    CONTRAST_NEGATIVES = 0x0800
    NEGATIVE_ITEMS = 0x0900


def check_rng(rng: Tensor | None, device: torch.device | None = None) -> Tensor:
    """Returns `rng` where it is an int64[2] tensor, on `device` where one is given.

    Raises:
        TypeError: `rng` is not an int64 tensor.
        ValueError: its shape is not [2], or it lives on another device.
    """
    if not isinstance(rng, Tensor) or rng.dtype != torch.int64:
        found = f"{rng.dtype} tensor" if isinstance(rng, Tensor) else type(rng).__name__
        raise TypeError(f"rng is {found}, expected an int64 tensor (seed, step)")
    _common.check_dense("rng", rng)
    if rng.shape != (2,):
        raise ValueError(f"rng has shape {list(rng.shape)}, expected [2]: (seed, step)")
    if device is not None and rng.device != device:
        raise ValueError(f"rng is on {rng.device}, expected {device}, the device of the data")
    return rng


def check_stream(stream: int) -> int:
    """Returns `stream` as an int.

    Raises:
        TypeError: it is no whole number.
        ValueError: it does not fit 32 unsigned bits.
    """
    number = check_int("stream", stream)
    if not 0 <= number <= _WORD:
        raise ValueError(f"stream is {stream}, expected 0 <= stream < 2**32")
    return number


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of constant * word, by halves: the product does not fit int64."""
    low = constant * (word & 0xFFFF)
    high = constant * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One Philox4x32-10 block for every element of the counter.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

    Args:
        counter: four int64 tensors of broadcastable shapes holding 32-bit words.
        key: two int64 tensors of the same kind.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def random_bits_reference(rng: Tensor, stream: int, n: int) -> Tensor:
    """`random_bits` in plain PyTorch."""
    check_rng(rng)
    stream, n = check_stream(stream), _common.check_count("n", n)
    seed, step = rng[0], rng[1]
    block = torch.arange((n + 3) // 4, device=rng.device)
    counter = (
        block & _WORD,
        block >> 32,
        (step & _WORD).expand_as(block),
        torch.full_like(block, stream),
    )
    words = philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD))
    return torch.stack(words, dim=1).flatten()[:n]


def random_bits(rng: Tensor, stream: int, n: int) -> Tensor:
    """32 random bits for each of the elements 0 .. n-1.

    Args:
        rng: int64[2], (seed, step); the step counts modulo 2**32.
        stream: stream number, 0 <= stream < 2**32, see `Stream`.
        n: how many.

    Returns:
        int64[n], values in [0, 2**32).

    Raises:
        TypeError, ValueError: `rng`, `stream` or `n` is not as described.
    """
    check_rng(rng)
    if not _common.runs_native(rng.device):
        return random_bits_reference(rng, stream, n)
    bits: Tensor = torch.ops.kgrec_fast.random_bits(
        rng.contiguous(), check_stream(stream), _common.check_count("n", n)
    )
    return bits


def uniform(rng: Tensor, stream: int, n: int) -> Tensor:
    """Uniform numbers k / 2**24, k in [0, 2**24), from the high bits of `random_bits`.

    Returns:
        float32[n]; arguments and errors as in `random_bits`.
    """
    bits = random_bits(rng, stream, n) >> (32 - UNIFORM_BITS)
    return bits.to(torch.float32) * 2.0**-UNIFORM_BITS


def drop_threshold(p: float) -> int:
    """Smallest k with k / 2**24 >= p: elements whose 24-bit draw is below it are dropped."""
    return math.ceil(p * (1 << UNIFORM_BITS))


def keep_mask_reference(rng: Tensor, stream: int, p: float, shape: torch.Size) -> Tensor:
    """Bool tensor of `shape`: True where uniform(rng, stream, element id) >= p.

    Element ids count in row-major order of `shape`.
    """
    draws = random_bits_reference(rng, stream, shape.numel()) >> (32 - UNIFORM_BITS)
    return (draws >= drop_threshold(p)).view(shape)


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::random_bits")
    def _(rng: Tensor, stream: int, n: int) -> Tensor:
        return rng.new_empty(n)
