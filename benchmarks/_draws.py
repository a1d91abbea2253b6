"""The ops that draw and select, as `run` measures them: no gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._measured_op import MeasuredOp, measured
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.ops.random import random_bits, random_bits_reference

WORDS = 64  # of a row
RATE = 0.5
USERS = 4096
SLOTS = 256  # of each half of the masked edges


def draws(graph: RelGraph) -> list[MeasuredOp]:
    """Draws for the edges and rows of a graph, and choices among its edges.

    A baseline that begins with "torch:" draws other numbers.
    """
    rng = torch.tensor([20, 26], device=graph.device)
    return [*_draws(graph, rng), *_of_the_graph(graph, rng), *_choices(graph, rng)]


def _flags(chosen: Tensor, count: int) -> Tensor:
    flags = torch.zeros(count, dtype=torch.bool, device=chosen.device)
    return flags.index_fill_(0, chosen, True)


def _gumbel(x: Tensor) -> Tensor:
    return -torch.log(-torch.log(torch.rand_like(x)))


def _draws(graph: RelGraph, rng: Tensor) -> list[MeasuredOp]:
    edges, words, device = graph.num_edges, graph.num_rows * WORDS, graph.device
    kept = int(edges * RATE)
    return [
        MeasuredOp(
            "random_bits",
            (),
            lambda: random_bits(rng, 0, words),
            lambda: random_bits_reference(rng, 0, words),
            lambda: torch.randint(2**32, (words,), device=device),
            "torch: randint",
            f"8*N*{WORDS}",
        ),
        measured(
            "gumbel_noise",
            (),
            lambda: (edges, rng, 0),
            lambda: _gumbel(torch.empty(edges, device=device)),
            "4*E",
            baseline="torch: logarithms of rand",
        ),
        measured(
            "dropout_mask",
            (),
            lambda: (edges, RATE, rng),
            lambda: torch.rand(edges, device=device) >= RATE,
            "E",
            baseline="torch: rand",
        ),
        measured(
            "sample_edges",
            (),
            lambda: (edges, kept, rng),
            lambda: _flags(torch.randperm(edges, device=device)[:kept], edges),
            "E",
            baseline="torch: randperm",
        ),
        measured(
            "random_permutation",
            (),
            lambda: (edges, rng, 0),
            lambda: torch.randperm(edges, device=device),
            "8*E",
            baseline="torch: randperm",
        ),
    ]


def _of_the_graph(graph: RelGraph, rng: Tensor) -> list[MeasuredOp]:
    edges, device = graph.num_edges, graph.device
    types = graph.edge_type.long()
    counts = torch.bincount(types, minlength=graph.num_relations)
    begin, wanted = counts.cumsum(0) - counts, (counts * RATE).long()
    pairs, items = graph.edge_index, graph.num_cols + 1  # one that nobody has touched
    inter = InteractionGraph.from_edges(pairs, num_users=graph.num_rows, num_items=items)
    users = torch.arange(USERS, device=device) % graph.num_rows
    touched = torch.unique(pairs[0] * items + pairs[1])

    def by_sorting() -> Tensor:
        key = types + torch.rand(edges, dtype=torch.float64, device=device)
        order = torch.argsort(key)
        relation = types[order]
        first = torch.arange(edges, device=device) - begin[relation] < wanted[relation]
        return torch.zeros_like(first).scatter(0, order, first)

    def by_rejection() -> Tensor:
        drawn = torch.randint(items, users.shape, device=device)
        while bool((again := torch.isin(users * items + drawn, touched)).any()):
            drawn = torch.where(again, torch.randint_like(drawn, items), drawn)
        return drawn

    return [
        measured(
            "sample_edges_per_relation",
            (),
            lambda: (graph, RATE, rng),
            by_sorting,
            "9*E",
            baseline="torch: sort of random numbers",
        ),
        measured(
            "sample_negatives",
            (),
            lambda: (users, inter, rng),
            by_rejection,
            f"{USERS}*32",
            baseline="torch: randint until none is touched",
        ),
    ]


def _choices(graph: RelGraph, rng: Tensor) -> list[MeasuredOp]:
    count, device = graph.num_edges, graph.device
    edges, kept, slots = ((count,),), int(count * RATE), min(SLOTS, count)
    every_other = torch.arange(count, device=device) % 2 == 0
    set_bits = (count + 1) // 2

    def best(score: Tensor, k: int) -> Tensor:
        return _flags(torch.topk(score, k).indices, count)

    def hidden(score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        top = torch.topk(score, slots).indices
        drawn = torch.randperm(count, device=device)[:slots]
        weight = (~torch.isin(drawn, top)).float()
        chosen = torch.cat([top, drawn])
        return chosen, torch.cat([torch.ones_like(weight), weight]), _flags(chosen, count)

    return [
        measured(
            "topk_mask",
            edges,
            lambda x: (x, kept),
            lambda x: best(x, kept),
            "E*(s + 1)",
            baseline="topk of torch",
        ),
        measured(
            "gumbel_topk",
            edges,
            lambda x: (x, kept, rng, 0),
            lambda x: best(x + _gumbel(x), kept),
            "E*(s + 1)",
            baseline="torch: topk with noise of rand",
        ),
        measured(
            "mask_positions",
            (),
            lambda: (every_other, set_bits),
            lambda: torch.nonzero(every_other).flatten(),
            f"E + 8*{set_bits}",
            baseline="nonzero of torch",
        ),
        measured(
            "masked_edges",
            edges,
            lambda x: (x, None, count, slots, rng),
            hidden,
            f"E*(s + 1) + {2 * slots}*12",
            baseline="torch: topk and randperm",
        ),
    ]
