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
        leaves: Its floating operands in float64, those with a gradient, from a case.
        arguments: All arguments, from leaves, graph, mask and rng.
        named: The arguments that are given by name.
        masked: Whether it takes an edge mask.
        differentiable: Whether it has gradients.
    """

    function: str
    leaves: Callable[[Case], list[Tensor]]
    arguments: Callable[[list[Tensor], RelGraph, Tensor | None, Tensor], tuple]
    named: tuple[tuple[str, Any], ...] = ()
    masked: bool = True
    differentiable: bool = True

    def __call__(
        self, suffix: str, leaves: list[Tensor], graph: RelGraph, mask: Any, rng: Tensor
    ) -> tuple[Tensor, ...]:
        function = getattr(ops, self.function + suffix)
        out = function(*self.arguments(leaves, graph, mask, rng), **dict(self.named))
        return out if isinstance(out, tuple) else (out,)


def _nodes(case: Case) -> list[Tensor]:
    return list(operands(case, WIDTH))


def _value_and_relation(case: Case) -> list[Tensor]:
    return _nodes(case)[1:]


def _query_and_relation(case: Case) -> list[Tensor]:
    return _nodes(case)[::2]


def _with_projection(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return [_nodes(case)[0], weight * WIDTH**-0.5, _nodes(case)[2]]


def _with_weights(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    edges = case.edge_type.numel()
    return [_nodes(case)[0], torch.rand(edges, generator=generator, dtype=torch.float64)]


def _edge_rows(width: int) -> Callable[[Case], list[Tensor]]:
    def leaves(case: Case) -> list[Tensor]:
        generator = torch.Generator().manual_seed(4)
        edges = case.edge_type.numel()
        return [torch.randn(edges, width, generator=generator, dtype=torch.float64)]

    return leaves


def _segment(x: list[Tensor], graph: RelGraph, mask: Any, rng: Tensor) -> tuple:
    return x[0], graph.rowptr


def _scatter(x: list[Tensor], graph: RelGraph, mask: Any, rng: Tensor) -> tuple:
    return x[0], graph.edge_index[0], 0, None, graph.num_rows


OPS = {
    "relation_attention": Op(
        "relation_attention", _nodes, lambda x, g, m, r: (*x, g, HEADS, m, True)
    ),
    "projected_attention": Op(
        "projected_attention", _with_projection, lambda x, g, m, r: (*x, g, HEADS, m, True)
    ),
    "rationale_scores": Op(
        "rationale_scores",
        _query_and_relation,
        lambda x, g, m, r: (*x, g, HEADS, m),
        differentiable=False,
    ),
    "rationale_scores, no relation": Op(
        "rationale_scores",
        lambda case: _nodes(case)[:1],
        lambda x, g, m, r: (*x, None, g, HEADS, m),
        differentiable=False,
    ),
    "relation_mean": Op("relation_mean", _value_and_relation, lambda x, g, m, r: (*x, g, m)),
    "weighted_aggregate": Op(
        "weighted_aggregate", _with_weights, lambda x, g, m, r: (*x, g, False, m)
    ),
    "weighted_aggregate, transposed": Op(
        "weighted_aggregate", _with_weights, lambda x, g, m, r: (*x, g, True, m)
    ),
    "weighted_aggregate, no weights": Op(
        "weighted_aggregate",
        lambda case: _nodes(case)[:1],
        lambda x, g, m, r: (*x, None, g, False, m),
    ),
    "segment_sum": Op("segment_sum", _edge_rows(WIDTH), _segment, masked=False),
    "segment_mean": Op("segment_mean", _edge_rows(WIDTH), _segment, masked=False),
    "segment_softmax": Op("segment_softmax", _edge_rows(HEADS), _segment, masked=False),
    "scatter_sum": Op("scatter_sum", _edge_rows(WIDTH), _scatter, masked=False),
    # Its gradient has a test of its own, see test_gradient_of_scatter_mean.
    "scatter_mean": Op(
        "scatter_mean", _edge_rows(WIDTH), _scatter, masked=False, differentiable=False
    ),
    "scatter_softmax": Op(
        "scatter_softmax",
        _edge_rows(HEADS),
        lambda x, g, m, r: (x[0], g.edge_index[0], None, g.num_rows),
        masked=False,
    ),
    "dropout_normalize_add": Op(
        "dropout_normalize_add",
        lambda case: _nodes(case)[:2],
        lambda x, g, m, r: (*x, 0.3, r),
        named=(("stream", int(Stream.USER_MESSAGE) + 1),),
        masked=False,
    ),
    "dropout_normalize_add, evaluation": Op(
        "dropout_normalize_add",
        lambda case: _nodes(case)[:2],
        lambda x, g, m, r: (*x, 0.3, None),
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
    mask: Tensor | None
    rng: Tensor

    @classmethod
    def make(
        cls, name: str, case: Case, masked: bool = False, dtype: torch.dtype = torch.float32
    ) -> Inputs:
        op = OPS[name]
        mask = random_mask(case) if masked else None
        leaves = [x.to(dtype) for x in op.leaves(case)]
        return cls(op, leaves, case.build(), mask, torch.tensor(RNG))

    def to(self, device: torch.device) -> Inputs:
        return Inputs(
            self.op,
            [x.to(device) for x in self.leaves],
            self.graph.to(device),
            None if self.mask is None else self.mask.to(device),
            self.rng.to(device),
        )

    def double(self) -> Inputs:
        return dataclasses.replace(self, leaves=[x.double() for x in self.leaves])

    def outputs(self, suffix: str = "") -> tuple[Tensor, ...]:
        """Outputs, which may have a gradient where leaves want one."""
        return self.op(suffix, self.leaves, self.graph, self.mask, self.rng)

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


def assert_right(inputs: Inputs, device: torch.device, found: list[Tensor] | None = None) -> None:
    """Outputs and gradients on the device, by the rule of `assert_as_good_as`."""
    found = inputs.to(device).run() if found is None else found
    theirs, exact = inputs.run("_reference"), inputs.double().run("_reference")
    assert len(found) == len(exact)
    for ours, plain, wanted in zip(found, theirs, exact, strict=True):
        assert ours.device.type == device.type
        ours = ours.cpu()
        # Infinities and NaN stand where they should, and nowhere else.
        assert torch.equal(ours.isneginf(), wanted.isneginf())
        assert bool((ours.isfinite() | ours.isneginf()).all())
        if ours.dtype == torch.float64:  # the oracle itself sums in some order
            torch.testing.assert_close(finite(ours), finite(wanted), rtol=1e-10, atol=1e-11)
            continue
        assert_as_good_as(finite(ours), finite(plain), finite(wanted))


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
