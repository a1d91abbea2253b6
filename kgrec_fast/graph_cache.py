"""Graphs for raw edge tensors, so that layers can be called as those they replace.

A graph is built for the tensors it is first asked for and kept while they live: the cache holds
weak references, few entries, and looks at identity, version and sizes. Tensors that were changed
in place are sorted anew, where torch counts the change: one made through ``.data``, or through a
NumPy array of the same memory, goes unseen, and asks for :func:`clear`. Edge lists drawn anew at
each step are sorted at each step.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph

MAX_ENTRIES = 8

G = TypeVar("G", RelGraph, InteractionGraph)
_Key = tuple[object, ...]
_entries: OrderedDict[_Key, tuple[tuple[weakref.ref[Tensor], ...], object]] = OrderedDict()
_lock = threading.Lock()


def as_rel_graph(
    edge_index: Tensor,
    edge_type: Tensor,
    num_rows: int,
    num_cols: int,
    num_relations: int,
    first_relation: int = 0,
) -> RelGraph:
    """`RelGraph.from_edges` of raw tensors, kept for the next call with the same ones."""
    sizes = (num_rows, num_cols, num_relations, first_relation)
    return _cached(
        (edge_index, edge_type),
        ("relations", *sizes),
        lambda: RelGraph.from_edges(
            edge_index,
            edge_type,
            num_rows=num_rows,
            num_cols=num_cols,
            num_relations=num_relations,
            first_relation=first_relation,
        ),
    )


def as_interaction_graph(
    edge_index: Tensor, num_users: int, num_items: int, name: str = "edge_index"
) -> InteractionGraph:
    """`InteractionGraph.from_edges` of a raw tensor, kept for the next call with the same one."""
    return _cached(
        (edge_index,),
        ("interactions", num_users, num_items),
        lambda: InteractionGraph.from_edges(
            edge_index, num_users=num_users, num_items=num_items, name=name
        ),
    )


def clear() -> None:
    """Forgets every graph."""
    with _lock:
        _entries.clear()


def _can_be_a_key(x: object) -> bool:
    # Inference tensors have no version counter: a change in place would go unseen. What has no
    # storage is refused where it is looked at.
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_inference()


def _cached(tensors: tuple[Tensor, ...], sizes: _Key, build: Callable[[], G]) -> G:
    if torch.compiler.is_exporting():
        raise ValueError(
            "edges are given as tensors to torch.export, expected a RelGraph or InteractionGraph: "
            "sorting them is no part of a program"
        )
    if not all(map(_can_be_a_key, tensors)):
        return build()
    key = (*sizes, *((id(x), x._version, x.data_ptr()) for x in tensors))
    with _lock:
        found = _entries.get(key)
        if found is not None and all(ref() is x for ref, x in zip(found[0], tensors, strict=True)):
            _entries.move_to_end(key)
            return found[1]  # type: ignore[return-value]
    graph = build()

    def forget(_: weakref.ref[Tensor]) -> None:
        _entries.pop(key, None)

    with _lock:
        _entries[key] = (tuple(weakref.ref(x, forget) for x in tensors), graph)
        while len(_entries) > MAX_ENTRIES:
            _entries.popitem(last=False)
    return graph
