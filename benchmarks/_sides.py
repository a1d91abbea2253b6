"""Implementations of an op with operands of their own: what is timed, and compared before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import MismatchError, check_close
from benchmarks._measured_op import MeasuredOp


def as_tuple(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


class Side:
    """One implementation with operands of its own."""

    def __init__(self, call: Callable[..., Any], leaves: Sequence[Tensor]) -> None:
        self.call, self.leaves = call, [x.detach() for x in leaves]
        self.grads: list[Tensor] = []
        self.pass_back: Callable[[], object] = self.forward

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return as_tuple(self.call(*self.leaves))

    def both(self) -> list[Tensor]:
        """Outputs and gradients, from scratch."""
        out = self._outputs()
        return [*out, *torch.autograd.grad(out, self.leaves, self.grads)]

    def prepare_backward(self) -> None:
        """Runs forward once, for `pass_back` to be repeated."""
        out = self._outputs()
        self.pass_back = lambda: torch.autograd.grad(
            out, self.leaves, self.grads, retain_graph=True
        )

    def forget(self) -> None:
        """Lets go of what forward kept for `pass_back`."""
        self.pass_back = self.forward

    def _outputs(self) -> tuple[Tensor, ...]:
        for x in self.leaves:
            x.requires_grad_()
        out = as_tuple(self.call(*self.leaves))
        if not self.grads:
            generator = torch.Generator(out[0].device).manual_seed(1)
            self.grads = [_normal(x.shape, generator) for x in out]
        self.grads = [g.to(x.dtype) for g, x in zip(self.grads, out, strict=True)]
        return out


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


def operands(op: MeasuredOp, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Normal numbers; a square matrix is scaled as a projection, a vector is made of weights."""
    generator = torch.Generator(device).manual_seed(0)
    found = []
    for shape in op.leaves:
        x = _normal(shape, generator)
        if len(shape) == 1:
            x = x.abs()
        elif shape[0] == shape[1]:
            x = x * shape[0] ** -0.5
        found.append(x.to(dtype))
    return found


def results(side: Side, differentiable: bool) -> list[Tensor]:
    """Outputs, and gradients where there are any."""
    found = side.both() if differentiable else list(side.forward())
    return [x.detach() for x in found]


def check(
    op: MeasuredOp, leaves: Sequence[Tensor], with_oracle: bool = True
) -> tuple[list[Tensor], dict[str, float]]:
    """Our outputs and gradients, compared; and the largest errors, ours and the reference's.

    Args:
        op: What is called.
        leaves: Its operands.
        with_oracle: Compare with the reference in float64, from which ours may be twice as far as
            the reference in the type of the leaves; else with the latter alone.

    Raises:
        MismatchError: They differ by more.
    """
    ours, plain = Side(op.ours, leaves), Side(op.reference, leaves)
    differentiable = op.backward is not None
    mine = results(ours, differentiable)
    plain.grads = ours.grads
    theirs = results(plain, differentiable)
    names = [f"{op.name}: result {i}" for i in range(len(theirs))]
    if not with_oracle:
        worst = max(
            check_close(*each, tolerance=_tolerance(each[1]))
            for each in zip(names, mine, theirs, strict=True)
        )
        return mine, {"difference": worst}
    oracle = Side(op.reference, [x.double() for x in leaves])
    oracle.grads = ours.grads  # rounded already, as the leaves are
    exact = results(oracle, differentiable)
    worst = max(map(check_close, names, mine, theirs, exact))
    return mine, {"error": worst, "reference_error": max(map(_error, theirs, exact))}


def check_peer(side: Side, mine: Sequence[Tensor], differentiable: bool) -> None:
    """Raises a MismatchError where a peer's outputs and gradients are others than ours."""
    theirs = results(side, differentiable)
    if len(theirs) != len(mine):
        raise MismatchError(f"{len(theirs)} results, expected {len(mine)}")
    for number, (other, our) in enumerate(zip(theirs, mine, strict=True)):
        check_close(f"result {number}", other, our, tolerance=_tolerance(our))


def _tolerance(x: Tensor) -> float:
    return max(1e-4, 16 * torch.finfo(x.dtype).eps) if x.is_floating_point() else 0.0


def _error(found: Tensor, exact: Tensor) -> float:
    found, exact = found.double(), exact.double()
    return float((found - exact).abs().max()) / max(float(exact.abs().max()), 1e-30)
