"""`accelerate` and `restore`: a layer's class is replaced by a subclass with other methods.

Nothing else of a layer is touched: parameters, buffers, hooks, attributes, and what an optimizer
knows stay the very same objects.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from kgrec_fast.integrations.acceleration.recognition import (
    Interface,
    extra_defaults,
    find_interface,
    objection,
)
from kgrec_fast.integrations.acceleration.report import Layer, Report
from kgrec_fast.integrations.acceleration.trial import disagreement


class _Swapped(type):
    """Metaclass of the classes that `swapped_class` makes.

    Attributes:
        kgrec_fast_parts: The original class, and the class of the methods.
    """

    kgrec_fast_parts: tuple[type, type]


@functools.cache
def swapped_class(original: type, methods: type) -> type:
    """The subclass of a layer's class with the methods of another, one for each pair."""
    namespace: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    for name in vars(methods):
        if not name.startswith("__"):
            theirs, ours = getattr(original, name), getattr(methods, name)
            if extra_defaults(theirs, ours):
                namespace[name] = _unless_given(theirs, ours)
    result = _Swapped(original.__name__, (methods, original), namespace)
    result.kgrec_fast_parts = (original, methods)
    return result


def _pickled(made: _Swapped) -> str | tuple[Callable[..., Any], tuple[Any, ...]]:
    """These classes stand in no module where pickle could look them up: it calls what makes one.

    What was derived from one is found by its name, as other classes are.
    """
    return (swapped_class, made.kgrec_fast_parts) if _is_made(made) else made.__qualname__


def _is_made(kind: _Swapped) -> bool:
    """Whether `swapped_class` made it, rather than someone who derived from what it made."""
    return "kgrec_fast_parts" in vars(kind)


copyreg.pickle(_Swapped, _pickled)


def _unless_given(original: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
    """The fast method, but the original one where a parameter is used that only this one has."""
    signature, extras = inspect.signature(original), extra_defaults(original, fast)

    @functools.wraps(original)
    def method(*args: Any, **named: Any) -> Any:
        call = signature.bind(*args, **named)
        for name, default in extras.items():
            if call.arguments.pop(name, default) is not default:
                return original(*args, **named)
        return fast(*call.args, **call.kwargs)

    return method


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, expected a torch.nn.Module")


def accelerate(model: nn.Module, *, verify: bool = True) -> Report:
    """Swaps the computations of the KGRec layers of a model in place, for those of this package.

    ``AttnHGCN`` and ``Contrast``, as hopwise and the paper's code have them, are recognised by
    their attributes and the signatures of their methods, wherever they are in the model, whatever
    their classes are called; then they are tried out: a copy must give the same values and
    gradients on a small graph as what would take their place. Methods may have further parameters
    with defaults; where one is used, the original method runs. All methods of a layer are swapped
    or none.

    A layer's class becomes a subclass of it; everything else remains: parameters, state dict,
    hooks, the optimizer that holds the parameters. Moving, copying, pickling and loading work as
    before (who loads a pickled model needs this package). Hooks of a layer's parts, of its
    relation embedding and its dropout, are not called any more.

    What differs afterwards: message dropout follows torch's generator, but draws other numbers than
    ``torch.nn.Dropout`` from it: distributions agree, draws do not, and the trial, which is made in
    evaluation mode, does not see how a layer drops. On a GPU the negatives of the contrast are
    drawn there. Sums are formed in another order. Rows of zeros get a zero gradient. There are no
    second derivatives. Edge lists that are new at each call are sorted at each call: most of the
    speed of :class:`kgrec_fast.models.KGRec`, which draws masks, is not to be had in this way.

    Args:
        model: Any module, or one of these layers itself.
        verify: False leaves out the trial, where the layer's own packages are not installed.

    Returns:
        What was swapped, what was not, and why. Layers that were swapped before are left as they
        are, and said to be so.

    Raises:
        TypeError: ``model`` is no module.
    """
    _check_model(model)
    layers = []
    modules = list(model.named_modules())
    for name, module in modules:
        interface = find_interface(module)
        if interface is None:
            continue
        class_name = type(module).__name__
        reason = _swap(module, interface, verify)
        methods = () if reason else interface.method_names
        layers.append(Layer(name, class_name, interface.name, methods, reason or ""))
    return Report(type(model).__name__, len(modules), tuple(layers))


def _swap(layer: nn.Module, interface: Interface, verify: bool) -> str | None:
    """Gives a layer its new class; returns why not, where it stays as it is."""
    original: Any = type(layer)
    if isinstance(original, _Swapped):
        return "it was swapped before"
    reason = objection(layer, interface)
    if reason is not None:
        return reason
    try:
        swapped = swapped_class(original, interface.methods)
    except TypeError as error:  # a metaclass, or an __init_subclass__ that asks for something
        return f"its class takes no subclass: {error}"
    reason = disagreement(layer, swapped) if verify else None
    if reason is None:
        layer.__class__ = swapped
    return reason


def restore(model: nn.Module) -> tuple[str, ...]:
    """Undoes :func:`accelerate`: every layer has its own class again, and with it its methods.

    Args:
        model: The same model, a copy of it, or a part of it.

    Returns:
        Names of the layers that were given back their computations.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: A layer has got a class derived from that of :func:`accelerate` since, as
            ``torch.nn.utils.parametrize`` gives it; nothing is undone then.
    """
    _check_model(model)
    swapped = [(n, m) for n, m in model.named_modules() if isinstance(type(m), _Swapped)]
    for name, module in swapped:
        if not _is_made(type(module)):  # type: ignore[arg-type]
            raise ValueError(
                f"{name or 'the model itself'} is a {type(module).__name__}, a class derived after "
                "accelerate, expected the layer as accelerate left it: remove parametrizations "
                "first, or call restore before they are registered"
            )
    for _, module in swapped:
        module.__class__ = type(module).kgrec_fast_parts[0]
    return tuple(name for name, _ in swapped)
