"""Each argument of each op in turn is of a wrong kind: it works, or an error names it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from graph_helpers import CASES
from torch import Tensor

from kgrec_fast import InteractionGraph, ops
from kgrec_fast.ops.random import Stream

CASE = CASES["bipartite"]
GRAPH = CASE.build()
INTER = InteractionGraph.from_edges(CASE.edge_index, num_users=12, num_items=31)
EDGES = CASE.edge_type.numel()
GENERATOR = torch.Generator().manual_seed(7)
X, Y = torch.randn(2, 31, 8, generator=GENERATOR).unbind()
RELATION, SQUARE = (torch.randn(n, 8, generator=GENERATOR) for n in (GRAPH.num_relations, 8))
SCORE, MASK = torch.randn(EDGES, generator=GENERATOR), torch.arange(EDGES) % 3 > 0
RNG, ROW_IDS = torch.tensor([2024, 7]), torch.arange(31)
ATTENTION: dict[str, Any] = {"x": X, "weight": SQUARE, "relation": RELATION, "graph": GRAPH}
ATTENTION |= {"num_heads": 2, "edge_mask": MASK, "query": X @ SQUARE}
REDUCED = {"src": X, "index": ROW_IDS % 5, "dim": 0, "dim_size": 6}
DRAWN = {"rng": RNG, "stream": 5}
CALLS: dict[str, dict[str, Any]] = {
    "attention_and_mean": {**ATTENTION, "mean_mask": ~MASK, "mean_graph": GRAPH},
    "bpr_loss": {"user": X, "positive": Y, "negative": X.flip(0), "reg_weight": 0.25}
    | {"weight": torch.rand(31), "eps": 0.5},
    "contrast_loss": {"z1": X, "z2": Y, "permutation": ROW_IDS.roll(3), "tau": 0.5},
    "dropout_mask": {"n": 30, "p": 0.5, **DRAWN},
    "dropout_normalize_add": {"x": X, "residual": Y, "p": 0.5, **DRAWN, "row_ids": ROW_IDS},
    "edge_dot": {"row_side": X, "col_side": Y, "graph": GRAPH, "edge_mask": MASK},
    "edge_score_means": {"score": SCORE, "graph": GRAPH, "edge_mask": MASK, "num_items": 9},
    "edge_subgraph": {"graph": GRAPH, "edge_mask": MASK},
    "gumbel_noise": {"n": 30, **DRAWN},
    "gumbel_topk": {"log_weight": SCORE, "k": 4, **DRAWN, "mask": MASK},
    "mask_positions": {"mask": MASK, "count": 4},
    "masked_edges": {"noisy_score": SCORE, "sampled": None, "num_sampled": EDGES, "count": 4}
    | DRAWN,
    "projected_attention": {**ATTENTION, "zero_edges": torch.ones(12)},
    "projection_head": {"x": X, "w1": SQUARE, "b1": X[0], "w2": SQUARE, "b2": X[1]},
    "random_permutation": {"n": 30, **DRAWN, "count": 4},
    "rationale_scores": {"query": X, "relation": RELATION, "graph": GRAPH, "num_heads": 2}
    | {"edge_mask": MASK},
    "reconstruction_loss": {"head": X, "tail": Y, "relation": RELATION}
    | {"relation_ids": ROW_IDS % 2, "weight": torch.rand(31)},
    "relation_attention": {"query": X, "value": Y, "relation": RELATION, "graph": GRAPH}
    | {"num_heads": 2, "edge_mask": MASK, "zero_edges": torch.ones(12)},
    "relation_mean": {"x": X, "relation": RELATION, "graph": GRAPH, "edge_mask": MASK},
    "row_subgraph": {"graph": GRAPH, "ids": torch.arange(3), "edge_mask": MASK},
    "sample_edges": {"n": 30, "k": 4, **DRAWN},
    "sample_edges_per_relation": {"graph": GRAPH, "rate": 0.5, **DRAWN},
    "sample_negatives": {"users": torch.arange(3), "graph": INTER, **DRAWN},
    "scatter_mean": REDUCED,
    "scatter_softmax": {"src": X, "index": ROW_IDS % 5, "num_nodes": 6, "dim": 0},
    "scatter_sum": REDUCED,
    "segment_mean": {"src": SCORE, "ptr": GRAPH.rowptr},
    "segment_softmax": {"src": SCORE, "ptr": GRAPH.rowptr},
    "segment_sum": {"src": SCORE, "ptr": GRAPH.rowptr},
    "topk_items": {"user_emb": X, "item_emb": Y, "k": 4, "known_ptr": torch.arange(32)}
    | {"known_items": ROW_IDS, "users": ROW_IDS, "max_scores": 64},
    "topk_mask": {"values": SCORE, "k": 4, "mask": MASK, "rng": RNG, "streams": (5,)}
    | {"index": torch.arange(EDGES, dtype=torch.int32)},
    "topk_mask, a share": {"values": SCORE, "rate": 0.5},
    "weighted_aggregate": {"x": X, "weight": SCORE, "graph": GRAPH, "edge_mask": MASK},
    "weighted_aggregate, by row": {"x": X, "weight": None, "graph": GRAPH}
    | {"row_weight": torch.rand(12)},
}
KINDS: dict[str, Any] = {
    "None": None,
    "text": "3",
    "fraction": 2.5,
    "whole float": 2.0,
    "bool": True,
    "list": [1.5],
    "complex": 1j,
    "matrix": torch.ones(3, 3, dtype=torch.complex64),
    "with gradient": torch.tensor(0.5, requires_grad=True),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": torch.Tensor.to_sparse,
    "rows": torch.Tensor.to_sparse_csr,
    "mkldnn": torch.Tensor.to_mkldnn,
    "nested": lambda x: torch.nested.nested_tensor(list(x.split(1))),
    "jagged": lambda x: torch.nested.nested_tensor(list(x.split(1)), layout=torch.jagged),
}
each_way = pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])


def parameters(name: str) -> dict[str, str]:
    """The annotations of an op's arguments."""
    found = inspect.signature(getattr(ops, name.partition(",")[0])).parameters
    return {argument: str(found[argument].annotation) for argument in found}


def call(name: str, native: bool = True, **changed: Any) -> Any:
    function = getattr(ops, name.partition(",")[0])
    with nullcontext() if native else ops.use_reference():
        return function(**{**CALLS[name], **changed})


def works_or_names(name: str, native: bool, argument: str, value: Any) -> bool:
    """Whether it works; where it does not, the error must name it."""
    try:
        call(name, native, **{argument: value})
    except (TypeError, ValueError) as error:
        said = str(error)
    else:
        return True
    known = argument.removesuffix("s")  # one of the streams is a stream
    assert re.search(rf"\b{known}", said), f"{argument}: {said}"
    return False


def test_every_op_is_here() -> None:
    assert {name.partition(",")[0] for name in CALLS} == {
        name for name in ops.__all__ if not name.endswith("_reference")
    } - {"use_reference"}


@pytest.mark.parametrize("kind", KINDS)
@each_way
@pytest.mark.parametrize("name", CALLS)
def test_values_of_all_kinds(name: str, native: bool, kind: str) -> None:
    call(name, native)
    for argument, annotation in parameters(name).items():
        if annotation == "bool":  # flags go by what is true of them
            continue
        works = works_or_names(name, native, argument, KINDS[kind])
        if annotation.startswith(("int", "float")) and kind not in ("None", "fraction"):
            is_number = annotation.startswith("float") and kind == "whole float"
            assert not works or is_number, argument


@pytest.mark.filterwarnings("ignore:.*(prototype|beta) s:UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@each_way
@pytest.mark.parametrize("name", CALLS)
def test_operands_of_other_layouts(name: str, native: bool, layout: str) -> None:
    for argument, value in CALLS[name].items():
        if isinstance(value, Tensor):
            if layout == "rows" and value.dim() == 1:
                continue  # has none
            if layout == "mkldnn" and not value.is_floating_point():
                continue  # nor have whole numbers
            with pytest.raises(TypeError, match=rf"{argument} has layout .*, expected torch.str"):
                call(name, native, **{argument: LAYOUTS[layout](value)})


@pytest.mark.parametrize("name", CALLS)
def test_integers_and_numbers_of_all_kinds(name: str) -> None:
    wanted = call(name)
    for argument, annotation in parameters(name).items():
        value = CALLS[name].get(argument)
        if value is None or argument == "out":
            continue
        if annotation.startswith("int"):
            same = [np.int64(value), np.int32(value), IntEnum("E", {"A": value}).A]
            same += [torch.tensor(value)]
        elif annotation.startswith("float"):
            same = [np.float64(value), np.float32(value), Fraction(value), torch.tensor(value)]
        else:
            continue
        for other in same:
            torch.testing.assert_close(call(name, **{argument: other}), wanted, rtol=0, atol=0)


def test_nothing_stands_in_the_way_of_a_compiler() -> None:
    def draws(k: int, rng: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = ops.dropout_normalize_add(x, None, 0.5, rng, Stream.USER_MESSAGE + 1)
        return ops.topk_mask(y[:, 0], k, rng=rng, streams=(Stream.EDGE_NOISE,)), y

    compiled = torch.compile(draws, fullgraph=True, dynamic=True, backend="eager")
    for k in (3, 5, 7):
        found, wanted = compiled(k, RNG, X), draws(k, RNG, X)
        assert all(map(torch.equal, found, wanted))
        assert int(found[0].sum()) == k
