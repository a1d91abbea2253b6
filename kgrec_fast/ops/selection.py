"""Selection without sorting: the k largest as a mask, weighted sampling, positions of set bits.

Nothing here is differentiable. Every result depends on its arguments alone: the same bits on every
device, on every instruction set and for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_int
from kgrec_fast.ops import _common
from kgrec_fast.ops.gumbel import gumbel_noise_reference
from kgrec_fast.ops.random import Stream, check_rng, check_stream
from kgrec_fast.ops.sampling import random_permutation, random_permutation_reference

MAX_STREAMS = 4
"""Most streams of noise in one call: kernels take them by value."""


def _check_mask(name: str, mask: Tensor, like: Tensor | None = None) -> None:
    """A bool vector, of the length and on the device of `like`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = f"{mask.dtype} tensor" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} is a {found}, expected a bool tensor")
    _common.check_dense(name, mask)
    if mask.dim() != 1 or (like is not None and mask.shape != like.shape):
        expected = "[n]" if like is None else list(like.shape)
        raise ValueError(f"{name} has shape {list(mask.shape)}, expected {expected}")
    if like is not None:
        _common.check_device(name, mask, like.device)


def _check_values(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is a {type(values).__name__}, expected a torch.Tensor")
    if values.dtype not in _common.FLOAT_TYPES:
        raise TypeError(
            f"{name} has dtype {values.dtype}, expected float32, float64, bfloat16, float16"
        )
    _common.check_dense(name, values)
    if values.dim() != 1:
        raise ValueError(f"{name} has shape {list(values.shape)}, expected [n]")


def _check_index(index: Tensor, values: Tensor) -> None:
    """An int32 vector on the device of `values`; its range is looked at elsewhere."""
    if not isinstance(index, Tensor) or index.dtype != torch.int32:
        found = f"{index.dtype} tensor" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index is a {found}, expected an int32 tensor")
    _common.check_dense("index", index)
    if index.dim() != 1:
        raise ValueError(f"index has shape {list(index.shape)}, expected [n]")
    _common.check_device("index", index, values.device)


def _check_range(index: Tensor, count: int) -> None:
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= count:
        raise ValueError(
            f"index has numbers from {low} to {high}, expected 0 <= index < {count}, "
            "the number of values"
        )


def topk_mask(
    values: Tensor,
    k: int | None = None,
    rate: float | None = None,
    largest: bool = True,
    mask: Tensor | None = None,
    rng: Tensor | None = None,
    streams: Sequence[int] = (),
    index: Tensor | None = None,
) -> Tensor:
    """The k largest (or smallest) of the elements in a mask, as a mask.

    Radix select on the bits of the numbers, no sort. On the CPU a sample says about where the k-th
    number lies, so that a few elements alone need a closer look. Of equal numbers the ones with
    lower positions are taken; -0 equals 0, and NaN lies above infinity.

    Args:
        values: [n], float32, float64, bfloat16 or float16 (compared as float32).
        k: how many, 0 <= k <= n; all set bits of the mask where there are fewer.
        rate: instead of k, the share of the set bits of the mask, in [0, 1]:
            k = floor(rate * set bits), counted on the device.
        largest: False takes the smallest, NaN last.
        mask: bool [n], who may be taken; None for all.
        rng: int64[2], (seed, step); needed with `streams` only.
        streams: at most 4 stream numbers. The Gumbel noise of each (`gumbel_noise`, element i that
            of position i) is added to the values in turn, in float32, or float64 for float64.
        index: int32 [n]; the value of element i is then ``values[index[i]]``, and `values` is [m].

    Returns:
        bool [n]. O(n), with a workspace of at most 4 bytes an element (8 for float64). No
        synchronisation.

    Raises:
        TypeError, ValueError: an argument's type, shape, range or device is not as described, or
            not exactly one of `k` and `rate` is given. On CUDA the range of `index` is left to
            torch's index_select.
    """
    _check_values("values", values)
    if index is not None:
        _check_index(index, values)
    elements = values if index is None else index
    n = elements.numel()
    if (k is None) == (rate is None):
        raise ValueError(f"k is {k} and rate is {rate}, expected exactly one of them")
    if k is not None:
        k = check_int("k", k)
        if not 0 <= k <= n:
            raise ValueError(f"k is {k}, expected 0 <= k <= {n}, the number of elements")
    if rate is not None:
        rate = _common.check_share("rate", rate)
    if mask is not None:
        _check_mask("mask", mask, elements)
    if not isinstance(streams, Sequence):
        raise TypeError(f"streams is a {type(streams).__name__}, expected a sequence of ints")
    numbers = [check_stream(stream) for stream in streams]
    if len(numbers) > MAX_STREAMS:
        raise ValueError(f"streams has {len(numbers)} numbers, expected at most {MAX_STREAMS}")
    if numbers:
        check_rng(rng, values.device)
    if not _common.runs_native(values.device):
        return topk_mask_reference(values, k, rate, largest, mask, rng, numbers, index)
    rng = rng if numbers else None
    if index is not None and values.is_cuda:  # a kernel of its own would save little
        values, index = values.detach().index_select(0, index), None
    native = torch.ops.kgrec_fast.topk_mask
    try:
        chosen: Tensor = native(values, k, rate, largest, mask, rng, numbers, index)
    except RuntimeError:
        if index is not None and n > 0:  # the op looks at it anyway; an error pays for another look
            _check_range(index, values.numel())
        raise
    return chosen


def topk_mask_reference(
    values: Tensor,
    k: int | None = None,
    rate: float | None = None,
    largest: bool = True,
    mask: Tensor | None = None,
    rng: Tensor | None = None,
    streams: Sequence[int] = (),
    index: Tensor | None = None,
) -> Tensor:
    """`topk_mask` in plain PyTorch, by a stable sort."""
    keys = values.detach().to(_common.accumulate_dtype(values.dtype))
    if index is not None:
        keys = keys.index_select(0, index)
    for stream in streams:
        keys = keys + gumbel_noise_reference(keys.numel(), check_rng(rng), stream)
    order = torch.sort(keys, descending=largest, stable=True).indices
    allowed = torch.ones_like(keys, dtype=torch.bool) if mask is None else mask
    in_order = allowed[order]
    limit = (in_order.sum().double() * (1.0 if rate is None else rate)).floor()
    if k is not None:
        limit = limit.clamp(max=k)
    chosen = in_order & (in_order.cumsum(0) <= limit)
    return torch.zeros_like(allowed).scatter(0, order, chosen)


def gumbel_topk(
    log_weight: Tensor, k: int, rng: Tensor, stream: int, mask: Tensor | None = None
) -> Tensor:
    """Draws k elements without replacement, with weights exp(`log_weight`).

    The k largest of log-weight + Gumbel noise have the distribution of k successive draws, each
    proportional to the weights that are left (Yellott 1977; with exponentials instead of Gumbel
    noise Efraimidis and Spirakis, "Weighted random sampling with a reservoir", IPL 97, 2006). No
    limit on n, and no underflow however far apart the weights lie.

    Args:
        log_weight: [n], floating point; -inf is a weight of zero, chosen when nothing else is left.
        k: how many, 0 <= k <= n; all set bits of the mask where there are fewer.
        rng: int64[2], (seed, step).
        stream: stream number, 0 <= stream < 2**32.
        mask: bool [n], who may be drawn; None for all.

    Returns:
        bool [n]; errors and costs as in `topk_mask`.
    """
    _check_values("log_weight", log_weight)
    return topk_mask(log_weight, k, mask=mask, rng=rng, streams=(stream,))


def gumbel_topk_reference(
    log_weight: Tensor, k: int, rng: Tensor, stream: int, mask: Tensor | None = None
) -> Tensor:
    """`gumbel_topk` in plain PyTorch."""
    return topk_mask_reference(log_weight, k, mask=mask, rng=rng, streams=(stream,))


def mask_positions(mask: Tensor, count: int) -> Tensor:
    """Positions of the first `count` set bits, in ascending order.

    Args:
        mask: bool [n].
        count: how many, >= 0; the shape of the result does not depend on the mask.

    Returns:
        int64 [count], -1 in the places that are left where fewer bits are set. O(n + count).

    Raises:
        TypeError, ValueError: `mask` is no bool vector, or `count` is negative.
    """
    _check_mask("mask", mask)
    count = _common.check_count("count", count)
    if not _common.runs_native(mask.device):
        return mask_positions_reference(mask, count)
    positions: Tensor = torch.ops.kgrec_fast.mask_positions(mask, count)
    return positions


def mask_positions_reference(mask: Tensor, count: int) -> Tensor:
    """`mask_positions` in plain PyTorch: bit i is where the running count first reaches i."""
    wanted = torch.arange(1, count + 1, device=mask.device)
    position = torch.searchsorted(mask.cumsum(0), wanted)
    return torch.where(position < mask.numel(), position, -1)


def _check_masked_edges(
    noisy_score: Tensor, sampled: Tensor | None, num_sampled: int, count: int
) -> tuple[int, int]:
    """`num_sampled` and `count` as ints."""
    _check_values("noisy_score", noisy_score)
    edges = noisy_score.numel()
    if sampled is not None:
        _check_mask("sampled", sampled, noisy_score)
    num_sampled, count = check_int("num_sampled", num_sampled), check_int("count", count)
    if not 0 <= num_sampled <= edges or (sampled is None and num_sampled != edges):
        expected = f"{edges}, all edges" if sampled is None else f"0 <= num_sampled <= {edges}"
        raise ValueError(f"num_sampled is {num_sampled}, expected {expected}")
    if not 0 <= count <= num_sampled:
        raise ValueError(
            f"count is {count}, expected 0 <= count <= {num_sampled}, the sampled edges"
        )
    return num_sampled, count


def masked_edges(
    noisy_score: Tensor,
    sampled: Tensor | None,
    num_sampled: int,
    count: int,
    rng: Tensor,
    stream: int = Stream.RANDOM_MASKED_EDGES,
) -> tuple[Tensor, Tensor, Tensor]:
    """The edges that a masked autoencoder hides, in a fixed number of slots.

    Half of the slots hold the sampled edges with the largest scores, the other half distinct
    sampled edges drawn at random. An edge may be in both halves; its weight in the second is 0.

    Args:
        noisy_score: [E], floating point; see `topk_mask` for the order and for ties.
        sampled: bool [E], the edges to choose from; None for all.
        num_sampled: the number of set bits in `sampled`, which is not counted here; E for None.
        count: slots of each half, at most `num_sampled`.
        rng: int64[2], (seed, step).
        stream: stream number of the random half.

    Returns:
        Edges, weights and a mask. Edges are int64 [2 * count], first the `count` edges with the
        largest scores in ascending position, then the random ones in random order. Weights are
        float32 [2 * count], 1 for a slot that counts, 0 for a random slot whose edge is in the
        first half; there are no other duplicates. The mask, bool [E], has the edges in any slot.
        O(E).

    Raises:
        TypeError, ValueError: an argument's type, shape, range or device is not as described.
    """
    num_sampled, count = _check_masked_edges(noisy_score, sampled, num_sampled, count)
    check_rng(rng, noisy_score.device)
    top = topk_mask(noisy_score, count, mask=sampled)
    drawn = random_permutation(num_sampled, rng, stream, count)
    if sampled is not None:
        drawn = mask_positions(sampled, num_sampled).index_select(0, drawn)
    if _common.runs_cpu_op(top.device) and not _common.keeps_to_ops():
        return torch.ops.kgrec_fast.masked_slots(top, drawn)  # type: ignore[no-any-return]
    return _slots(top, mask_positions(top, count), drawn)


def masked_edges_reference(
    noisy_score: Tensor,
    sampled: Tensor | None,
    num_sampled: int,
    count: int,
    rng: Tensor,
    stream: int = Stream.RANDOM_MASKED_EDGES,
) -> tuple[Tensor, Tensor, Tensor]:
    """`masked_edges` in plain PyTorch."""
    top = topk_mask_reference(noisy_score, count, mask=sampled)
    drawn = random_permutation_reference(num_sampled, rng, stream, count)
    if sampled is not None:
        drawn = mask_positions_reference(sampled, num_sampled).index_select(0, drawn)
    return _slots(top, mask_positions_reference(top, count), drawn)


def _slots(top: Tensor, first: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, weights and their union, from the mask and the positions of the first half."""
    again = top.index_select(0, drawn)
    weight = torch.cat([torch.ones_like(again), ~again]).to(torch.float32)
    return torch.cat([first, drawn]), weight, top.scatter(0, drawn, True)


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::topk_mask")
    def _(
        values: Tensor,
        k: int | None,
        rate: float | None,
        largest: bool,
        mask: Tensor | None,
        rng: Tensor | None,
        streams: Sequence[int],
        index: Tensor | None = None,
    ) -> Tensor:
        shape = values.shape if index is None else index.shape
        return values.new_empty(shape, dtype=torch.bool)

    @torch.library.register_fake("kgrec_fast::mask_positions")
    def _(mask: Tensor, count: int) -> Tensor:
        return mask.new_empty(count, dtype=torch.int64)

    @torch.library.register_fake("kgrec_fast::masked_slots")
    def _(top: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = drawn.new_empty(2 * drawn.size(0), dtype=torch.float32)
        return drawn.new_empty(2 * drawn.size(0)), weight, top.new_empty(top.shape)
