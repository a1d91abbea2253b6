"""Relation attention on the emulator, pass by pass as the binding runs it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from emulator import Traffic, run
from graph_args import column_arguments, row_arguments, run_arguments
from torch import Tensor

from kgrec_fast import RelGraph
from kgrec_fast.cuda_plan import MIN_WORKSPACE
from kgrec_fast.ops._common import accumulate_dtype


class Problem(NamedTuple):
    graph: RelGraph
    query: Tensor
    value: Tensor
    relation: Tensor
    num_heads: int
    mask: Tensor | None = None
    zero_edges: Tensor | None = None

    def beside(self) -> dict[str, Tensor]:
        """The edges beside the graph, in the type of sums."""
        if self.zero_edges is None:
            return {}
        return {"zero_edges": self.zero_edges.to(accumulate_dtype(self.query.dtype))}


class Gradients(NamedTuple):
    query: Tensor
    value: Tensor
    relation: Tensor
    edge: Tensor  # [E, H, 2], row order: a_e and the gradient of its score


def not_written(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def attention(p: Problem, traffic: list[Traffic] | None = None, **how: Any) -> tuple[Tensor, ...]:
    """out and lse, in the type of sums; what was counted is added to `traffic`."""
    dtype = p.query.dtype
    out = not_written(p.graph.num_rows, p.query.size(1), dtype=accumulate_dtype(dtype))
    lse = not_written(p.graph.num_rows, p.num_heads, dtype=accumulate_dtype(dtype))
    counted = run(
        "relation_attention",
        **row_arguments(p.graph, p.mask, relations=True),
        dtype=dtype,
        num_heads=p.num_heads,
        query=p.query,
        value=p.value,
        relation=p.relation,
        **p.beside(),
        out=out,
        lse=lse,
        count=traffic is not None,
        **how,
    )
    if traffic is not None:
        traffic += counted
    return out, lse


def attention_backward(
    p: Problem,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    *,
    in_shared: bool,
    min_workspace: int = MIN_WORKSPACE,
    row_traffic: list[Traffic] | None = None,
    column_traffic: list[Traffic] | None = None,
    **how: Any,
) -> Gradients:
    """The row pass, then the column pass. grad_out is of the type of query."""
    dtype, sums, width = p.query.dtype, accumulate_dtype(p.query.dtype), p.query.size(1)
    graph, heads = p.graph, p.num_heads
    operands = {
        "dtype": dtype,
        "num_heads": heads,
        "query": p.query,
        "relation": p.relation,
        "grad_out": grad_out,
    }
    edge_grad = not_written(graph.num_edges, heads, 2, dtype=sums)
    grad_relation = torch.zeros(graph.num_relations, width, dtype=sums)
    from_rows = not_written(graph.num_rows, width, dtype=sums)
    counted = run(
        "relation_attention_backward",
        **row_arguments(graph, p.mask, relations=True),
        **run_arguments(graph, min_workspace),
        **operands,
        in_shared=in_shared,
        value=p.value,
        **p.beside(),
        out=out,
        lse=lse,
        grad_lse=grad_lse,
        edge_grad=edge_grad,
        grad_query=from_rows,
        grad_relation=grad_relation,
        count=row_traffic is not None,
        **how,
    )
    if row_traffic is not None:
        row_traffic += counted
    grad_query = not_written(graph.num_cols, width, dtype=dtype)
    grad_value = not_written(graph.num_cols, width, dtype=dtype)
    counted = run(
        "relation_attention_tails",
        **column_arguments(graph, p.mask, relations=True),
        **operands,
        edge_grad=edge_grad,
        addend=from_rows,
        grad_query=grad_query,
        grad_value=grad_value,
        count=column_traffic is not None,
        **how,
    )
    if column_traffic is not None:
        column_traffic += counted
    # Nodes that are no tail.
    rest = from_rows[graph.num_cols :].to(dtype)
    return Gradients(torch.cat([grad_query, rest]), grad_value, grad_relation, edge_grad)


def relation_gradient(
    p: Problem,
    grad_out: Tensor,
    inverse_count: Tensor,
    *,
    in_shared: bool,
    min_workspace: int = MIN_WORKSPACE,
    **how: Any,
) -> Tensor:
    """Of a relation mean of the values, in the type of sums."""
    result = torch.zeros(
        p.graph.num_relations, p.value.size(1), dtype=accumulate_dtype(p.value.dtype)
    )
    run(
        "relation_grad",
        **row_arguments(p.graph, p.mask, relations=True),
        **run_arguments(p.graph, min_workspace),
        in_shared=in_shared,
        dtype=p.value.dtype,
        x=p.value,
        left=grad_out,
        left_scale=inverse_count,
        grad_relation=result,
        **how,
    )
    return result
