"""Sampling on the device of the data: exact counts without replacement, dropout, negative items.

All draws come from counters (`kgrec_fast.ops.random`) and depend on nothing but ``rng``, the stream
and the number of an element, so that no op here waits for the device or has an output whose size
depends on data. Samples without replacement are made by a keyed permutation of [0, n)
(`feistel_permutation`): keep element ``i`` where its image is below ``k``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_int
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.graph_build import MAX_ID
from kgrec_fast.ops import _common
from kgrec_fast.ops.random import (
    Stream,
    check_rng,
    check_stream,
    keep_mask_reference,
    random_bits_reference,
)

_WORD = 0xFFFFFFFF
FEISTEL_ROUNDS = 18
_TARGETS = (0x49249249, 0x92492492, 0x24924924)  # every third bit, from bits 0, 1 and 2 on
_MIX = (0x7FEB352D, 0x846CA68B)


# -- the permutation ------------------------------------------------------------------------------


def _product(constant: int, word: Tensor) -> Tensor:
    """Low 32 bits of constant * word, by halves: the product does not fit int64."""
    high = (constant * (word >> 16)) & 0xFFFF
    return (constant * (word & 0xFFFF) + (high << 16)) & _WORD


def _mix(word: Tensor, tweak: Tensor | int = 0) -> Tensor:
    """A hash of 32 bits (a bijection: two multiplications, three shifts), keyed in the middle."""
    word = _product(_MIX[0], word ^ (word >> 16))
    word = ((word ^ (word >> 15)) + tweak) & _WORD
    word = _product(_MIX[1], word)
    return word ^ (word >> 16)


def _rounds(keys: Tensor, tweak: Tensor, x: Tensor, n: Tensor, inverse: bool) -> Tensor:
    """The rounds over all words of as many bits as n - 1 has."""
    domain = n - 1
    for shift in (1, 2, 4, 8, 16):
        domain = domain | (domain >> shift)
    order = range(FEISTEL_ROUNDS)
    for i in reversed(order) if inverse else order:
        target = _TARGETS[i % 3]
        key = (keys[i] + tweak) & _WORD
        x = x ^ (_mix((x & ~target) ^ key, tweak) & domain & target)
    return x


def feistel_permutation(
    rng: Tensor,
    stream: int,
    x: Tensor,
    n: Tensor | int,
    relation: Tensor | int = 0,
    inverse: bool = False,
) -> Tensor:
    """Images of `x` under a keyed permutation of [0, n), one for each (rng, stream, relation, n).

    An unbalanced Feistel network over the least 2**b >= n words, walked along its cycle until the
    image is below n (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002):
    fewer than two turns on average. A round changes every third bit by a hash of the other two
    thirds, for that leaves far less bias in small domains than halves do: after 18 rounds of ideal
    hashes the commonest of the 4-subsets of 8 comes 1.0001 times as often as it should (1.26 times
    with halves), that of 16 1.005 times.

    The first 18 words of the stream are the keys of the rounds, the 19th that of the relations.

    Args:
        rng: int64[2], (seed, step).
        stream: stream number.
        x: int64, values in [0, n).
        n: size of the domain, 1 <= n < 2**31; a tensor gives each element its own.
        relation: number of the permutation, below 2**32; a tensor gives each element its own.
        inverse: whether to go back.

    Returns:
        int64 of the shape of `x`. In plain PyTorch: the reference of the kernels.
    """
    keys = random_bits_reference(rng, stream, FEISTEL_ROUNDS + 1)
    size, name = (torch.as_tensor(v, device=x.device).long() for v in (n, relation))
    shape = x.shape
    x, size, tweak = (
        v.flatten() for v in torch.broadcast_tensors(x, size, _mix(name ^ keys[FEISTEL_ROUNDS]))
    )
    x = _rounds(keys, tweak, x, size, inverse)
    left = (x >= size).nonzero().flatten()
    while left.numel():
        turned = _rounds(keys, tweak[left], x[left], size[left], inverse)
        x = x.index_copy(0, left, turned)
        left = left[turned >= size[left]]
    return x.view(shape)


# -- samples of edges -----------------------------------------------------------------------------


def _check_size(name: str, value: int, most: int = MAX_ID) -> int:
    value = check_int(name, value)
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value}, expected 0 <= {name} <= {most}")
    return value


def sample_edges_per_relation(
    graph: RelGraph,
    rate: float,
    rng: Tensor,
    stream: int = Stream.SAMPLED_EDGES,
    edge_order: str = "caller",
) -> Tensor:
    """Exactly ``floor(rate * n_r)`` edges of each relation r, uniformly without replacement.

    Edge i is kept where the permutation of its relation takes its rank there, by the caller's edge
    id, below ``floor(rate * n_r)`` (the product in float64): no sort, and the layout of the graph
    does not matter.

    Args:
        graph: the edges; `graph.ranks(edge_order)` is made at the first call.
        rate: share of the edges to keep, 0 <= rate <= 1.
        rng: int64[2], (seed, step), on the graph's device.
        stream: stream number.
        edge_order: "caller", or "row" for the graph's own order; neither costs a permutation.

    Returns:
        bool [E], True where the edge is kept. Not differentiable. O(E).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    _common.check_graph(graph, RelGraph)
    rate, stream = _common.check_share("rate", rate), check_stream(stream)
    check_rng(rng, graph.device)
    _common.check_order("edge_order", edge_order)
    if not _common.runs_native(graph.device):
        return sample_edges_per_relation_reference(graph, rate, rng, stream, edge_order)
    mask: Tensor = torch.ops.kgrec_fast.sample_edges_per_relation(
        rng.contiguous(), *graph.ranks(edge_order), graph.relation_counts, rate, stream
    )
    return mask


def sample_edges_per_relation_reference(
    graph: RelGraph,
    rate: float,
    rng: Tensor,
    stream: int = Stream.SAMPLED_EDGES,
    edge_order: str = "caller",
) -> Tensor:
    """`sample_edges_per_relation` in plain PyTorch."""
    relation, rank = (x.long() for x in graph.ranks(edge_order))
    wanted = torch.floor(rate * graph.relation_counts.double()).long()
    n = graph.relation_counts[relation]
    return feistel_permutation(rng, stream, rank, n, relation) < wanted[relation]


def sample_edges(n: int, k: int, rng: Tensor, stream: int = Stream.SAMPLED_EDGES) -> Tensor:
    """Exactly k of n elements, uniformly without replacement.

    Args:
        n: how many there are, 0 <= n < 2**31.
        k: how many to keep, 0 <= k <= n.
        rng: int64[2], (seed, step); the result is on its device.
        stream: stream number.

    Returns:
        bool [n], True where the element is kept. Not differentiable. O(n).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    check_rng(rng)
    n, stream = _check_size("n", n), check_stream(stream)
    k = _check_size("k", k, n)
    if not _common.runs_native(rng.device):
        return sample_edges_reference(n, k, rng, stream)
    mask: Tensor = torch.ops.kgrec_fast.sample_edges(rng.contiguous(), n, k, stream)
    return mask


def sample_edges_reference(
    n: int, k: int, rng: Tensor, stream: int = Stream.SAMPLED_EDGES
) -> Tensor:
    """`sample_edges` in plain PyTorch."""
    return feistel_permutation(rng, stream, torch.arange(n, device=rng.device), n) < k


def random_permutation(n: int, rng: Tensor, stream: int, count: int | None = None) -> Tensor:
    """`count` distinct numbers of [0, n) in random order; by default a permutation.

    These are the numbers that `sample_edges` keeps with ``k = count`` and the same rng and stream.

    Args:
        n: size of the domain, 0 <= n < 2**31.
        rng: int64[2], (seed, step); the result is on its device.
        stream: stream number.
        count: how many numbers, 0 <= count <= n; None for n.

    Returns:
        int64 [count]. Not differentiable. O(count).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    check_rng(rng)
    n, stream = _check_size("n", n), check_stream(stream)
    count = n if count is None else _check_size("count", count, n)
    if not _common.runs_native(rng.device):
        return random_permutation_reference(n, rng, stream, count)
    ids: Tensor = torch.ops.kgrec_fast.random_permutation(rng.contiguous(), n, count, stream)
    return ids


def random_permutation_reference(
    n: int, rng: Tensor, stream: int, count: int | None = None
) -> Tensor:
    """`random_permutation` in plain PyTorch."""
    images = torch.arange(n if count is None else count, device=rng.device)
    return feistel_permutation(rng, stream, images, n, inverse=True)


# -- draws of single elements ---------------------------------------------------------------------


def dropout_mask(n: int, p: float, rng: Tensor, stream: int = Stream.KEPT_INTERACTIONS) -> Tensor:
    """Keeps each element with probability 1 - p, independently.

    Args:
        n: how many elements.
        p: probability that one is dropped, 0 <= p <= 1.
        rng: int64[2], (seed, step); the result is on its device.
        stream: stream number.

    Returns:
        bool [n], True where ``uniform(rng, stream, n) >= p``. Not differentiable. O(n).

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    check_rng(rng)
    stream, p, n = check_stream(stream), _common.check_share("p", p), _common.check_count("n", n)
    if not _common.runs_native(rng.device):
        return dropout_mask_reference(n, p, rng, stream)
    mask: Tensor = torch.ops.kgrec_fast.dropout_mask(rng.contiguous(), n, p, stream)
    return mask


def dropout_mask_reference(
    n: int, p: float, rng: Tensor, stream: int = Stream.KEPT_INTERACTIONS
) -> Tensor:
    """`dropout_mask` in plain PyTorch."""
    return keep_mask_reference(rng, stream, p, torch.Size([n]))


def _check_users(users: Tensor, num_users: int) -> None:
    if users.numel() and not num_users:
        raise ValueError(f"users has {users.numel()} elements, but the graph has no users")
    if users.numel() and _common.readable(users):
        low, high = (int(bound) for bound in torch.aminmax(users))
        if low < 0 or high >= num_users:
            i = int(((users < 0) | (users >= num_users)).nonzero()[0])
            raise ValueError(f"users[{i}] is {int(users[i])}, expected 0 <= user < {num_users}")


def sample_negatives(
    users: Tensor, graph: InteractionGraph, rng: Tensor, stream: int = Stream.NEGATIVE_ITEMS
) -> Tensor:
    """An item for each of `users` that the user has no edge to, uniformly.

    Without rejection: with the items t_0 < t_1 < ... of a user, the item at place k among the
    others is k + #{j: t_j - j <= k}. The place is the high part of 64 random bits (words 0 and 1 of
    Philox block i for element i) times the number of other items: their probabilities differ by
    2**-64 at most.

    Args:
        users: int64 [B], users of the graph; repeated ones draw anew.
        graph: what users have touched; `graph.untouched()` is made at the first call.
        rng: int64[2], (seed, step), on the graph's device.
        stream: stream number.

    Returns:
        int64 [B]. Not differentiable. O(B log(items of a user)).

    Raises:
        TypeError, ValueError: an argument is not as described; a user has touched all items; on the
            CPU, a user that the graph does not have. (On CUDA that would have to wait for the
            device: there the nearest user of the graph is taken.)
    """
    _common.check_graph(graph, InteractionGraph)
    if not isinstance(users, Tensor) or users.dtype != torch.int64:
        found = users.dtype if isinstance(users, Tensor) else type(users).__name__
        raise TypeError(f"users is {found}, expected an int64 tensor")
    _common.check_dense("users", users)
    if users.dim() != 1:
        raise ValueError(f"users has shape {list(users.shape)}, expected [B]")
    _common.check_device("users", users, graph.device)
    check_rng(rng, graph.device)
    stream = check_stream(stream)
    _check_users(users, graph.num_rows)
    return negatives_of(users, graph, rng, stream)


def negatives_of(
    users: Tensor, graph: InteractionGraph, rng: Tensor, stream: int = Stream.NEGATIVE_ITEMS
) -> Tensor:
    """`sample_negatives` of operands that are known to fit: Python looks at no value of them."""
    if not _common.runs_native(graph.device):
        return sample_negatives_reference(users, graph, rng, stream)
    pointers, gaps = graph.untouched()
    items: Tensor = torch.ops.kgrec_fast.sample_negatives(
        rng.contiguous(), users.contiguous(), pointers, gaps, graph.num_cols, stream
    )
    return items


def sample_negatives_reference(
    users: Tensor, graph: InteractionGraph, rng: Tensor, stream: int = Stream.NEGATIVE_ITEMS
) -> Tensor:
    """`sample_negatives` in plain PyTorch."""
    pointers, gaps = graph.untouched()
    users = users.clamp(0, max(graph.num_rows - 1, 0))
    words = random_bits_reference(rng, stream, 4 * users.numel()).view(-1, 4)
    touched = pointers.diff()
    free = graph.num_cols - touched[users]
    place = (words[:, 0] * free + ((words[:, 1] * free) >> 32)) >> 32
    # Offset by user the gaps of all users are one sorted list.
    owner = torch.repeat_interleave(touched)
    sorted_gaps = owner * graph.num_cols + gaps
    below = torch.searchsorted(sorted_gaps, users * graph.num_cols + place, right=True)
    return place + below - pointers[users]


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::sample_edges_per_relation")
    def _(
        rng: Tensor, rel: Tensor, rank: Tensor, count: Tensor, rate: float, stream: int
    ) -> Tensor:
        return rel.new_empty(rel.size(0), dtype=torch.bool)

    @torch.library.register_fake("kgrec_fast::sample_edges")
    def _(rng: Tensor, n: int, k: int, stream: int) -> Tensor:
        return rng.new_empty(n, dtype=torch.bool)

    @torch.library.register_fake("kgrec_fast::random_permutation")
    def _(rng: Tensor, n: int, count: int, stream: int) -> Tensor:
        return rng.new_empty(count)

    @torch.library.register_fake("kgrec_fast::dropout_mask")
    def _(rng: Tensor, n: int, p: float, stream: int) -> Tensor:
        return rng.new_empty(n, dtype=torch.bool)

    @torch.library.register_fake("kgrec_fast::sample_negatives")
    def _(
        rng: Tensor, users: Tensor, ptr: Tensor, gap: Tensor, num_items: int, stream: int
    ) -> Tensor:
        return users.new_empty(users.size(0))
