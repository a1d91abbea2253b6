"""Every public op on a graph: operands, arguments, and the comparison with float64 on the CPU."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kgrec_fast import RelGraph, ops
from kgrec_fast.graph import EdgeMask
from kgrec_fast.ops.random import Stream

sys.path.insert(0, str(Path(__file__).parent / "ops"))
from graph_helpers import Case, assert_as_good_as, operands, random_mask

WIDTH, HEADS = 64, 2
RNG = (123456789012345, 6)


@dataclass(frozen=True)
class Op:
    """An op on the graph of a case.

    Attributes:
        function: Its name in `kgrec_fast.ops`; the reference has "_reference" appended.
        leaves: Its floating operands in float64, those with a gradient, from a case and a width.
        arguments: All arguments but those that are given by name.
        named: The arguments that are given by name.
        masked: Whether it takes an edge mask.
        differentiable: Whether it has gradients.
    """

    function: str
    leaves: Callable[[Case, int], list[Tensor]]
    arguments: Callable[[Inputs], tuple]
    named: tuple[tuple[str, Any], ...] = ()
    masked: bool = True
    differentiable: bool = True


def _nodes(case: Case, width: int) -> list[Tensor]:
    return list(operands(case, width))


def _value_and_relation(case: Case, width: int) -> list[Tensor]:
    return _nodes(case, width)[1:]


def _query_and_relation(case: Case, width: int) -> list[Tensor]:
    return _nodes(case, width)[::2]


def _with_projection(case: Case, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return [_nodes(case, width)[0], weight * width**-0.5, _nodes(case, width)[2]]


def _two_layers(case: Case, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    shapes = ((24, width), (24,), (width, 24), (width,))
    dense = [torch.randn(s, generator=generator, dtype=torch.float64) / 5 for s in shapes]
    return [_nodes(case, width)[0], *dense]


def _both_sides(case: Case, width: int) -> list[Tensor]:
    return _nodes(case, width)[:2]


def _with_weights(case: Case, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    edges = case.edge_type.numel()
    return [_nodes(case, width)[0], torch.rand(edges, generator=generator, dtype=torch.float64)]


def _edge_rows(case: Case, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    edges = case.edge_type.numel()
    return [torch.randn(edges, width, generator=generator, dtype=torch.float64)]


def _edge_scores(case: Case, width: int) -> list[Tensor]:
    return _edge_rows(case, max(1, width // 32))  # as narrow as the heads of an attention


def _other(mask: EdgeMask | Tensor | None) -> EdgeMask | Tensor | None:
    """A second mask, where edges are in the caller's order."""
    return mask.flip(0) if isinstance(mask, Tensor) else mask


def _row_numbers(graph: RelGraph) -> Tensor:
    return torch.arange(graph.num_rows, device=graph.device) % 4


def _segment(c: Inputs) -> tuple:
    return c.leaves[0], c.graph.rowptr


def _scatter(c: Inputs) -> tuple:
    return c.leaves[0], c.graph.edge_index[0], 0, None, c.graph.num_rows


def _three(case: Case, width: int) -> list[Tensor]:
    """As many rows each; small, so that no sigmoid is near its ends."""
    query, value, _ = _nodes(case, width)
    return [query / 4, value / 4, query.flip(0) / 4]


def _contrast(c: Inputs) -> tuple:
    rows = c.leaves[0].shape[0]
    return *c.leaves, torch.arange(rows, device=c.leaves[0].device).roll(rows // 3), 0.7


def _edge_ends(case: Case, width: int) -> list[Tensor]:
    head, tail, relation = _nodes(case, width)
    ends = case.edge_index
    return [head[ends[0]] / 2, tail[ends[1]] / 2, relation / 2]


def _reconstruction(c: Inputs) -> tuple:
    return *c.leaves, c.graph.edge_type, (c.graph.edge_type % 3).to(c.leaves[0].dtype)


OPS = {
    "relation_attention": Op(
        "relation_attention", _nodes, lambda c: (*c.leaves, c.graph, c.heads, c.mask, True)
    ),
    "relation_attention, edges beside the graph": Op(
        "relation_attention",
        _nodes,
        lambda c: (*c.leaves, c.graph, c.heads, c.mask, True, _row_numbers(c.graph)),
    ),
    "projected_attention": Op(
        "projected_attention",
        _with_projection,
        lambda c: (*c.leaves, c.graph, c.heads, c.mask, True),
    ),
    "attention_and_mean": Op(
        "attention_and_mean",
        _with_projection,
        lambda c: (*c.leaves, c.graph, c.heads, c.mask, _other(c.mask)),
    ),
    "rationale_scores": Op(
        "rationale_scores",
        _query_and_relation,
        lambda c: (*c.leaves, c.graph, c.heads, c.mask),
        differentiable=False,
    ),
    "rationale_scores, no relation": Op(
        "rationale_scores",
        lambda case, width: _nodes(case, width)[:1],
        lambda c: (*c.leaves, None, c.graph, c.heads, c.mask),
        differentiable=False,
    ),
    "relation_mean": Op(
        "relation_mean", _value_and_relation, lambda c: (*c.leaves, c.graph, c.mask)
    ),
    "weighted_aggregate": Op(
        "weighted_aggregate", _with_weights, lambda c: (*c.leaves, c.graph, False, c.mask)
    ),
    "weighted_aggregate, transposed": Op(
        "weighted_aggregate", _with_weights, lambda c: (*c.leaves, c.graph, True, c.mask)
    ),
    "weighted_aggregate, no weights": Op(
        "weighted_aggregate",
        lambda case, width: _nodes(case, width)[:1],
        lambda c: (*c.leaves, None, c.graph, False, c.mask),
    ),
    "weighted_aggregate, row order": Op(
        "weighted_aggregate",
        _with_weights,
        lambda c: (*c.leaves, c.graph, False, c.mask, None, "row"),
    ),
    "edge_dot": Op("edge_dot", _both_sides, lambda c: (*c.leaves, c.graph, c.mask)),
    "edge_dot, row order": Op(
        "edge_dot", _both_sides, lambda c: (*c.leaves, c.graph, c.mask, "row")
    ),
    "edge_score_means": Op(
        "edge_score_means",
        _edge_rows,
        lambda c: (c.leaves[0][:, 0], c.graph, c.mask),
        differentiable=False,
    ),
    "edge_score_means, row order": Op(
        "edge_score_means",
        _edge_rows,
        lambda c: (c.leaves[0][:, 0], c.graph, c.mask, (c.graph.num_cols + 1) // 2, "row"),
        differentiable=False,
    ),
    "segment_sum": Op("segment_sum", _edge_rows, _segment, masked=False),
    "segment_mean": Op("segment_mean", _edge_rows, _segment, masked=False),
    "segment_softmax": Op("segment_softmax", _edge_scores, _segment, masked=False),
    "scatter_sum": Op("scatter_sum", _edge_rows, _scatter, masked=False),
    "scatter_mean": Op("scatter_mean", _edge_rows, _scatter, masked=False),
    "scatter_softmax": Op(
        "scatter_softmax",
        _edge_scores,
        lambda c: (c.leaves[0], c.graph.edge_index[0], None, c.graph.num_rows),
        masked=False,
    ),
    "dropout_normalize_add": Op(
        "dropout_normalize_add",
        lambda case, width: _nodes(case, width)[:2],
        lambda c: (*c.leaves, 0.3, c.rng),
        named=(("stream", int(Stream.USER_MESSAGE) + 1),),
        masked=False,
    ),
    "contrast_loss": Op(
        "contrast_loss",
        lambda case, width: _nodes(case, width)[:2],
        _contrast,
        masked=False,
    ),
    "projection_head": Op("projection_head", _two_layers, lambda c: (*c.leaves,), masked=False),
    "bpr_loss": Op("bpr_loss", _three, lambda c: (*c.leaves, 0.1), masked=False),
    "bpr_loss, log-sigmoid": Op(
        "bpr_loss",
        _three,
        lambda c: (*c.leaves, 0.1, c.leaves[0].detach()[:, 0] > 0),
        named=(("eps", 0.0),),
        masked=False,
    ),
    "reconstruction_loss": Op("reconstruction_loss", _edge_ends, _reconstruction, masked=False),
    "dropout_normalize_add, evaluation": Op(
        "dropout_normalize_add",
        lambda case, width: _nodes(case, width)[:2],
        lambda c: (*c.leaves, 0.3, None),
        named=(("training", False),),
        masked=False,
    ),
}


def finite(x: Tensor) -> Tensor:
    """Zeros in place of the infinities of empty rows and masked edges: they have no gradient."""
    return x.masked_fill(~torch.isfinite(x), 0)


def upstream(out: tuple[Tensor, ...]) -> list[Tensor]:
    """The gradients that come in: the same numbers on every device and in every dtype."""
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)
        for x in out
    ]


@dataclass(frozen=True)
class Inputs:
    """What an op is called with, on one device."""

    op: Op
    leaves: list[Tensor]
    graph: RelGraph
    mask: EdgeMask | Tensor | None
    rng: Tensor
    heads: int = HEADS

    @classmethod
    def make(
        cls,
        name: str,
        case: Case,
        masked: bool = False,
        dtype: torch.dtype = torch.float32,
        width: int = WIDTH,
        heads: int = HEADS,
    ) -> Inputs:
        op = OPS[name]
        mask = random_mask(case) if masked else None
        leaves = [x.to(dtype) for x in op.leaves(case, width)]
        return cls(op, leaves, case.build(), mask, torch.tensor(RNG), heads)

    def to(self, device: torch.device) -> Inputs:
        assert not isinstance(self.mask, EdgeMask)  # it belongs to a graph
        return dataclasses.replace(
            self,
            leaves=[x.to(device) for x in self.leaves],
            graph=self.graph.to(device),
            mask=None if self.mask is None else self.mask.to(device),
            rng=self.rng.to(device),
        )

    def double(self) -> Inputs:
        return dataclasses.replace(self, leaves=[x.double() for x in self.leaves])

    def outputs(self, suffix: str = "") -> tuple[Tensor, ...]:
        """Outputs, which may have a gradient where leaves want one."""
        function = getattr(ops, self.op.function + suffix)
        out = function(*self.op.arguments(self), **dict(self.op.named))
        return out if isinstance(out, tuple) else (out,)

    def run(self, suffix: str = "", grads: list[Tensor] | None = None) -> list[Tensor]:
        """All outputs, infinities included, and the gradients of all leaves."""
        leaves = [x.detach().requires_grad_(self.op.differentiable) for x in self.leaves]
        out = dataclasses.replace(self, leaves=leaves).outputs(suffix)
        values = [x.detach() for x in out]
        if not self.op.differentiable:
            return values
        grads = upstream(out) if grads is None else grads
        pulled = torch.autograd.grad([finite(x) for x in out], leaves, grads)
        return [*values, *pulled]


def cancels(exact: Tensor, largest: float) -> bool:
    """Whether a result in float64 is nothing but rounding."""
    return exact.numel() > 0 and 0 < float(finite(exact).abs().max()) <= 1e-14 * largest


def assert_right(inputs: Inputs, device: torch.device, found: list[Tensor] | None = None) -> None:
    """Outputs and gradients on the device, by the rule of `assert_as_good_as`."""
    found = inputs.to(device).run() if found is None else found
    theirs, exact = inputs.run("_reference"), inputs.double().run("_reference")
    assert len(found) == len(exact)
    largest = max((float(finite(x).abs().max()) for x in exact if x.numel()), default=0.0)
    for ours, plain, wanted in zip(found, theirs, exact, strict=True):
        assert ours.device.type == device.type
        ours = ours.cpu()
        # Infinities and NaN stand where they should, and nowhere else.
        assert torch.equal(ours.isneginf(), wanted.isneginf())
        assert bool((ours.isfinite() | ours.isneginf()).all())
        if ours.dtype == torch.float64:  # the oracle itself sums in some order
            torch.testing.assert_close(finite(ours), finite(wanted), rtol=1e-10, atol=1e-11)
            continue
        rounding = 16 * torch.finfo(ours.dtype).eps * largest
        if cancels(wanted, largest) and float(finite(ours).abs().max()) <= rounding:
            # It has no size but that of what was added up.
            assert ours.dtype == plain.dtype
            continue
        assert_as_good_as(finite(ours), finite(plain), finite(wanted))


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
