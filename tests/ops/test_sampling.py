"""Sampling by counters: bijections, exact counts, and equal bits everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from graph_helpers import CASES
from segment_helpers import backend, with_threads  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast import InteractionGraph, RelGraph, ops
from kgrec_fast.ops import random as rnd
from kgrec_fast.ops import sampling

RNG = torch.tensor([2024, 7])
KEYS = [(0, 0, 0), (2024, 7, 0x0300), (-1, 2**32 - 1, 2**32 - 1)]
OPS = {
    "sample_edges_per_relation": lambda rng, stream, suffix="": call(
        "sample_edges_per_relation", suffix, REL_GRAPH, 0.37, rng, stream
    ),
    "sample_edges": lambda rng, stream, suffix="": call(
        "sample_edges", suffix, 10_007, 4000, rng, stream
    ),
    "random_permutation": lambda rng, stream, suffix="": call(
        "random_permutation", suffix, 9001, rng, stream
    ),
    "dropout_mask": lambda rng, stream, suffix="": call(
        "dropout_mask", suffix, 70_001, 0.3, rng, stream
    ),
    "sample_negatives": lambda rng, stream, suffix="": call(
        "sample_negatives", suffix, USERS, INTERACTIONS, rng, stream
    ),
}
each_op = pytest.mark.parametrize("name", OPS)
KNOWN = {
    "relations": [3, 5, 6, 9, 11],
    "edges": [2, 4, 7, 10, 13, 15],
    "permutation": [11, 0, 7, 5, 8, 3, 4, 6, 1, 10, 9, 2],
    "large": [2112694390, 2140975124, 833828835, 1879222789],
    "dropout": [2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 17, 18, 19],
    "negatives": [6, 6, 1, 5, 4, 4, 0, 7],
}


def call(name: str, suffix: str, *args: object) -> Tensor:
    return getattr(ops, name + suffix)(*args)


def rel_graph(edges: int, relations: int, seed: int = 0) -> RelGraph:
    """Relations of very different sizes, the last one without an edge."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(edges, generator=generator) ** 4
    return RelGraph.from_edges(
        torch.randint(50, (2, edges), generator=generator),
        (share * relations).long(),
        num_relations=relations + 1,
    )


def interactions(users: int, items: int, edges: int, seed: int = 0) -> InteractionGraph:
    generator = torch.Generator().manual_seed(seed)
    pairs = [torch.randint(n, (edges,), generator=generator) for n in (users, items)]
    return InteractionGraph.from_edges(torch.stack(pairs), num_users=users, num_items=items)


REL_GRAPH = rel_graph(20_011, 40)
INTERACTIONS = interactions(60, 90, 2000)
USERS = torch.randint(60, (3001,), generator=torch.Generator().manual_seed(1))


# -- the permutation ------------------------------------------------------------------------------

SIZES = [*range(1, 301), *(2**b + d for b in range(9, 17) for d in (-1, 0, 1))]


@pytest.mark.parametrize(("seed", "step", "stream"), KEYS)
def test_permutations_are_bijections_and_have_inverses(seed: int, step: int, stream: int) -> None:
    rng = torch.tensor([seed, step])
    # All sizes at once: each element has its own n, and its size for a relation.
    x = torch.cat([torch.arange(n) for n in SIZES])
    n = torch.repeat_interleave(torch.tensor(SIZES), torch.tensor(SIZES))
    y = sampling.feistel_permutation(rng, stream, x, n, relation=n)
    assert torch.equal(sampling.feistel_permutation(rng, stream, y, n, n, inverse=True), x)
    for before, images in zip(x.split(SIZES), y.split(SIZES), strict=True):
        assert torch.equal(images.sort().values, before)


def by_hand(seed: int, step: int, stream: int, x: int, n: int, relation: int) -> int:
    """The permutation in Python integers."""
    word = 2**32 - 1
    keys = rnd.random_bits_reference(torch.tensor([seed, step]), stream, 19).tolist()

    def mix(w: int, tweak: int) -> int:
        w ^= w >> 16
        w = w * 0x7FEB352D & word
        w = ((w ^ (w >> 15)) + tweak) & word
        w = w * 0x846CA68B & word
        return w ^ (w >> 16)

    tweak = mix(relation ^ keys[18], 0)
    bits = (n - 1).bit_length()
    while True:
        for i in range(18):
            target = sum(1 << b for b in range(i % 3, bits, 3))
            source = x & ((1 << bits) - 1 - target)
            x ^= mix(source ^ ((keys[i] + tweak) & word), tweak) & target
        if x < n:
            return x


@pytest.mark.parametrize("n", [1, 2, 3, 5, 100, 1025, 2**31 - 1])
def test_permutation_equals_python_integers(n: int) -> None:
    x = [*range(min(n, 40)), n - 1]
    for seed, step, stream in KEYS:
        images = sampling.feistel_permutation(
            torch.tensor([seed, step]), stream, torch.tensor(x), n, relation=70_000
        )
        assert images.tolist() == [by_hand(seed, step, stream, i, n, 70_000) for i in x]


@pytest.mark.parametrize("stream", [0, 0x0800])
def test_kernels_are_the_same_permutations(stream: int, isa: str) -> None:
    for n in [*range(1, 70), 255, 256, 257, 511, 513, 1023, 1025, 4097]:
        expected = ops.random_permutation_reference(n, RNG, stream)
        assert torch.equal(ops.random_permutation(n, RNG, stream), expected)
        kept = ops.sample_edges(n, n // 3, RNG, stream)
        assert kept.nonzero().flatten().tolist() == expected[: n // 3].sort().values.tolist()
    assert ops.random_permutation(2**31 - 1, RNG, stream, 999).equal(
        ops.random_permutation_reference(2**31 - 1, RNG, stream, 999)
    )


def test_known_answers(backend: str) -> None:  # noqa: F811
    """Frozen: a change of any of these is a change of every seeded result."""
    graph = RelGraph.from_edges(
        torch.arange(12).repeat(2, 1), torch.tensor([0, 1, 1, 2, 2, 2, 0, 2, 2, 1, 2, 2])
    )
    users = InteractionGraph.from_edges(torch.tensor([[0, 0, 1], [2, 5, 0]]), num_items=9)
    kept = ops.sample_edges_per_relation(graph, 0.5, RNG)
    assert kept.nonzero().flatten().tolist() == KNOWN["relations"]
    assert ops.sample_edges(20, 6, RNG).nonzero().flatten().tolist() == KNOWN["edges"]
    assert ops.random_permutation(12, RNG, 0x0800).tolist() == KNOWN["permutation"]
    assert ops.random_permutation(2**31 - 1, RNG, 0x0800, 4).tolist() == KNOWN["large"]
    assert ops.dropout_mask(20, 0.3, RNG).nonzero().flatten().tolist() == KNOWN["dropout"]
    assert ops.sample_negatives(torch.tensor([0, 1] * 4), users, RNG).tolist() == KNOWN["negatives"]


# -- samples of edges -----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("case", CASES)
def test_counts_of_relations_are_exact(case: str, rate: float, isa: str) -> None:
    graph = CASES[case].build()
    kept = ops.sample_edges_per_relation(graph, rate, RNG)
    assert kept.dtype == torch.bool
    found = torch.bincount(graph.edge_type[kept], minlength=graph.num_relations)
    assert found.tolist() == [math.floor(rate * n) for n in graph.relation_counts.tolist()]
    assert torch.equal(kept, ops.sample_edges_per_relation_reference(graph, rate, RNG))


def test_counts_are_floors_of_the_product_in_float64(isa: str) -> None:
    """0.29 * 100 is 28.999999999999996; in float32 it would be 29."""
    graph = RelGraph.from_edges(torch.zeros(2, 100, dtype=torch.int64), torch.zeros(100).long())
    assert int(ops.sample_edges_per_relation(graph, 0.29, RNG).sum()) == 28


def test_one_relation_is_a_sample_of_elements(isa: str) -> None:
    n, types = 777, torch.zeros(777, dtype=torch.int64)
    graph = RelGraph.from_edges(torch.randint(9, (2, n)), types)
    kept = ops.sample_edges_per_relation(graph, 0.4, RNG, 5)
    assert torch.equal(kept, ops.sample_edges(n, math.floor(0.4 * n), RNG, 5))


def test_a_permutation_begins_with_the_sample(isa: str) -> None:
    for n, k in ((1, 1), (2, 1), (3, 3), (50, 20), (1025, 1000), (40_000, 17)):
        kept = ops.sample_edges(n, k, RNG, 9)
        assert int(kept.sum()) == k
        first = ops.random_permutation(n, RNG, 9, k)
        assert first.sort().values.tolist() == kept.nonzero().flatten().tolist()
        assert torch.equal(ops.random_permutation(n, RNG, 9)[:k], first)


def test_the_layout_does_not_matter(isa: str) -> None:
    """Other heads and tails: another row order of the same relations by the caller's ids."""
    types = REL_GRAPH.edge_type
    other = RelGraph.from_edges(
        torch.randint(900, (2, types.numel())), types, num_relations=REL_GRAPH.num_relations
    )
    assert not torch.equal(other.perm, REL_GRAPH.perm)
    first, second = (ops.sample_edges_per_relation(g, 0.5, RNG) for g in (REL_GRAPH, other))
    assert torch.equal(first, second)
    for graph in (REL_GRAPH, other):
        row = ops.sample_edges_per_relation(graph, 0.5, RNG, edge_order="row")
        assert torch.equal(row, graph.to_row_order(first))


# -- draws of single elements ---------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.3, 1 - 2**-24, 1.0])
@pytest.mark.parametrize("n", [0, 1, 5, 1023, 5000])
def test_dropout_follows_the_uniform_numbers(n: int, p: float, backend: str) -> None:  # noqa: F811
    kept = ops.dropout_mask(n, p, RNG, 3)
    assert kept.dtype == torch.bool
    assert kept.tolist() == [u >= p for u in rnd.uniform(RNG, 3, n).tolist()]


def test_negatives_are_all_that_is_untouched(backend: str) -> None:  # noqa: F811
    """Nothing touched, the first item, the last, all but one, duplicates, items in any order."""
    items = {0: [], 1: [0], 2: [6], 3: [5, 3, 0, 1, 6, 2], 4: [3, 2, 3, 3, 2], 5: [6, 0, 5, 1]}
    pairs = torch.tensor([[u, i] for u, touched in items.items() for i in touched]).t()
    graph = InteractionGraph.from_edges(pairs, num_users=6, num_items=7)
    users = torch.arange(6).repeat(200)
    drawn = ops.sample_negatives(users, graph, RNG)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn, ops.sample_negatives_reference(users, graph, RNG))
    for user, touched in items.items():
        assert set(drawn[users == user].tolist()) == set(range(7)) - set(touched)


def test_place_of_a_negative_is_the_high_part_of_64_bits() -> None:
    """Without interactions the item is the place itself: in Python integers."""
    none = torch.empty(2, 0, dtype=torch.int64)
    graph = InteractionGraph.from_edges(none, num_users=3, num_items=2**31 - 1)
    drawn = ops.sample_negatives(torch.tensor([0, 2, 1]), graph, RNG).tolist()
    words = rnd.random_bits_reference(RNG, rnd.Stream.NEGATIVE_ITEMS, 12).view(3, 4).tolist()
    assert drawn == [((w[0] << 32 | w[1]) * (2**31 - 1)) >> 64 for w in words]


# -- every op -------------------------------------------------------------------------------------


@each_op
def test_equals_the_reference(name: str, isa: str) -> None:
    for seed, step, stream in KEYS:
        rng = torch.tensor([seed, step])
        assert torch.equal(OPS[name](rng, stream), OPS[name](rng, stream, "_reference"))


@each_op
def test_threads_do_not_matter(name: str, isa: str) -> None:
    first, *others = with_threads(lambda: OPS[name](RNG, 1))
    assert all(torch.equal(first, other) for other in others)


@each_op
def test_seed_step_and_stream_each_change_the_draw(name: str) -> None:
    draws = {
        tuple(OPS[name](torch.tensor([seed, step]), stream).tolist())
        for seed, step, stream in itertools.product((0, 1, 2**32), (0, 1), (0, 1, 0x100))
    }
    assert len(draws) == 18


@each_op
def test_runs_compiled_and_with_fake_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = OPS[name](RNG, 1)
    compiled = torch.compile(OPS[name], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(RNG, 1), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        monkeypatch.setitem(globals(), "USERS", mode.from_tensor(USERS))
        fake = OPS[name](mode.from_tensor(RNG), 1)
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


def test_opcheck() -> None:
    rel, rank = REL_GRAPH.ranks("caller")
    arguments = {
        "sample_edges_per_relation": (RNG, rel, rank, REL_GRAPH.relation_counts, 0.4, 1),
        "sample_edges": (RNG, 30, 7, 1),
        "random_permutation": (RNG, 30, 7, 1),
        "dropout_mask": (RNG, 30, 0.2, 1),
        "sample_negatives": (RNG, USERS, *INTERACTIONS.untouched(), 90, 1),
    }
    assert set(arguments) == set(OPS)
    for name, given in arguments.items():
        torch.library.opcheck(getattr(torch.ops.kgrec_fast, name).default, given)


def test_empty_inputs(backend: str) -> None:  # noqa: F811
    none = torch.empty(2, 0, dtype=torch.int64)
    graph = RelGraph.from_edges(none, none[0])
    assert ops.sample_edges_per_relation(graph, 0.5, RNG).shape == (0,)
    assert ops.sample_edges(0, 0, RNG).shape == (0,)
    assert ops.random_permutation(0, RNG, 1).shape == (0,)
    assert ops.random_permutation(5, RNG, 1, 0).shape == (0,)
    empty = InteractionGraph.from_edges(none)
    assert ops.sample_negatives(none[0], empty, RNG).shape == (0,)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (lambda: ops.sample_edges(-1, 0, RNG), ValueError, "n is -1, expected 0 <= n"),
        (lambda: ops.sample_edges(2**31, 0, RNG), ValueError, "n is 2147483648"),
        (lambda: ops.sample_edges(5, 6, RNG), ValueError, "k is 6, expected 0 <= k <= 5"),
        (lambda: ops.sample_edges(5, 6, None), TypeError, "rng is NoneType"),
        (lambda: ops.sample_edges(5, 5, RNG, -1), ValueError, "stream is -1"),
        (lambda: ops.random_permutation(5, RNG, 0, 6), ValueError, "count is 6, .* <= 5"),
        (lambda: ops.dropout_mask(-1, 0.5, RNG), ValueError, "n is -1"),
        (lambda: ops.dropout_mask(1, 1.5, RNG), ValueError, "p is 1.5, expected 0 <= p <= 1"),
        (lambda: ops.dropout_mask(1, math.nan, RNG), ValueError, "p is nan"),
        (
            lambda: ops.sample_edges_per_relation(INTERACTIONS, 0.5, RNG),
            TypeError,
            "graph is a InteractionGraph, expected a RelGraph",
        ),
        (
            lambda: ops.sample_edges_per_relation(REL_GRAPH, -0.1, RNG),
            ValueError,
            "rate is -0.1, expected 0 <= rate <= 1",
        ),
        (
            lambda: ops.sample_edges_per_relation(REL_GRAPH, 0.5, RNG.to("meta")),
            ValueError,
            "rng is on meta, expected cpu",
        ),
        (
            lambda: ops.sample_edges_per_relation(REL_GRAPH, 0.5, RNG, edge_order="column"),
            ValueError,
            "edge_order is 'column'",
        ),
        (
            lambda: ops.sample_negatives(USERS, REL_GRAPH, RNG),
            TypeError,
            "graph is a RelGraph, expected a InteractionGraph",
        ),
        (
            lambda: ops.sample_negatives(USERS.int(), INTERACTIONS, RNG),
            TypeError,
            "users is torch.int32, expected an int64 tensor",
        ),
        (
            lambda: ops.sample_negatives(USERS.view(1, -1), INTERACTIONS, RNG),
            ValueError,
            r"users has shape \[1, 3001\], expected \[B\]",
        ),
        (
            lambda: ops.sample_negatives(torch.tensor([0, 60]), INTERACTIONS, RNG),
            ValueError,
            r"users\[1\] is 60, expected 0 <= user < 60",
        ),
        (
            lambda: ops.sample_negatives(torch.tensor([-1]), INTERACTIONS, RNG),
            ValueError,
            r"users\[0\] is -1",
        ),
    ],
)
def test_bad_arguments_are_named(wrong: Callable, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        wrong()


def test_native_kernels_look_at_users_too() -> None:
    """What Python does not see under torch.compile."""
    pointers, gaps = INTERACTIONS.untouched()
    with pytest.raises(RuntimeError, match=r"users\[0\] is 60, expected 0 <= user < 60"):
        torch.ops.kgrec_fast.sample_negatives(RNG, torch.tensor([60]), pointers, gaps, 90, 1)


def test_a_user_who_has_touched_everything_is_named() -> None:
    pairs = torch.tensor([[0, 1, 1, 1], [0, 2, 0, 1]])
    graph = InteractionGraph.from_edges(pairs, num_items=3)
    with pytest.raises(ValueError, match="user 1 has touched all 3 items"):
        ops.sample_negatives(torch.tensor([0]), graph, RNG)
