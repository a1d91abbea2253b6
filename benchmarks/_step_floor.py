"""What a training step cannot do without on a machine: its gathers, its products, its optimizer.

A pass over edges has to read a row of 4 D bytes for each unmasked edge, in an order that the graph
sets. Here the same rows are read in the same order and added up by ``embedding_bag``, which
computes next to nothing else. Attention reads two matrices by rows forward, two by rows and two by
columns backward; a relation mean one forward, one by rows and one by columns backward; a sum over
interactions one each way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._harness import interleave
from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.models import KGRec, StepMasks
from kgrec_fast.nn._row_graphs import pays, triples_of
from kgrec_fast.nn._rows import narrowed_mask

Call = Callable[[], object]


class Gathers:
    """Passes over edges, each as a call, and how often a step makes it."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.calls: list[Call] = []
        self.times: list[int] = []

    def add(
        self, graph: RelGraph | InteractionGraph, mask: EdgeMask | None, rows: int, cols: int
    ) -> None:
        """``rows`` passes in row order and ``cols`` passes in column order over unmasked edges."""
        colptr, col_row, _, col_pos, _ = graph.columns()
        for ptr, ids, source, times in (
            (graph.rowptr, graph.col, graph.num_cols, rows),
            (colptr, col_row, graph.num_rows, cols),
        ):
            if times == 0:
                continue
            if mask is not None:
                kept = mask.row if ids is graph.col else mask.row[col_pos]
                before = F.pad(kept.long().cumsum(0), (1, 0))
                ptr, ids = before[ptr], ids[kept]
            self.calls.append(_gather(ids.long(), ptr[:-1], torch.randn(source, self.width)))
            self.times.append(times)


def _gather(ids: Tensor, starts: Tensor, source: Tensor) -> Call:
    return lambda: F.embedding_bag(ids, source, starts, mode="sum")


def entities_read(model: KGRec, masks: StepMasks, items: Tensor) -> Tensor:
    """The nodes whose last hop a step over these items wants: int64, some of them twice."""
    kg = model.kg
    ends = [ids[masks.slots].long() for ids in (kg.head, kg.col)]
    return torch.cat([items, *ends]).clamp(max=kg.num_rows - 1)


def encoded_edges(masks: StepMasks) -> Tensor:
    """bool [E], row order: the sampled edges that are not masked."""
    return masks.masked.logical_not() & (True if masks.sampled is None else masks.sampled)


def gathers(model: KGRec, masks: StepMasks, users: Tensor, items: Tensor) -> Gathers:
    """The passes of a step over a batch's users and items (int64)."""
    kg, hops, inter, n_hops = model.kg, model.hops, model.interactions, model.gcn.n_hops
    found = Gathers(model.embedding_size)
    sampled = None if masks.sampled is None else kg.edge_mask(masks.sampled, "row")
    found.add(kg, sampled, 1, 0)  # rationale scores
    encoded = encoded_edges(masks)
    read, wanted = entities_read(model, masks, items), torch.arange(model.n_items)
    for view, rows, cols, last in ((encoded, 4, 2, read), (masks.contrast_edges, 2, 1, wanted)):
        mask: EdgeMask | None = kg.edge_mask(view, "row")
        for hop in range(n_hops):
            graph = kg if hop == 0 or hops.later is None else hops.later
            if hop == 1:
                mask = hops.later_mask(mask)
            if hop == n_hops - 1:
                mask = narrowed_mask(graph, mask, last)
            found.add(graph, mask, rows, cols)
    kept = None if masks.kept is None else inter.edge_mask(masks.kept, "row")
    for_batch = narrowed_mask(inter, kept, users)
    found.add(inter, for_batch, n_hops, n_hops)
    view_ui = inter.edge_mask(masks.contrast_interactions, "row")
    found.add(inter, view_ui, 2 * n_hops - 1, 2 * n_hops - 1)  # no users of the last hop
    return found


def projected_rows(model: KGRec, masks: StepMasks, read: Tensor) -> list[int]:
    """How many rows each hop projects: the last one, where few are read, these and their tails."""
    rows = [model.n_entities] + [model.kg.num_rows] * (model.gcn.n_hops - 1)
    later = model.hops.later or model.kg
    if len(rows) > 1 and pays(later, read):
        mask = model.hops.later_mask(model.kg.edge_mask(encoded_edges(masks), "row"))
        rows[-1] = triples_of(later, read, mask)[1].numel()
    return rows


def products(model: KGRec, masks: StepMasks, read: Tensor) -> list[Call]:
    """Projections of all hops and the MLPs of both views, forward and backward."""
    width = model.embedding_size
    calls: list[Call] = []
    for n in projected_rows(model, masks, read) + [model.n_items] * 4:
        x, weight = torch.randn(n, width), torch.randn(width, width)
        calls += product(x, weight, torch.randn(n, width))
    return calls


def product(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Call, Call]:
    """A product with a dense matrix, and the two of its gradients."""
    return lambda: x @ weight, lambda: (x.t() @ grad, grad @ weight.t())


def floor(model: KGRec, batch: dict[str, Tensor], rounds: int) -> dict[str, float]:
    """Seconds that a step spends at least on gathers, on products and on Adam (fused)."""
    masks = model.draw_masks(torch.tensor([1, 0]))
    items = torch.cat([batch["item_id"], batch["neg_item_id"]])
    passes = gathers(model, masks, batch["user_id"], items)
    dense = products(model, masks, entities_read(model, masks, items))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    optimizer = torch.optim.Adam(copies, fused=True)
    for parameter in copies:
        parameter.grad = torch.randn_like(parameter)
    timings = interleave([*passes.calls, *dense, optimizer.step], rounds=rounds)
    seconds = [timing.median for timing in timings]
    count = len(passes.calls)
    return {
        "gathers": sum(t * s for t, s in zip(passes.times, seconds[:count], strict=True)),
        "products": sum(seconds[count:-1]),
        "optimizer": seconds[-1],
    }
