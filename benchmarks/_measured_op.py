"""What `run` knows of an op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kgrec_fast import ops

SCATTERED = "torch_scatter+pyg"

Call = Callable[..., Any]
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MeasuredOp:
    """An op, called with its leaves alone.

    Attributes:
        name: For the report.
        leaves: Shapes of the floating operands.
        ours, reference: The op and its plain PyTorch reference.
        usual: What is usually done instead, the baseline.
        baseline: The name of `usual`.
        forward, backward: Formulas of the least bytes; no backward where there is no gradient.
    """

    name: str
    leaves: Shapes
    ours: Call
    reference: Call
    usual: Call
    baseline: str
    forward: str
    backward: str | None = None


def measured(
    name: str,
    leaves: Shapes,
    arguments: Callable[..., tuple[Any, ...]],
    usual: Call,
    forward: str,
    backward: str | None = None,
    *,
    baseline: str = SCATTERED,
    **named: Any,
) -> MeasuredOp:
    """An op of `kgrec_fast.ops`: its name there, which a comma and a variant may follow."""

    def calling(suffix: str) -> Call:
        op = getattr(ops, name.partition(",")[0] + suffix)
        return lambda *x: op(*arguments(*x), **named)

    ours, reference = calling(""), calling("_reference")
    return MeasuredOp(name, leaves, ours, reference, usual, baseline, forward, backward)
