"""What the published constructor is given, checked and in the terms of this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgrec_fast.integrations.paper.presets import PRESETS

# Arguments of the published command line, attributes of the published model (which hp_dict sets),
# and what they are called here.
_ARGUMENTS = {
    "l2": "reg_weight",
    "dim": "embedding_size",
    "context_hops": "context_hops",
    "node_dropout_rate": "node_dropout_rate",
    "mess_dropout_rate": "mess_dropout_rate",
    "mess_dropout": "mess_dropout",
    "mae_coef": "mae_coef",
    "mae_msize": "mae_msize",
    "cl_coef": "cl_coef",
    "cl_tau": "cl_tau",
    "cl_drop_ratio": "cl_drop",
}
_ATTRIBUTES = {
    "decay": "reg_weight",
    "emb_size": "embedding_size",
    "context_hops": "context_hops",
    "node_dropout_rate": "node_dropout_rate",
    "mess_dropout_rate": "mess_dropout_rate",
    "mess_dropout": "mess_dropout",
    "mae_coef": "mae_coef",
    "mae_msize": "mae_msize",
    "cl_coef": "cl_coef",
    "tau": "cl_tau",
    "cl_drop": "cl_drop",
    "samp_func": "samp_func",
    "kg_drop_test_keep_rate": "kg_drop_test_keep_rate",
}
# Those that models.KGRec does not take.
_OWN = ("mess_dropout", "kg_drop_test_keep_rate")


def sizes_of(data_config: Mapping[str, int]) -> dict[str, int]:
    """The sizes that models.KGRec takes.

    Raises:
        ValueError: One is missing, or "n_nodes" is not the number of users and entities.
    """
    names = ("n_users", "n_items", "n_entities", "n_relations")
    missing = [name for name in (*names, "n_nodes") if name not in data_config]
    if missing:
        raise ValueError(f"data_config has no {missing[0]!r}, expected a number under that name")
    sizes = {name: int(data_config[name]) for name in names}
    nodes, expected = int(data_config["n_nodes"]), sizes["n_users"] + sizes["n_entities"]
    if nodes != expected:
        raise ValueError(f"n_nodes is {nodes}, expected {expected}: n_users + n_entities")
    return sizes


def hyper_parameters(
    args_config: Any, hp_dict: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyper-parameters of models.KGRec, and the others.

    From the command line, then what is published for its data set, then ``hp_dict``.

    Raises:
        ValueError: The command line lacks one, or ``hp_dict`` has something else.
    """
    missing = [name for name in _ARGUMENTS if not hasattr(args_config, name)]
    if missing:
        raise ValueError(f"args_config has no {missing[0]!r}, expected that hyper-parameter")
    given = dict(hp_dict or {})
    unknown = [name for name in given if name not in _ATTRIBUTES]
    if unknown:
        raise ValueError(
            f"hp_dict has {unknown[0]!r}, expected some of {', '.join(sorted(_ATTRIBUTES))}"
        )
    hyper = {"samp_func": "torch", "kg_drop_test_keep_rate": None}
    hyper |= {ours: getattr(args_config, theirs) for theirs, ours in _ARGUMENTS.items()}
    hyper |= PRESETS.get(getattr(args_config, "dataset", ""), {})
    hyper |= {_ATTRIBUTES[name]: value for name, value in given.items()}
    return hyper, {name: hyper.pop(name) for name in _OWN}


def triples_of(graph: Any) -> tuple[Tensor, Tensor]:
    """``edge_index`` int64 [2, E] and ``edge_type`` int64 [E] of the published graph.

    Args:
        graph: A ``networkx.MultiDiGraph``, which lists edges as (head, tail, key), or such a list.

    Raises:
        TypeError, ValueError: It is no list of three ids each.
    """
    listed = getattr(graph, "edges", graph)
    if isinstance(listed, Tensor):
        listed = listed.cpu().numpy()
    triples = np.asarray(listed if isinstance(listed, np.ndarray) else list(listed))
    if triples.size == 0:
        triples = triples.reshape(0, 3).astype(np.int64)
    if triples.ndim != 2 or triples.shape[1] != 3:
        raise ValueError(
            f"graph lists edges of shape {list(triples.shape)}, expected [E, 3]: "
            "head, tail and relation"
        )
    if not np.issubdtype(triples.dtype, np.integer):
        raise TypeError(f"graph lists edges of {triples.dtype}, expected integers")
    columns = torch.from_numpy(np.ascontiguousarray(triples.T, dtype=np.int64))
    return columns[:2], columns[2]


def interactions_of(adj_mat: Any) -> tuple[Tensor, Tensor]:
    """``inter_edge`` int64 [2, M] and its float weights [M] of the published matrix.

    Raises:
        TypeError: It is no sparse matrix of scipy.
    """
    if not hasattr(adj_mat, "tocoo"):
        raise TypeError(
            f"adj_mat is a {type(adj_mat).__name__}, expected a scipy matrix of users and items"
        )
    coo = adj_mat.tocoo()
    pairs = np.stack([coo.row, coo.col]).astype(np.int64)
    weight = torch.from_numpy(np.asarray(coo.data))
    return torch.from_numpy(pairs), weight.to(torch.get_default_dtype())
