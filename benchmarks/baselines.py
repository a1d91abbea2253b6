"""The usual implementations, against which we measure.

`relation_attention` is the composition found in published code: rows of both ends of every edge are
gathered, projected per edge, scored, normalised by a softmax over the head's edges, and scattered.
What scatters are the functions of torch_scatter and torch_geometric, or plain PyTorch.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kgrec_fast.models.reference import EdgeFunctions


@dataclass(frozen=True)
class Baseline:
    """A name for reports, and the functions that scatter."""

    name: str
    functions: EdgeFunctions


def torch_scatter_baseline() -> Baseline:
    """scatter_sum and scatter_mean of torch_scatter, softmax of torch_geometric.

    Raises:
        ImportError: One of them is not installed.
    """
    from torch_geometric.utils import softmax
    from torch_scatter import scatter_mean, scatter_sum

    return Baseline("torch_scatter+pyg", EdgeFunctions(scatter_sum, scatter_mean, softmax))


def plain_baseline() -> Baseline:
    """``index_add`` and ``scatter_reduce`` of PyTorch."""
    return Baseline("torch", EdgeFunctions())


BASELINES: dict[str, Callable[[], Baseline]] = {
    "torch_scatter+pyg": torch_scatter_baseline,
    "torch": plain_baseline,
}


def find_baseline(name: str = "auto") -> Baseline:
    """The baseline of that name; "auto" prefers torch_scatter + PyG, and says where it cannot.

    Raises:
        ValueError: There is no baseline of that name.
        ImportError: Its packages are not installed.
    """
    if name == "auto":
        needed = ("torch_scatter", "torch_geometric")
        missing = [p for p in needed if importlib.util.find_spec(p) is None]
        if missing:
            print(f"{' and '.join(missing)} not installed: the baseline is plain PyTorch")
        name = "torch" if missing else "torch_scatter+pyg"
    if name not in BASELINES:
        raise ValueError(f"name is {name!r}, expected auto, {', '.join(BASELINES)}")
    return BASELINES[name]()


def relation_attention(
    x: Tensor,
    w: Tensor,
    relation: Tensor,
    edge_index: Tensor,
    edge_type: Tensor,
    num_heads: int,
    functions: EdgeFunctions,
) -> Tensor:
    """One hop of relation attention on an edge list, projections included.

    Args:
        x: [N, D] entity embeddings.
        w: [D, D] projection of queries and keys.
        relation: [R, D].
        edge_index: int64 [2, E], heads and tails.
        edge_type: int64 [E].
        num_heads: H, a divisor of D.
        functions: What scatters.

    Returns:
        [N, D].
    """
    head, tail = edge_index
    width = x.shape[1] // num_heads
    query = (x[head] @ w).view(-1, num_heads, width)
    key = (x[tail] @ w).view(-1, num_heads, width)
    rel = relation[edge_type]
    key = key * rel.view(-1, num_heads, width)
    score = (query * key).sum(dim=-1) / math.sqrt(width)
    score = functions.softmax(score, head, num_nodes=x.shape[0])
    value = (x[tail] * rel).view(-1, num_heads, width) * score.unsqueeze(-1)
    return functions.scatter_sum(value.view(-1, x.shape[1]), head, dim=0, dim_size=x.shape[0])
