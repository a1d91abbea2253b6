"""Checks of arguments that are single numbers."""

from __future__ import annotations

import operator

import torch
from torch import Tensor


def check_int(name: str, value: object) -> int:
    """`value` as an int: from any kind of integer (NumPy's, a tensor of one), but from no bool.

    Symbolic ints stay what they are.

    Raises:
        TypeError: it is none; the message names the argument.
    """
    if type(value) is int:  # nearly always, and all that torch.compile has to look at
        return value
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    # torch.compile of torch 2.10 takes no index of an enum
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        try:
            return operator.index(value)
        except (TypeError, ValueError, RuntimeError):  # a tensor that is no integer
            pass
    raise TypeError(f"{name} is {_described(value)}, expected an int")


def check_number(name: str, value: object) -> float:
    """`value` as a float: from any kind of real number, but from no bool.

    Symbolic numbers stay what they are. A tensor of one number serves where it wants no gradient:
    none would reach it.

    Raises:
        TypeError: it is none; the message names the argument.
    """
    if type(value) is float or type(value) is int:
        return value
    if isinstance(value, torch.SymFloat | torch.SymInt):
        return value  # type: ignore[return-value]
    number = hasattr(value, "__float__") or hasattr(value, "__index__")
    if number and not isinstance(value, bool) and not getattr(value, "requires_grad", False):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):  # a tensor of several, say
            pass
    raise TypeError(f"{name} is {_described(value)}, expected a number")


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    wants = " that wants a gradient" if value.requires_grad else ""
    return f"a {value.dtype} tensor of shape {list(value.shape)}{wants}"
