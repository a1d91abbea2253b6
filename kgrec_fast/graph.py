"""Graphs sorted once: the structure every op reads, and the edge masks a training step draws.

A graph holds its edges in two orders. *Row order* sorts them by (head, relation), *column order* by
(tail, relation); ties keep the caller's order. Edges of a row with equal relation stand together
(a *run*), which lets the kernels multiply by a relation once a run. A training step never builds
edge lists: it carries an `EdgeMask` over the fixed graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

from kgrec_fast import cuda_plan
from kgrec_fast._files import unpickled
from kgrec_fast._numbers import check_int
from kgrec_fast.graph_build import (
    MAX_ID,
    MAX_PARTS,
    MIN_PARTS,
    SLOT_SHARE,
    check_dense,
    check_edges,
    check_ids,
    outliving,
    partition,
    pointers,
    relation_slots,
    resolve_size,
    sort_by,
)

if TYPE_CHECKING:
    from kgrec_fast.relation_pairs import HeadRuns, NodePairs

G = TypeVar("G", bound="_Graph")


# ---------------------------------------------------------------------------------------------
# Masks


@dataclass(eq=False, repr=False)
class EdgeMask:
    """A subset of a graph's edges, made by `graph.edge_mask`; both orders, the second made once.

    It belongs to the graph that made it: one of another graph with as many edges cannot be told
    apart, and would be read in the wrong order.

    Attributes:
        row: bool [E] in row order, True where the edge is kept.
        graph: whose edges.
    """

    row: Tensor
    graph: _Graph
    _col: Tensor | None = field(default=None, kw_only=True)

    @property
    def col(self) -> Tensor:
        """bool [E] in column order; copied when first asked for."""
        if self._col is None:
            self._col = self.row.index_select(0, self.graph.columns()[3])
        return self._col

    def __repr__(self) -> str:
        return f"EdgeMask(num_edges={self.row.numel()}, device={self.row.device})"


# ---------------------------------------------------------------------------------------------
# Graphs


@dataclass(frozen=True)
class _Graph:
    """What `RelGraph` and `InteractionGraph` share; all tensors on one device."""

    rowptr: Tensor  # int64 [num_rows + 1]
    head: Tensor  # int32 [E]          row order
    col: Tensor  # int32 [E]           row order: the tail
    rel: Tensor  # int32 [E] or [0]    row order
    perm: Tensor  # int32 [E]          caller's edge id of each position
    part: Tensor  # int64 [2, P + 1]   boundaries of the parts of the work
    slot: Tensor  # int32 [E] or [0]   place of each edge's relation gradient
    slot_ptr: Tensor  # int64 [R + 1]
    slot_perm: Tensor  # int32 [S]
    colptr: Tensor | None  # int64 [num_cols + 1]   None until a pass over columns needs them
    col_row: Tensor | None  # int32 [E]       column order: the head
    col_rel: Tensor | None  # int32 [E] or [0]
    col_pos: Tensor | None  # int32 [E]       position in row order
    col_part: Tensor | None  # int64 [2, P + 1]
    num_rows: int
    num_cols: int
    num_relations: int
    # What CUDA kernels need besides (see `cuda_plan`): there on CUDA, not saved.
    row_plan: tuple[Tensor, ...] | None = field(default=None, kw_only=True)
    col_plan: tuple[Tensor, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.num_edges > MAX_ID:
            raise ValueError(f"the graph has {self.num_edges} edges, expected at most {MAX_ID}")

    @property
    def num_edges(self) -> int:
        return self.col.numel()

    @property
    def device(self) -> torch.device:
        return self.rowptr.device

    @property
    def edge_index(self) -> Tensor:
        """int64 [2, E] (head, tail) in the caller's order, rebuilt at each call."""
        return self.to_caller_order(torch.stack([self.head, self.col], 1).long()).t().contiguous()

    def to_row_order(self, x: Tensor) -> Tensor:
        """Per-edge values [E, ...] from the caller's order to row order."""
        return x.index_select(0, self.perm)

    def to_caller_order(self, x: Tensor) -> Tensor:
        """Per-edge values [E, ...] from row order to the caller's order."""
        return torch.empty_like(x).index_copy(0, self.perm.long(), x)

    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Column order: (colptr, row, rel, pos, part). Sorted when first asked for, then kept."""
        if self.colptr is None:
            order = sort_by(self.col, self.rel if self.rel.numel() else None, self.num_relations)
            colptr = pointers(self.col, self.num_cols)
            made = {
                "colptr": colptr,
                "col_row": self.head[order],
                "col_rel": self.rel[order] if self.rel.numel() else self.rel,
                "col_pos": order.int(),
                "col_part": partition(colptr),
            }
            self._keep(**made)
            self._plan_on_cuda()
        columns = (self.colptr, self.col_row, self.col_rel, self.col_pos, self.col_part)
        return columns  # type: ignore[return-value]

    def plan(self, columns: bool) -> tuple[Tensor, ...]:
        """The plan of the work, of `cuda_plan`. Made when first asked for, then kept."""
        if self.row_plan is None:
            made = cuda_plan.plan_row_order(self.rowptr, self.rel, self.num_relations)
            self._keep(row_plan=made)
        if columns and self.col_plan is None:
            self._keep(col_plan=tuple(cuda_plan.plan_rows(self.columns()[0])))
        return (*self.row_plan, *self.col_plan) if columns else self.row_plan  # type: ignore

    def tensors(self, columns: bool, plan: bool | None = None) -> list[Tensor]:
        """The graph as ops take it, in the order that csrc/ops.cpp documents.

        Args:
            columns: whether with the column order.
            plan: whether with the plan of the work; by default on CUDA, whose kernels need it.
        """
        listed = [self.rowptr, self.head, self.col, self.rel, self.perm]
        listed += [self.part, self.slot, self.slot_ptr, self.slot_perm]
        listed += self.columns() if columns else ()
        planned = self.device.type == "cuda" if plan is None else plan
        return [*listed, *self.plan(columns)] if planned else listed

    def _keep(self, **made: Any) -> None:
        for name, value in outliving(made).items():
            object.__setattr__(self, name, value)  # a cache, not a change of value

    def _plan_on_cuda(self: G) -> G:
        """Makes, on CUDA, the plan of what there is, which would have to wait for the device."""
        if self.device.type == "cuda":
            self.plan(columns=self.colptr is not None)
        return self

    def edge_mask(self, mask: Tensor, order: str = "caller") -> EdgeMask:
        """A mask of this graph's edges.

        Args:
            mask: bool [E] on the graph's device, True where an edge is kept.
            order: "caller" for the order the graph was built from, or "row" for row order, in which
                a contiguous mask is taken as it is: it shares the memory.

        Raises:
            TypeError: `mask` is no bool tensor.
            ValueError: shape, device or `order` do not fit.
        """
        self.check_mask("mask", mask)
        if order not in ("caller", "row"):
            raise ValueError(f"order is {order!r}, expected 'caller' or 'row'")
        return EdgeMask(self.to_row_order(mask) if order == "caller" else mask.contiguous(), self)

    def check_mask(self, name: str, mask: object) -> None:
        """Raises, with that name for it, where `mask` is no bool [E] on the graph's device."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name} is {kind}, expected a torch.bool tensor")
        check_dense(name, mask)
        if mask.shape != (self.num_edges,):
            raise ValueError(f"{name} has shape {list(mask.shape)}, expected [{self.num_edges}]")
        if mask.device != self.device:
            raise ValueError(f"{name} is on {mask.device}, expected {self.device}, as the graph")

    @torch.inference_mode(False)
    def to(self: G, device: torch.device | str) -> G:
        """The graph on `device`; itself where it is there already."""
        device = torch.device(device)
        if self.rowptr.to(device).device == self.device:
            return self
        moved: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                moved[f.name] = value.to(device)
            elif not isinstance(value, int):
                moved[f.name] = None  # plans and pairs: made anew where they are wanted
        return replace(self, **moved)._plan_on_cuda()

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the graph to `path` (torch.save of plain tensors and ints)."""
        content = {name: getattr(self, name) for name in self._saved()}
        torch.save({"kind": type(self).__name__, **content}, path)

    @classmethod
    def _saved(cls) -> list[str]:
        return [f.name for f in fields(cls) if not f.kw_only]

    @classmethod
    @torch.inference_mode(False)
    def load(cls: type[G], path: str | PathLike[str]) -> G:
        """Reads what `save` wrote, onto the CPU.

        Raises:
            ValueError: the file holds something else.
            OSError: it cannot be read.
        """
        content = unpickled(path)
        kind = content.pop("kind", None) if isinstance(content, dict) else None
        if kind != cls.__name__:
            raise ValueError(f"{path} holds {kind or 'no graph'}, expected a {cls.__name__}")
        if content.keys() != set(cls._saved()):
            raise ValueError(
                f"{path} lacks what a {kind} has, or has more: expected what this version saves"
            )
        return cls(**content)


def _build(
    head: Tensor, tail: Tensor, rel: Tensor | None, sizes: tuple[int, int, int]
) -> dict[str, Any]:
    """Row order, parts and slots, from validated ids."""
    num_rows, num_cols, num_relations = sizes
    order = sort_by(head, rel, num_relations)
    rowptr = pointers(head, num_rows)
    # The workspace of the relation gradients grows with parts times relations.
    most = (head.numel() + num_rows) // (SLOT_SHARE * max(num_relations, 1))
    part = partition(rowptr, min(MAX_PARTS, max(MIN_PARTS, most)))
    empty = torch.empty(0, dtype=torch.int32, device=head.device)
    slots = (empty, torch.zeros(1, dtype=torch.int64, device=head.device), empty)
    rel = empty if rel is None else rel.int()[order]
    if num_relations:
        slots = relation_slots(part, rel, num_relations)
    return {
        "rowptr": rowptr,
        "head": head.int()[order],
        "col": tail.int()[order],
        "rel": rel,
        "perm": order.int(),
        "part": part,
        "slot": slots[0],
        "slot_ptr": slots[1],
        "slot_perm": slots[2],
        "colptr": None,
        "col_row": None,
        "col_rel": None,
        "col_pos": None,
        "col_part": None,
        "num_rows": num_rows,
        "num_cols": num_cols,
        "num_relations": num_relations,
    }


@dataclass(frozen=True)
class RelGraph(_Graph):
    """A knowledge graph: edges (head, relation, tail), rows are heads, columns are tails.

    Built by `from_edges`. Duplicate edges and self-loops are kept as given, nodes without edges
    are allowed, relation ids may exceed 65,535.
    """

    relation_counts: Tensor  # int64 [num_relations]; given as None, counted when first asked for
    # What `ranks` keeps, int32 [E] each; not saved.
    rank: Tensor | None = field(default=None, kw_only=True)  # row order
    caller_rel: Tensor | None = field(default=None, kw_only=True)  # caller's order
    caller_rank: Tensor | None = field(default=None, kw_only=True)
    # What kgrec_fast.relation_pairs keeps; not saved.
    node_pairs: tuple[NodePairs, NodePairs] | None = field(default=None, kw_only=True)
    head_runs: HeadRuns | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relation_counts is None:
            object.__delattr__(self, "relation_counts")

    if not TYPE_CHECKING:  # where it would stand for every name

        def __getattr__(self, name: str) -> Any:
            """Counts the relations: a graph of a step's edges is made without, to save a pass."""
            if name != "relation_counts":
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self._keep(relation_counts=torch.bincount(self.rel, minlength=self.num_relations))
            return self.relation_counts

    @classmethod
    @torch.inference_mode(False)  # a graph serves training too, wherever it was built
    def from_edges(
        cls,
        edge_index: Tensor,
        edge_type: Tensor,
        *,
        num_nodes: int | None = None,
        num_rows: int | None = None,
        num_cols: int | None = None,
        num_relations: int | None = None,
        first_relation: int = 0,
    ) -> RelGraph:
        """Sorts edges into a graph; O(E) with a radix sort.

        Args:
            edge_index: int64 or int32 [2, E], heads and tails.
            edge_type: int64 or int32 [E], relation ids from ``first_relation``; the graph's own
                start from 0.
            num_nodes: number of rows and of columns; by default one more than the largest id.
            num_rows, num_cols: the two apart, for a bipartite graph.
            num_relations: by default as many as the largest relation id asks for.
            first_relation: the lowest relation id.

        Raises:
            TypeError: an argument is no integer tensor, or a size is no int.
            ValueError: a shape or device does not fit, or an id is out of range (the message names
                the first offending position).
        """
        check_edges("edge_index", edge_index, 2, None)
        check_edges("edge_type", edge_type, edge_index.size(1))
        if edge_type.device != edge_index.device:
            raise ValueError(
                f"edge_type is on {edge_type.device}, expected {edge_index.device}, as edge_index"
            )
        if num_nodes is not None and (num_rows is not None or num_cols is not None):
            raise ValueError("num_nodes is given together with num_rows or num_cols, expected one")
        head, tail = edge_index.detach()
        edge_type = edge_type.detach()
        if num_nodes is None and num_rows is None and num_cols is None:
            num_nodes = resolve_size("num_nodes", None, edge_index)
        rows = resolve_size("num_rows", num_nodes if num_rows is None else num_rows, head)
        cols = resolve_size("num_cols", num_nodes if num_cols is None else num_cols, tail)
        first_relation = check_int("first_relation", first_relation)
        kinds = edge_type - first_relation if first_relation else edge_type
        relations = resolve_size("num_relations", num_relations, kinds)
        check_ids("edge_index[0]", head, rows, "rows")
        check_ids("edge_index[1]", tail, cols, "columns")
        check_ids("edge_type", edge_type, relations, "relations", first_relation)
        counts = torch.bincount(kinds, minlength=relations)
        built = _build(head, tail, kinds, (rows, cols, relations))
        return cls(**built, relation_counts=counts)._plan_on_cuda()

    @property
    def edge_type(self) -> Tensor:
        """int64 [E] in the caller's order, rebuilt at each call."""
        return self.to_caller_order(self.rel.long())

    @property
    def relation_rank(self) -> Tensor:
        """How many edges of its relation have a lower id of the caller, int32 [E] in row order.

        Made when first asked for, then kept.
        """
        if self.rank is None:
            rank = self._caller_rank(self.edge_type)
            self._keep(rank=self.to_row_order(rank))
        return self.rank  # type: ignore[return-value]

    def ranks(self, edge_order: str = "row") -> tuple[Tensor, Tensor]:
        """Relation and `relation_rank` of each edge, int32 [E], in row order or the caller's.

        Made when first asked for, then kept: each order for itself.
        """
        if edge_order == "row":
            return self.rel, self.relation_rank
        if self.caller_rank is None:
            relation = self.edge_type
            self._keep(caller_rel=relation.int(), caller_rank=self._caller_rank(relation))
        return self.caller_rel, self.caller_rank  # type: ignore[return-value]

    def _caller_rank(self, relation: Tensor) -> Tensor:
        order = sort_by(relation, None, 0)
        before = self.relation_counts.cumsum(0) - self.relation_counts
        place = torch.arange(self.num_edges, device=self.device) - before[relation[order]]
        return torch.empty_like(order, dtype=torch.int32).index_copy_(0, order, place.int())


@dataclass(frozen=True)
class InteractionGraph(_Graph):
    """Interactions: edges (user, item) with an optional weight; rows are users, columns items."""

    weight: Tensor | None  # [E] in the caller's order
    # int64 [num_rows + 1], int32 [distinct edges]: see `untouched`. Not saved.
    touched_ptr: Tensor | None = field(default=None, kw_only=True)
    touched_gap: Tensor | None = field(default=None, kw_only=True)

    @classmethod
    @torch.inference_mode(False)  # a graph serves training too, wherever it was built
    def from_edges(
        cls,
        edge_index: Tensor,
        weight: Tensor | None = None,
        *,
        num_users: int | None = None,
        num_items: int | None = None,
        name: str = "edge_index",
    ) -> InteractionGraph:
        """Sorts interactions into a graph.

        Args:
            edge_index: int64 or int32 [2, E], users and items.
            weight: floating point [E] in the same order, or None.
            num_users, num_items: by default one more than the largest id.
            name: what errors call edge_index.

        Raises:
            TypeError, ValueError: as `RelGraph.from_edges`.
        """
        check_edges(name, edge_index, 2, None)
        if weight is not None:
            if not isinstance(weight, Tensor) or not weight.is_floating_point():
                raise TypeError("weight is no floating point tensor, expected one of shape [E]")
            if weight.shape != edge_index.shape[1:]:
                wanted = list(edge_index.shape[1:])
                raise ValueError(f"weight has shape {list(weight.shape)}, expected {wanted}")
            if weight.device != edge_index.device:
                raise ValueError(f"weight is on {weight.device}, expected {edge_index.device}")
        user, item = edge_index.detach()
        users = resolve_size("num_users", num_users, user)
        items = resolve_size("num_items", num_items, item)
        check_ids(f"{name}[0]", user, users, "users")
        check_ids(f"{name}[1]", item, items, "items")
        built = _build(user, item, None, (users, items, 0))
        return cls(**built, weight=weight)._plan_on_cuda()

    def untouched(self) -> tuple[Tensor, Tensor]:
        """What finds the items that a user has no edge to. Made when first asked for, then kept.

        With the distinct items t_0 < t_1 < ... of a user, t_j - j items below t_j are untouched:
        its gap. So the untouched item at place k is k + #{j: gap_j <= k}.

        Returns:
            Pointers into the gaps (int64 [num_rows + 1]), and the gaps of all users (int32).

        Raises:
            ValueError: a user has touched all items.
        """
        if self.touched_ptr is None:
            items = max(self.num_cols, 1)
            distinct = torch.unique(self.head.long() * items + self.col)
            user, item = distinct // items, distinct % items
            ptr = pointers(user, self.num_rows)
            full = (ptr.diff() >= self.num_cols).nonzero().flatten()
            if full.numel():
                raise ValueError(
                    f"user {int(full[0])} has touched all {self.num_cols} items, "
                    "expected at least one untouched item for every user"
                )
            place = torch.arange(distinct.numel(), device=self.device) - ptr[user]
            self._keep(touched_ptr=ptr, touched_gap=(item - place).int())
        return self.touched_ptr, self.touched_gap  # type: ignore[return-value]


def register_pytree(cls: type) -> None:
    """Makes a dataclass of tensors an input of torch.compile, torch.export and torch.load.

    Longer names come first: torch.export puts its inputs into its guards by replacing their names
    in order, where `rel` is also the beginning of `relation_counts`.
    """
    names = sorted((f.name for f in fields(cls)), key=len, reverse=True)
    name = f"kgrec_fast.{cls.__name__}"
    _pytree.register_dataclass(cls, field_names=names, serialized_type_name=name)
    torch.serialization.add_safe_globals([cls])  # for torch.load with weights_only


for _cls in (RelGraph, InteractionGraph, EdgeMask):
    register_pytree(_cls)
