"""Gumbel noise of counters, the same bits on every device: its logarithm is products and sums."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast.ops import _common
from kgrec_fast.ops.random import UNIFORM_BITS, check_rng, check_stream, random_bits_reference

# log(1 + f) = f - f^2 / 2 + f^3 P(f) for 1 + f in [sqrt(1/2), sqrt(2)): P by Lawson's iteration, to
# 6e-9 of log(1 + f). Kept equal to csrc/common/gumbel.h by a test.
_SERIES = tuple(
    float.fromhex(c)
    for c in (
        "0x1.555554p-2",
        "-0x1.000226p-2",
        "0x1.99a008p-3",
        "-0x1.547244p-3",
        "0x1.22da1ep-3",
        "-0x1.0d8542p-3",
        "0x1.055b68p-3",
        "-0x1.38b576p-4",
    )
)
# ln 2 in two parts; the first has 9 bits, so that its product with an exponent is exact.
_LN2_HIGH = float.fromhex("0x1.63p-1")
_LN2_LOW = float.fromhex("-0x1.bd0106p-13")
_ROOT_HALF_BITS = 0x3F3504F3  # sqrt(1/2) as float32
_EXPONENT_BIAS = 127
_MANTISSA_BITS = 23


def _log(f: Tensor, e: Tensor) -> Tensor:
    """log((1 + f) * 2**e) of float32 tensors: products and sums, each of them rounded."""
    square = f * f
    c = _SERIES
    low = f * c[1] + c[0] + (f * c[3] + c[2]) * square
    high = f * c[5] + c[4] + (f * c[7] + c[6]) * square
    p = low + high * (square * square)
    tail = f * square * p + e * _LN2_LOW - square * 0.5
    return f + tail + e * _LN2_HIGH


def _as_float(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def _exponent(x: Tensor) -> Tensor:
    """e with x in about [sqrt(1/2), sqrt(2)) * 2**e, of positive float32 numbers."""
    return (x.view(torch.int32) - _ROOT_HALF_BITS) >> _MANTISSA_BITS


def gumbel_of(k: Tensor) -> Tensor:
    """float32 noise of int64 k in [0, 2**24), the very steps of ``csrc/common/gumbel.h``."""
    odd = (2 * k + 1).to(torch.int32)  # u = odd / 2**25, which float32 cannot hold
    e = _exponent(odd.to(torch.float32))
    power = _as_float((e + _EXPONENT_BIAS) << _MANTISSA_BITS)
    inverse = _as_float((_EXPONENT_BIAS - e) << _MANTISSA_BITS)
    # odd - 2**e has no more than 24 bits, so that f is exact.
    f = (odd - power.to(torch.int32)).to(torch.float32) * inverse
    x = -_log(f, (e - (UNIFORM_BITS + 1)).to(torch.float32))
    e = _exponent(x)
    mantissa = _as_float(x.view(torch.int32) - (e << _MANTISSA_BITS))
    return -_log(mantissa - 1.0, e.to(torch.float32))


def gumbel_noise_reference(n: int, rng: Tensor, stream: int) -> Tensor:
    """`gumbel_noise` in plain PyTorch."""
    return gumbel_of(random_bits_reference(rng, stream, n) >> (32 - UNIFORM_BITS))


def gumbel_noise(n: int, rng: Tensor, stream: int) -> Tensor:
    """Standard Gumbel noise: -log(-log(u)), u = (k + 0.5) / 2**24.

    k are the 24 high bits of the word of element i (see `kgrec_fast.ops.random.uniform`), so that
    u is neither 0 nor 1 and the noise lies between -2.853 and 17.329. It does not fall where k
    rises, and is within ``2e-7 * max(1, |g|)`` of the exact g.

    Args:
        n: how many.
        rng: int64[2], (seed, step).
        stream: stream number, 0 <= stream < 2**32.

    Returns:
        float32 [n], the same bits on every device, for the logarithm is written in products and
        sums that are rounded one by one. O(n).

    Raises:
        TypeError, ValueError: `n`, `rng` or `stream` is not as described.
    """
    check_rng(rng)
    n, stream = _common.check_count("n", n), check_stream(stream)
    if not _common.runs_native(rng.device):
        return gumbel_noise_reference(n, rng, stream)
    noise: Tensor = torch.ops.kgrec_fast.gumbel_noise(n, rng.contiguous(), stream)
    return noise


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::gumbel_noise")
    def _(n: int, rng: Tensor, stream: int) -> Tensor:
        return rng.new_empty(n, dtype=torch.float32)
