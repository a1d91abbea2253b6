"""Operators that were called once, recorded, to be called again without the Python between them.

What is recorded are the calls below autograd: of a training step those of forward, backward and
optimizer alike. A program of them does the same to the same bits, as long as nothing but the values
of tensors changes; see :class:`Recorder` for what is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

CHECK = "check"  # in the place of an operator: the caller's look at a value
# What gives another tensor for the same memory, which below autograd may stand for it.
_ALIASES = ("aten::alias", "aten::detach", "aten::lift_fresh")
_VIEWS = ("aten::view", "aten::_unsafe_view", "aten::expand")


@dataclass(frozen=True)
class Value:
    """A tensor of a program: a "constant", an "input" or a "result", and its number among them."""

    kind: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.number}"


@dataclass(frozen=True)
class Call:
    """An operator, its arguments with values for tensors, and its results.

    A result is None where it is no tensor, or one that the program had before (written in place).
    """

    function: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    results: tuple[Value | None, ...]
    is_list: bool

    @property
    def name(self) -> str:
        """As in "aten::mm"."""
        return CHECK if self.function == CHECK else str(self.function.name())

    @property
    def is_needed(self) -> bool:
        """Whether it does more than give results."""
        return self.function == CHECK or bool(self.function._schema.is_mutable)


def _values(x: Any) -> Iterator[Value]:
    """All values in nested arguments."""
    if isinstance(x, Value):
        yield x
    elif isinstance(x, list | tuple):
        for y in x:
            yield from _values(y)
    elif isinstance(x, Mapping):
        yield from _values(list(x.values()))


class Recorder(TorchDispatchMode):
    """Records the operators that are called inside of it.

    Tensors from outside are inputs, where they are named so, or constants: they are read and
    written where they lie. Arguments that are no tensors are recorded as they are. So that none of
    them comes from the values of tensors, no operator of torch may give Python a number or a tensor
    of a size that depends on them. Graphs of some edges may have one: see `Program.difference`.

    Args:
        inputs: Tensors that are others at each call, by name; each an object of its own.

    Attributes:
        reason: Why what was called cannot be a program; None where it can.
    """

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.reason: str | None = None
        self._inputs = list(inputs)
        self._constants: list[Tensor] = []
        self._calls: list[Call] = []
        self._results = 0
        self._looks = False
        self._known = WeakTensorKeyDictionary()
        for number, x in enumerate(inputs.values()):
            self._known[x] = Value("input", number)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if self._looks or func.namespace == "profiler":  # in which an optimizer names its steps
            return found
        results = found if isinstance(found, list | tuple) else (found,)
        self.reason = self.reason or _why_not(func, args, results)
        values, options = map_aggregate((args, kwargs), self._value)
        if func.name() in _ALIASES or (func.name() in _VIEWS and _is_alike(found, args[0])):
            self._known[found] = values[0]
        else:
            new = tuple(self._new(x) if isinstance(x, Tensor) else None for x in results)
            is_list = isinstance(found, list | tuple)
            self._calls.append(Call(func, values, options, new, is_list))
        return found

    def _value(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x not in self._known:
            self._known[x] = Value("constant", len(self._constants))
            self._constants.append(x)
        return self._known[x]

    def _new(self, x: Tensor) -> Value | None:
        if x in self._known:
            return None
        self._results += 1
        value = self._known[x] = Value("result", self._results)
        return value

    @contextmanager
    def look(self, x: Tensor) -> Iterator[None]:
        """Here a program lets its caller look at `x`; what is called inside is not recorded."""
        self._calls.append(Call(CHECK, (self._value(x),), {}, (), False))
        self._looks = True
        try:
            yield
        finally:
            self._looks = False

    def program(self, results: Sequence[Tensor]) -> Program:
        """What was recorded, as far as `results` and what is written in place need it."""
        values = [self._value(x) for x in results]
        wanted, calls = set(values), []
        for call in reversed(self._calls):
            if call.is_needed or not wanted.isdisjoint(call.results):
                wanted.update(_values((call.args, call.kwargs)))
                calls.append(call)
        constants = {v: self._constants[v.number] for v in wanted if v.kind == "constant"}
        inputs = {v: self._inputs[v.number] for v in wanted if v.kind == "input"}
        return Program(calls[::-1], inputs, constants, values)


@dataclass(frozen=True)
class Program:
    """Calls in their order, and which values are the results.

    Attributes:
        calls: The operators, see `Call`.
        inputs, constants: The names and tensors of those that these read.
        results: What `compiled` returns.
    """

    calls: list[Call]
    inputs: dict[Value, str]
    constants: dict[Value, Tensor]
    results: list[Value]

    def difference(self, other: Program) -> str | None:
        """What differs between this and another recording of the same; None where nothing does.

        A size that came from values of tensors and then stands among the arguments of an operator
        is seen here, where it was another one in the other.
        """
        for ours, theirs in zip(self.calls, other.calls, strict=False):
            if ours.name != theirs.name:
                return f"{theirs.name} was called in one step, {ours.name} in another"
            if ours != theirs:
                return f"the arguments of {ours.name} differ between steps"
        if len(self.calls) != len(other.calls) or self.results != other.results:
            counts = len(other.calls), len(self.calls)
            return f"{counts[0]} operators were called in one step, {counts[1]} in another"
        if not all(_is_same(x, other.constants[value]) for value, x in self.constants.items()):
            return "a tensor that is read was another one in each step"
        return None

    def compiled(
        self, wrapped: Callable[[Call, Callable[..., Any]], Callable[..., Any]] | None = None
    ) -> Callable[[Mapping[str, Tensor], Callable[[Tensor], None] | None], tuple[Tensor, ...]]:
        """A function of the inputs and of what `Recorder.look` was for: it is called there with
        that value, unless it is None.

        Args:
            wrapped: Gives what is to be called in the place of a call's operator.
        """
        namespace: dict[str, Any] = {"below_autograd": torch._C._AutoDispatchBelowAutograd}
        last = {value: place for place, call in enumerate(self.calls) for value in _touched(call)}
        for value in self.results:
            last.pop(value, None)
        lines = [f"{value.name} = inputs[{name!r}]" for value, name in self.inputs.items()]
        for place, call in enumerate(self.calls):
            arguments = [self._text(x, namespace) for x in call.args]
            arguments += [f"{k}={self._text(x, namespace)}" for k, x in call.kwargs.items()]
            if call.function == CHECK:
                lines.append(f"if check is not None: check({arguments[0]})")
            else:
                # That of the dispatcher, without the one in Python around it.
                function = getattr(call.function, "_op", call.function)
                name = f"call_{place}"
                namespace[name] = function if wrapped is None else wrapped(call, function)
                lines.append(_assigned(call) + f"{name}({', '.join(arguments)})")
            over = [v.name for v, end in last.items() if end == place and v.kind == "result"]
            if over:
                lines.append(f"del {', '.join(over)}")  # as soon as a step lets go of it, or sooner
        lines.append(f"return {self._text(tuple(self.results), namespace)}")
        body = "".join(f"        {line}\n" for line in lines)
        source = f"def run(inputs, check):\n    with below_autograd():\n{body}"
        exec(compile(source, "<recorded operators>", "exec"), namespace)
        run: Callable[..., tuple[Tensor, ...]] = namespace["run"]
        return run

    def _text(self, x: Any, namespace: dict[str, Any]) -> str:
        """An argument in the source: what no input or result is in is bound as a whole."""
        if isinstance(x, Value) and x.kind != "constant":
            return x.name
        if all(value.kind == "constant" for value in _values(x)):
            name = f"given_{len(namespace)}"
            namespace[name] = self._bound(x)
            return name
        parts = "".join(f"{self._text(y, namespace)}, " for y in x)
        return f"[{parts}]" if isinstance(x, list) else f"({parts})"

    def _bound(self, x: Any) -> Any:
        if isinstance(x, list | tuple):
            return [self._bound(y) for y in x]
        return self.constants[x] if isinstance(x, Value) else x


def _why_not(func: Any, args: Sequence[Any], results: Sequence[Any]) -> str | None:
    """Why a call cannot be part of a program; None where it can."""
    if any(isinstance(x, bool | int | float | complex) for x in results):
        return f"{func.name()} gives a value of a tensor to Python"
    if any(isinstance(x, list | tuple) for x in results):
        return f"{func.name()} gives a list among other results"
    if torch.Tag.inplace_view in func.tags:
        return f"{func.name()} gives a tensor another shape in place"
    if torch.Tag.dynamic_output_shape in func.tags:
        masks = (torch.bool, torch.uint8)
        if func.name() != "aten::index.Tensor" or any(
            x is not None and x.dtype in masks for x in args[1]
        ):
            return f"the size of what {func.name()} gives depends on values"
    return None


def _touched(call: Call) -> Iterator[Value]:
    yield from _values((call.args, call.kwargs))
    yield from filter(None, call.results)


def _assigned(call: Call) -> str:
    if not any(call.results):
        return ""
    names = [("_" if x is None else x.name) for x in call.results]
    return ", ".join(names) + (", = " if call.is_list and len(names) == 1 else " = ")


def _is_alike(x: Tensor, y: Tensor) -> bool:
    return (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Whether two constants are one: the same memory, or equal values."""
    return _is_alike(x, y) and (x.data_ptr() == y.data_ptr() or torch.equal(x, y))
