"""In place of torch_scatter: sums, means and softmax, with its names, arguments and results.

    from kgrec_fast.integrations.torch_scatter import scatter_mean, scatter_sum

Code that imports torch_scatter itself finds this module under that name after

    sys.modules["torch_scatter"] = sys.modules["torch_scatter.composite"] = (
        kgrec_fast.integrations.torch_scatter
    )

Where torch_geometric is used too, import it before: it would ask for more than there is here.

What differs: half types accumulate in float32 and counts are exact, results are bitwise repeatable,
the index may be int32, and one out of range is a ValueError that names the position. The functions
cannot be scripted by `torch.jit.script`, and softmax has no second derivative. There is no minimum,
maximum, product, standard deviation, log-softmax and log-sum-exp, and nothing that begins with
segment or gather.
"""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from kgrec_fast import ops
from kgrec_fast.ops import scatter_mean, scatter_sum

__all__ = ["scatter", "scatter_add", "scatter_mean", "scatter_softmax", "scatter_sum"]

scatter_add = scatter_sum

_REDUCTIONS = {"sum": scatter_sum, "add": scatter_sum, "mean": scatter_mean}


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """:func:`~kgrec_fast.ops.scatter_sum` or :func:`~kgrec_fast.ops.scatter_mean`.

    Args:
        src, index, dim, out, dim_size: As there.
        reduce: "sum", "add" (the same) or "mean".

    Raises:
        ValueError: ``reduce`` is something else.
        TypeError, ValueError: As there.
    """
    if reduce not in _REDUCTIONS:
        raise ValueError(f"reduce is {reduce!r}, expected one of {', '.join(_REDUCTIONS)}")
    return _REDUCTIONS[reduce](src, index, dim, out, dim_size)


def scatter_softmax(
    src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None
) -> Tensor:
    """:func:`kgrec_fast.ops.scatter_softmax` in the arguments of `torch_scatter.composite`.

    Args:
        src: [.., E, ..], floating point.
        index: int64 or int32, [E] or anything that broadcasts as in ``scatter_sum``.
        dim: Dimension of src along which the index runs.
        dim_size: Number of groups; the largest index plus one where absent.

    Returns:
        [.., E, ..], dtype of src.

    Raises:
        TypeError, ValueError: As in :func:`kgrec_fast.ops.scatter_softmax`.
    """
    return ops.scatter_softmax(src, index, num_nodes=dim_size, dim=dim)


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(__all__)}")
