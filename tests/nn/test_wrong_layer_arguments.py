"""Each argument of each layer in turn is of a wrong kind: it works, or an error names it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kgrec_fast.nn import (
    AttnHGCN,
    Contrast,
    HopGraphs,
    KGATAttention,
    KGCLAggregation,
    KGINAggregation,
    RGATAttention,
)

USERS, NODES, RELATIONS, WIDTH = 7, 40, 5, 8  # those of `toy`
SIZES: dict[type, dict[str, Any]] = {
    AttnHGCN: {"embedding_size": WIDTH, "n_hops": 2, "n_users": USERS, "n_relations": RELATIONS}
    | {"mess_dropout_rate": 0.25},
    Contrast: {"num_hidden": WIDTH, "tau": 0.5},
    KGATAttention: {"embedding_size": WIDTH, "relation_size": 5, "n_relations": RELATIONS},
    KGCLAggregation: {"embedding_size": WIDTH, "negative_slope": 0.25},
    KGINAggregation: {"embedding_size": WIDTH, "n_factors": 3, "n_relations": RELATIONS},
    RGATAttention: {"embedding_size": WIDTH, "num_heads": 2, "n_relations": RELATIONS}
    | {"negative_slope": 0.25},
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
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": Tensor.to_sparse,
    "integers": Tensor.long,
    "other width": lambda x: x.repeat(*[1] * (x.dim() - 1), 2),
}
METHODS = [
    (AttnHGCN, "forward"),
    (AttnHGCN, "forward_ui"),
    (AttnHGCN, "forward_kg"),
    (AttnHGCN, "shared_layer_agg"),
    (AttnHGCN, "ui_agg"),
    (AttnHGCN, "kg_agg"),
    (AttnHGCN, "norm_attn_computer"),
    (AttnHGCN, "rationale_scores"),
    (Contrast, "forward"),
    (Contrast, "loss"),
    (HopGraphs, "of"),
    *((kind, name) for kind in (KGINAggregation, KGCLAggregation) for name in ("forward",)),
    (KGINAggregation, "reference"),
    (KGCLAggregation, "reference"),
    (KGATAttention, "forward"),
    (KGATAttention, "attention"),
    (KGATAttention, "reference"),
    (RGATAttention, "forward"),
    (RGATAttention, "reference"),
]
each_method = pytest.mark.parametrize(
    ("kind", "name"), METHODS, ids=[f"{kind.__name__}.{name}" for kind, name in METHODS]
)


def prepared(toy: Any, kind: type, name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A method, and arguments that are right."""
    known: dict[str, Any] = {
        "user_emb": toy.users,
        "entity_emb": toy.entities,
        "item_emb": toy.entities[: toy.interactions.num_cols],
        "relation_emb": toy.entities[: RELATIONS - 1],
        "latent_emb": toy.entities[:3],
        "z1": toy.entities,
        "z2": toy.entities.flip(0),
        "permutation": torch.arange(NODES).roll(3),
        "edge_index": toy.kg,
        "edge_type": None,
        "inter_edge": toy.interactions,
        "inter_edge_w": toy.inter_edge_w,
        "item_attn": toy.entities[:, 0],
        "edge_mask": torch.arange(80) % 3 > 0,
        "inter_mask": torch.arange(25) % 3 > 0,
        "attention": toy.entities.flatten()[:80],
        "rng": torch.tensor([2024, 7]),
        "graph": toy.kg,
        "first_rows": 7,
        "return_logits": True,
        "dropout": True,
    }
    method = kind.of if kind is HopGraphs else getattr(kind(**SIZES[kind]).double(), name)
    return method, {argument: known[argument] for argument in inspect.signature(method).parameters}


def names_it(call: Callable[..., Any], arguments: dict[str, Any], name: str, value: Any) -> None:
    """That the call works, or its error is one of ours and names the argument."""
    try:
        call(**{**arguments, name: value})
    except (TypeError, ValueError) as error:
        said = str(error)
    else:
        return
    assert re.search(rf"\b{name}\b", said), f"{name}: {said}"


@pytest.mark.parametrize("value", KINDS)
@pytest.mark.parametrize("kind", SIZES)
def test_sizes_of_all_kinds(kind: type, value: str) -> None:
    for argument in SIZES[kind]:
        names_it(kind, SIZES[kind], argument, KINDS[value])
        if value in ("None", "text", "bool", "list", "complex", "matrix"):
            with pytest.raises((TypeError, ValueError), match=argument):
                kind(**{**SIZES[kind], argument: KINDS[value]})


@pytest.mark.parametrize("kind", SIZES)
def test_numpy_sizes(kind: type) -> None:
    sizes = {name: np.asarray(value)[()] for name, value in SIZES[kind].items()}
    assert {type(value) for value in sizes.values()} <= {np.int64, np.float64}
    assert repr(kind(**sizes)) == repr(kind(**SIZES[kind]))


@pytest.mark.parametrize("value", KINDS)
@each_method
def test_arguments_of_all_kinds(toy: Any, kind: type, name: str, value: str) -> None:
    method, arguments = prepared(toy, kind, name)
    method(**arguments)
    for argument in arguments:
        is_edges = argument == "edge_index" and value == "matrix"  # the relations are missed first
        if argument not in ("return_logits", "dropout") and not is_edges:
            names_it(method, arguments, argument, KINDS[value])


@pytest.mark.parametrize("other", OTHERS)
@each_method
def test_tensors_of_all_kinds(toy: Any, kind: type, name: str, other: str) -> None:
    method, arguments = prepared(toy, kind, name)
    for argument, value in arguments.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if argument == "item_attn" and other == "other width":
            continue  # there may be more of them than items
        with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
            method(**{**arguments, argument: OTHERS[other](value)})


@pytest.mark.parametrize("kind", [KGATAttention, KGCLAggregation, KGINAggregation, RGATAttention])
def test_embeddings_of_another_type_than_the_layer(toy: Any, kind: type) -> None:
    method, arguments = prepared(toy, kind, "forward")
    with pytest.raises(TypeError, match=r"entity_emb has dtype torch\.float32, expected torch\.fl"):
        method(**{**arguments, "entity_emb": toy.entities.float()})


def test_attention_of_masked_edges_is_zero_beside_nan(toy: Any) -> None:
    method, arguments = prepared(toy, KGATAttention, "attention")
    toy.entities[4] = torch.nan
    weight = method(**arguments)
    assert bool(weight.isnan().any())
    assert not bool(weight[~arguments["edge_mask"]].any())
