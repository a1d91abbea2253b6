"""What graphs are built with: checks, sorting, and the partition of the work.

:mod:`kgrec_fast.graph` holds the structures themselves, :mod:`kgrec_fast.cuda_plan` what CUDA needs
besides.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

from kgrec_fast._numbers import check_int

T = TypeVar("T")

MAX_ID = 2**31 - 1
# Rows up to this many edges are never cut; longer ones may be shared by several parts.
MAX_WHOLE_ROW = 2048
# Work is counted in rows, an edge being as much as four. What one part should hold, how many parts
# there may be, and what their number is a multiple of, for threads to have as many each.
EDGE_COST = 4
PART_COST = 4 * 8192
MAX_PARTS = 256
PART_MULTIPLE = 8
# With many relations there are fewer parts, so that there is at most one slot (see relation_slots)
# for this many edges and rows; but not fewer parts than these, for the threads to share.
SLOT_SHARE = 16
MIN_PARTS = 8

# ---------------------------------------------------------------------------------------------
# Validation


def check_dense(name: str, x: Tensor) -> None:
    # torch.compile does not let layouts be asked for in a backward pass.
    if not torch.compiler.is_compiling() and (x.layout != torch.strided or x.is_nested):
        layout = "that of nested tensors" if x.is_nested else x.layout
        raise TypeError(f"{name} has layout {layout}, expected torch.strided, a dense tensor")


def check_edges(name: str, index: Tensor, *shape: int | None) -> None:
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} is a {type(index).__name__}, expected a torch.Tensor")
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} has dtype {index.dtype}, expected torch.int64 or torch.int32")
    check_dense(name, index)
    wanted = "[" + ", ".join("E" if s is None else str(s) for s in shape) + "]"
    fits = index.dim() == len(shape) and all(
        s is None or s == n for s, n in zip(shape, index.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {list(index.shape)}, expected {wanted}")


def check_ids(name: str, ids: Tensor, size: int, size_name: str, first: int = 0) -> None:
    """All of first <= ids < first + size, or a ValueError that names the first bad position."""
    if ids.numel() == 0:
        return
    end = first + size
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low >= first and high < end:
        return
    position = int(((ids < first) | (ids >= end)).nonzero()[0])
    raise ValueError(
        f"{name}[{position}] is {int(ids[position])}, expected {first} <= id < {end} ({size_name})"
    )


def resolve_size(name: str, size: int | None, ids: Tensor) -> int:
    """`size`, or one more than the largest id where it is not given."""
    if size is None:
        return int(ids.max()) + 1 if ids.numel() else 0
    size = check_int(name, size)
    if not 0 <= size <= MAX_ID:
        raise ValueError(f"{name} is {size}, expected 0 <= {name} <= {MAX_ID}")
    return size


# ---------------------------------------------------------------------------------------------
# Building blocks


def sort_by(major: Tensor, minor: Tensor | None, num_minor: int) -> Tensor:
    """Stable order of edges by (major, minor): one radix sort of a combined key. int64 [E]."""
    key = major.long() if minor is None else major.long() * num_minor + minor
    if key.numel() and int(key.max()) <= MAX_ID:
        key = key.int()  # half the radix passes
    return torch.sort(key, stable=True).indices


def pointers(ids: Tensor, size: int) -> Tensor:
    """Row pointers of sorted `ids`: int64 [size + 1]."""
    pointers = torch.zeros(size + 1, dtype=torch.int64, device=ids.device)
    torch.cumsum(torch.bincount(ids, minlength=size), 0, out=pointers[1:])
    return pointers


def partition(pointers: Tensor, max_parts: int = MAX_PARTS) -> Tensor:
    """Cuts rows and edges into parts of like cost: int64 [2, P + 1] of (row, edge) boundaries.

    The boundaries depend on the graph alone, so results do not depend on the number of threads. A
    boundary lies at the start of a row, or, where a row is longer than MAX_WHOLE_ROW, inside it.
    """
    num_rows, num_edges = pointers.numel() - 1, int(pointers[-1])
    cost = num_rows + EDGE_COST * num_edges
    parts = max(1, min(cost // PART_COST, max_parts))
    if parts == 1:
        return torch.tensor([[0, num_rows], [0, num_edges]], device=pointers.device)
    parts = -(-parts // PART_MULTIPLE) * PART_MULTIPLE
    rows = torch.arange(num_rows + 1, dtype=torch.int64, device=pointers.device)
    targets = torch.arange(parts + 1, dtype=torch.int64, device=pointers.device) * cost // parts
    before = EDGE_COST * pointers + rows
    row = torch.searchsorted(before, targets, right=True) - 1
    start = pointers[row]
    length = pointers[(row + 1).clamp(max=num_rows)] - start
    inside = torch.minimum((targets - before[row]) // EDGE_COST, length)
    edge = torch.where(length > MAX_WHOLE_ROW, start + inside, start)
    return torch.stack([row, edge])


def relation_slots(part: Tensor, rel: Tensor, num_relations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each part of the work adds up its share of the relation gradients.

    Each pair (part, relation) that occurs owns a *slot*, a row of the workspace. Returns the slot
    of every edge in row order (int32 [E]), and the slots of each relation in order of the parts as
    pointers (int64 [R + 1]) and list (int32 [S]): summed in that order the result is repeatable.
    """
    parts = part.size(1) - 1
    sizes = (part[1, 1:] - part[1, :-1]).clamp(min=0)
    owner = torch.repeat_interleave(torch.arange(parts, device=rel.device), sizes)
    pair = owner * num_relations + rel
    present = torch.zeros(parts * num_relations, dtype=torch.bool, device=rel.device)
    present[pair] = True
    number = torch.cumsum(present, 0) - 1
    slot_relation = present.nonzero().flatten() % max(num_relations, 1)
    order = torch.sort(slot_relation, stable=True).indices
    return number[pair].int(), pointers(slot_relation, num_relations), order.int()


def outliving(made: T) -> T:
    """A pytree that is to be kept: a copy where inference mode is on, whose tensors no autograd
    function may save for backward.
    """
    if not torch.is_inference_mode_enabled():
        return made
    with torch.inference_mode(False):
        copied: T = _pytree.tree_map_only(Tensor, torch.clone, made)
        return copied
