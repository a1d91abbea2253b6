"""Steps on the CPU without the host in them: the operators of one, recorded and called again."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from kgrec_fast.ops._common import runs_native
from kgrec_fast.training.recording import Program, Recorder
from kgrec_fast.training.steps import Batch, Check, PlainStep, why_only_plain

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@dataclass
class _Recorded:
    program: Program
    with_grad: list[Tensor]  # the parameters whose gradients it gives after the loss
    run: Callable[..., tuple[Tensor, ...]] | None = None  # once a second step was the same


class RecordedStep(PlainStep):
    """Records a step, optimizer included, and calls its operators from then on.

    So neither the model's Python nor autograd runs any more; the numbers are those of plain steps,
    to the bit, gradients included. The first step runs plainly: the optimizer makes its state. The
    next two with a batch of the same sizes are recorded while they are made; are they not the same
    operators with the same arguments, :attr:`reason` says so, and all steps run plainly. What a
    step reads besides tensors (attributes of the model, the learning rate, which tensors are
    parameters) is looked at before each: if it changed, the next two are recorded anew. A model
    whose step depends on more (a number drawn in Python, say) must not be recorded.

    Args:
        model, optimizer, rng: as for `PlainStep`.

    Attributes:
        reason: Why steps run plainly; None where they need not.
    """

    MOST_SIZES = 4  # of batches that are recorded: an epoch has two
    MOST_IN_VAIN = 8  # recordings that a change makes useless, one after the other

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rng: Tensor) -> None:
        super().__init__(model, optimizer, rng)
        self.reason: str | None = None
        self._is_first = True
        self._parameters: list[Tensor] = []
        self._recorded: dict[Any, _Recorded] = {}  # by the sizes of the batch
        self._read: _Read | None = None  # by those
        self._in_vain = 0

    def __call__(self, batch: Batch, check: Check | None = None) -> Tensor:
        """Makes a step, see `PlainStep`."""
        plain = self.reason is not None or self._is_first or torch.is_anomaly_enabled()
        self._is_first = False
        if plain or not runs_native(self.rng.device):
            return super().__call__(batch, check)
        if self._read is None or not self._read.is_as_it_was():
            self._begin_anew()
            if self.reason is not None:
                return super().__call__(batch, check)
        sizes = _sizes(batch)
        before = self._recorded.get(sizes)
        if before is not None and before.run is not None:
            for parameter in self._parameters:  # first, as in a plain step
                parameter.grad = None
            loss, *grads = before.run(batch, check)
            for parameter, grad in zip(before.with_grad, grads, strict=True):
                parameter.grad = grad
            increment_version(self._parameters)  # nobody else counts that they were written
            return loss
        if before is None and len(self._recorded) == self.MOST_SIZES:
            return super().__call__(batch, check)
        return self._record(sizes, batch, check)

    def program(self, batch: Batch) -> Program | None:
        """What is called for a batch of these sizes; None where steps with it are not recorded."""
        recorded = self._recorded.get(_sizes(batch))
        return None if recorded is None or recorded.run is None else recorded.program

    def _begin_anew(self) -> None:
        in_vain = not any(recorded.run for recorded in self._recorded.values())
        self._in_vain = self._in_vain + len(self._recorded) if in_vain else 0
        self._recorded.clear()
        self._read = _Read(self.model, self.optimizer)
        self._parameters = self._read.parameters
        self.reason = why_not_recorded(self.model, self.optimizer)
        if self._in_vain >= self.MOST_IN_VAIN:
            self.reason = "attributes of the model or of the optimizer change from step to step"

    def _compiled(self, program: Program) -> Callable[..., tuple[Tensor, ...]]:
        return program.compiled()

    def _record(self, sizes: Any, batch: Batch, check: Check | None) -> Tensor:
        """A plain step, recorded while it is made."""
        inputs = {name: x.view_as(x) for name, x in batch.items()}  # each an object of its own
        recorder = Recorder(inputs)

        def look(loss: Tensor) -> None:
            with recorder.look(loss):
                if check is not None:
                    check(loss)

        with recorder:
            loss = super().__call__(inputs, look)
        with_grad = [p for p in self._parameters if p.grad is not None]
        grads = [p.grad for p in with_grad if p.grad is not None]
        program = recorder.program([loss, *grads])
        before = self._recorded.get(sizes)
        self.reason = recorder.reason
        if before is not None and self.reason is None:
            self.reason = program.difference(before.program)
        self._recorded[sizes] = recorded = _Recorded(program, with_grad)
        if self.reason is not None:
            self._recorded.clear()
        elif before is not None:
            recorded.run = self._compiled(program)
        return loss


def _sizes(batch: Batch) -> tuple[Any, ...]:
    return tuple((name, x.shape, x.stride(), x.dtype) for name, x in batch.items())


class _Read:
    """What a step reads besides the values of tensors, as it was: attributes of all modules, which
    tensors they and the optimizer hold and where these lie, and the settings of the optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        groups, modules = optimizer.param_groups, list(model.modules())
        self._groups = groups
        self.parameters = [p for group in groups for p in group["params"]]
        self._dicts = [vars(optimizer), optimizer.state, *groups, *optimizer.state.values()]
        for module in modules:
            self._dicts += [vars(module), module._parameters, module._buffers, module._modules]
        self._hooks = [getattr(module, name) for module in modules for name in _HOOKS]
        self._hooks += [getattr(optimizer, name) for name in _OPTIMIZER_HOOKS]
        self._objects, self._numbers = self._now()

    def is_as_it_was(self) -> bool:
        """Whether all of it is: of attributes, whether they are the same objects."""
        objects, numbers = self._now()
        alike = len(objects) == len(self._objects) and numbers == self._numbers
        return alike and all(map(operator.is_, objects, self._objects))

    def _now(self) -> tuple[list[Any], list[int]]:
        parameters = self.parameters
        objects = list(chain.from_iterable(map(dict.values, self._dicts)))
        objects += chain.from_iterable(g["params"] for g in self._groups)
        objects += (getattr(p, name, None) for p in parameters for name in _PARAMETER_HOOKS)
        numbers = [*map(len, self._hooks), *map(Tensor.data_ptr, parameters)]
        return objects, [*numbers, *(p.requires_grad for p in parameters)]


def why_not_recorded(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """Why steps of the model cannot be recorded, as far as it can be told before; else None."""
    device = next(model.parameters()).device
    if device.type != "cpu":
        return f"the model is on {device}, expected the CPU"
    if reason := why_only_plain(model, device):
        return reason
    modules = [m for m in model.modules() for hooks in _HOOKS if getattr(m, hooks)]
    if modules:
        return f"{type(modules[0]).__name__} has hooks, which would be called no more"
    if any(getattr(p, hooks, None) for p in model.parameters() for hooks in _PARAMETER_HOOKS):
        return "a parameter has hooks, which would be called no more"
    if any(getattr(optimizer, name) for name in _OPTIMIZER_HOOKS):
        return "the optimizer has hooks, which would be called no more"
    return None
