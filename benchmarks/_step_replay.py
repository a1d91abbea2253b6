"""The operators of a training step by themselves: recorded once, then called again in their order.

No model, no autograd engine and no optimizer runs in between: what a step takes more than this is
what all of these take on the host. Choices and sizes are those of the step that was recorded.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

from kgrec_fast.models import KGRec


class _Recorder(TorchDispatchMode):
    """Writes what reaches the dispatcher into a graph; tensors from before are its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.root = fx.Graph(), nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[Tensor] = []  # or a later tensor could have the identity of one

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace != "profiler":  # in which the optimizer names its steps
            operands = map_aggregate((args, kwargs), self._operand)
            self._name_results(self.graph.call_function(func, *operands), result)
        return result

    def _operand(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in self._nodes:
            name = f"given_{len(self._kept)}"
            setattr(self.root, name, x.detach())
            self._name(self.graph.get_attr(name), x)
        return self._nodes[id(x)]

    def _name_results(self, node: fx.Node, result: object) -> None:
        if isinstance(result, Tensor):
            self._name(node, result)
        elif isinstance(result, list | tuple):
            for i, x in enumerate(result):
                if isinstance(x, Tensor):
                    self._name(self.graph.call_function(operator.getitem, (node, i)), x)

    def _name(self, node: fx.Node, x: Tensor) -> None:
        if id(x) not in self._nodes:  # else it was written in place
            self._nodes[id(x)] = node
            self._kept.append(x)


@dataclass
class Operator:
    """What a step calls at one place, and how many seconds each of these calls took."""

    name: str  # as in "aten::mm"
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Replay:
    """A step that was recorded.

    Attributes:
        run: Calls its operators.
        clocked: The same with a look at the clock before and after each.
        operators: Theirs, as far as `clocked` was called.
    """

    run: Callable[[], object]
    clocked: Callable[[], object]
    operators: list[Operator]


def _clocked(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        seconds.append(time.perf_counter() - begin)
        return result

    return call


def replay_of(
    model: KGRec, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], rng: Tensor
) -> Replay:
    """Makes two steps of a model, the second of them recorded, and returns what repeats it."""
    parameters = list(model.parameters())

    def step() -> None:
        loss = model.training_step(batch, rng)
        # Not backward(): it would copy gradients that the recorder holds.
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = grad
        optimizer.step()

    step()  # the optimizer makes its state
    recorder = _Recorder()
    with recorder:
        step()
    for parameter in parameters:
        parameter.grad = None
    recorder.graph.output(())
    run = _called(recorder)
    operators = []
    for node in recorder.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            operators.append(Operator(node.target.name()))
            node.target = _clocked(node.target, operators[-1].seconds)
            node.target.__name__ = f"clocked_{len(operators)}"
    return Replay(run, _called(recorder), operators)


def _called(recorder: _Recorder) -> Callable[[], object]:
    """What calls the functions of a record as it is now."""
    return torch.no_grad()(fx.GraphModule(recorder.root, recorder.graph))
