"""Graphs as arguments of entry points; graph_args.h makes views of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kgrec_fast import InteractionGraph, RelGraph, cuda_plan


def row_arguments(
    graph: RelGraph | InteractionGraph, mask: Tensor | None = None, *, relations: bool
) -> dict[str, Any]:
    """Row order and its plan.

    Args:
        mask: bool [E] in the caller's order.
        relations: whether the entry point asks for those of the edges.
    """
    return {
        "rowptr": graph.rowptr,
        "col": graph.col,
        "rel": graph.rel if relations else None,
        "row_mask": None if mask is None else graph.edge_mask(mask).row,
        **cuda_plan.plan_rows(graph.rowptr)._asdict(),
    }


def column_arguments(
    graph: RelGraph | InteractionGraph, mask: Tensor | None = None, *, relations: bool
) -> dict[str, Any]:
    """Column order and its plan, as `row_arguments`."""
    colptr, row, rel, pos, _ = graph.columns()
    plan = cuda_plan.plan_rows(colptr)._asdict()
    return {
        "colptr": colptr,
        "col_row": row,
        "col_rel": rel if relations else None,
        "col_pos": pos,
        "col_mask": None if mask is None else graph.edge_mask(mask).col,
        **{f"col_{name}": value for name, value in plan.items()},
    }


def run_arguments(graph: RelGraph, min_workspace: int = cuda_plan.MIN_WORKSPACE) -> dict[str, Any]:
    """The plan of runs; a smaller `min_workspace` (from 2 * CHUNK on) makes more tiles."""
    rows = cuda_plan.plan_rows(graph.rowptr)
    runs = cuda_plan.plan_runs(graph.rowptr, graph.rel, graph.num_relations, rows, min_workspace)
    places = cuda_plan.workspace_rows(graph.num_rows, runs.run_perm.numel(), min_workspace)
    return {
        **runs._asdict(),
        "num_relations": graph.num_relations,
        "workspace_rows": places,
    }
