"""What every op's public function does before it calls anything: choose, cast, check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

from kgrec_fast import _library
from kgrec_fast._numbers import check_int, check_number
from kgrec_fast.graph import EdgeMask, _Graph
from kgrec_fast.graph_build import check_dense as check_dense

_below_autograd = torch._C._AutoDispatchBelowAutograd
_ops = torch.ops.kgrec_fast
HALF_TYPES = (torch.bfloat16, torch.float16)
FLOAT_TYPES = (torch.float32, torch.float64, *HALF_TYPES)
TensorOp: TypeAlias = Callable[..., Tensor]
TensorsOp: TypeAlias = Callable[..., tuple[Tensor, ...]]
Inputs: TypeAlias = tuple[Any, ...]  # the arguments of an op
Gradients: TypeAlias = tuple[Tensor | list[None] | None, ...]  # one for each of them
_REFERENCES = "the references, under kgrec_fast.ops.use_reference(), have derivatives of all kinds"
_forced_reference = False  # a plain global: torch.compile looks into no ContextVar before 2.14


@contextmanager
def use_reference() -> Iterator[None]:
    """Inside, every op of the process runs as its plain PyTorch reference, binaries or not."""
    global _forced_reference
    before, _forced_reference = _forced_reference, True
    try:
        yield
    finally:
        _forced_reference = before


def runs_native(device: torch.device) -> bool:
    """Whether a call on `device` goes to a native kernel; warns once where none is there."""
    if _forced_reference:
        return False
    if _library.is_native(device):
        return True
    _library.warn_once(device)
    return False


def runs_cpu_op(device: torch.device) -> bool:
    """Whether an op that the CPU alone has (`_library.CPU_ONLY`) runs, and not torch's own."""
    return device.type != "cuda" and runs_native(device)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything shorter."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`."""
    # torch knows no autocast of meta tensors: to ask for it is an error.
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def autocast(*operands: Tensor | None, widen: bool = False) -> tuple[Tensor | None, ...]:
    """Casts floating tensors to autocast's dtype where it is on; leaves the rest to checks.

    With `widen`, for losses, half types to float32 instead, as torch casts those of its own.
    """
    tensors = [x for x in operands if isinstance(x, Tensor) and x.is_floating_point()]
    if not tensors or not is_autocast(tensors[0]):
        return operands
    device_type = tensors[0].device.type
    dtype = torch.float32 if widen else torch.get_autocast_dtype(device_type)

    def cast(x: Tensor | None) -> Tensor | None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x if widen and x.dtype not in HALF_TYPES else x.to(dtype)

    with torch.autocast(device_type, enabled=False):
        return tuple(cast(x) for x in operands)


def check_graph(graph: object, kind: type = _Graph, name: str = "graph") -> None:
    if not isinstance(graph, kind):
        wanted = "RelGraph or InteractionGraph" if kind is _Graph else kind.__name__
        raise TypeError(f"{name} is a {type(graph).__name__}, expected a {wanted}")


def check_matrix(name: str, x: object, rows: int, like: Tensor | None = None) -> None:
    """`x` is a floating [N >= rows, D] tensor, of the width, dtype and device of `like`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a torch.Tensor")
    check_dense(name, x)
    if x.dtype not in FLOAT_TYPES:
        raise TypeError(f"{name} has dtype {x.dtype}, expected float32, float64, bfloat16, float16")
    if x.dim() != 2 or x.size(1) < 1:
        raise ValueError(f"{name} has shape {list(x.shape)}, expected [N, D] with D >= 1")
    if x.size(0) < rows:
        raise ValueError(f"{name} has {x.size(0)} rows, expected at least {rows}")
    if like is None:
        return
    if x.size(1) != like.size(1):
        raise ValueError(f"{name} has {x.size(1)} columns, expected {like.size(1)}")
    if x.dtype != like.dtype:
        raise TypeError(f"{name} has dtype {x.dtype}, expected {like.dtype}, as the other operands")
    check_device(name, x, like.device)


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, expected {device}")


def check_heads(num_heads: object, width: int) -> int:
    heads = check_int("num_heads", num_heads)
    if heads < 1 or width % heads:
        raise ValueError(f"num_heads is {heads}, expected a divisor of the width {width}")
    return heads


def check_count(name: str, value: object) -> int:
    count = check_int(name, value)
    if count < 0:
        raise ValueError(f"{name} is {count}, expected a count >= 0")
    return count


def check_share(name: str, value: object) -> float:
    share = check_number(name, value)
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}, expected 0 <= {name} <= 1")
    return share


def check_order(name: str, order: object) -> None:
    """ "caller" or "row": which order of edges per-edge values are in."""
    if order not in ("caller", "row"):
        raise ValueError(f"{name} is {order!r}, expected 'caller' or 'row'")


def prepare_mask(
    graph: _Graph, mask: EdgeMask | Tensor | None, name: str = "edge_mask"
) -> EdgeMask | None:
    """An EdgeMask of `graph`, from one, from a bool tensor in the caller's order, or from None."""
    if mask is None:
        return None
    if not isinstance(mask, EdgeMask):
        graph.check_mask(name, mask)
        return EdgeMask(graph.to_row_order(mask), graph)
    if mask.row.shape != (graph.num_edges,) or mask.row.device != graph.device:
        raise ValueError(
            f"{name} covers {mask.row.numel()} edges on {mask.row.device}, "
            f"expected {graph.num_edges} on {graph.device}, as the graph"
        )
    return mask


def mask_tensors(mask: EdgeMask | None, columns: bool) -> tuple[Tensor | None, Tensor | None]:
    """(row mask, column mask) as ops take them; the second only where a pass on CUDA needs it."""
    if mask is None:
        return None, None
    return mask.row, mask.col if columns and mask.row.is_cuda else None


def kept_edges(graph: _Graph, mask: EdgeMask | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, heads, tails and relations (int64) of the unmasked edges, for the references."""
    if mask is None:
        positions = torch.arange(graph.num_edges, device=graph.device)
    else:
        positions = mask.row.nonzero().flatten()
    rel = graph.rel.index_select(0, positions) if graph.rel.numel() else graph.rel
    head, tail = graph.head.index_select(0, positions), graph.col.index_select(0, positions)
    return positions, head.long(), tail.long(), rel.long()


# -- gradients -------------------------------------------------------------------------------------


def transformed() -> bool:
    """Whether torch.func (vmap, grad, ...) is at work around this call."""
    return torch._C._are_functorch_transforms_active()


def is_batched(x: Tensor) -> bool:
    """Whether `x` stands for all samples of a torch.func.vmap, so that no value can be read."""
    return torch._C._functorch.is_batchedtensor(x)


def readable(tensor: Tensor) -> bool:
    """Whether values may be looked at: not where a GPU must be waited for, nor in tracing."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and not is_batched(tensor)
    return plain and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def keeps_to_ops() -> bool:
    """Whether gradients must be those of single ops: what torch.func and torch.export look into.

    An autograd function of several ops is opaque to both.
    """
    return transformed() or torch.compiler.is_exporting()


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow this call."""
    if not torch.is_grad_enabled():
        return False
    return transformed() or any(t is not None and t.requires_grad for t in tensors)


def differentiable(
    name: str, setup_context: Callable[..., None], backward: Callable[..., Gradients]
) -> Callable[..., Any]:
    """Registers an op's gradient, and returns a quicker way to call it, which torch.func takes too.

    A registered gradient walks through every list of tensors as through a tree, forward and
    backward: 0.1 to 0.3 ms a call with a graph; and torch.func refuses it. The function that is
    returned takes the op's arguments, and the same gradient, past that. torch.compile is sent to
    the op itself.
    """
    torch.library.register_autograd(f"kgrec_fast::{name}", backward, setup_context=setup_context)
    op, save = getattr(_ops, name), setup_context
    # A graph is one argument here, without a gradient.
    arguments = enumerate(op.default._schema.arguments)
    lists = [place for place, argument in arguments if str(argument.type) == "List[Tensor]"]

    class Quick(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            # Past the registered gradient, which would only send it on.
            with _below_autograd():
                output = op(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Gradients:
            # Not below autograd: hooks that bring saved tensors back, as checkpoints do, need it.
            results = list(backward(ctx, *grads))
            for place in lists:
                results[place] = None
            return tuple(results)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            raise RuntimeError(f"kgrec_fast::{name} has no forward-mode derivative; {_REFERENCES}")

    class Transformed(Quick):
        """In the form that torch.func wants; four times as slow to call."""

        @staticmethod
        def forward(*inputs: Any) -> Any:
            with _below_autograd():
                return op(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: Inputs, output: Any) -> None:
            save(ctx, inputs, output)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
            return one_by_one(call, info.batch_size, in_dims, inputs)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*inputs)
        if transformed():
            return Transformed.apply(*inputs)
        # Forward-mode derivatives, which are refused, go on where gradients are off.
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:
            return Quick.apply(*inputs)
        with _below_autograd():
            return op(*inputs)

    return call


def register_no_grad(name: str) -> Callable[..., Any]:
    """Gives an op an autograd rule that raises: no second derivative may be silently wrong."""

    def setup_context(ctx: object, inputs: Inputs, output: Any) -> None:
        pass

    def backward(ctx: object, *grads: Tensor) -> Gradients:
        raise RuntimeError(
            f"kgrec_fast::{name} is not differentiable (no double backward); {_REFERENCES}"
        )

    return differentiable(name, setup_context, backward)


# -- torch.func.vmap -------------------------------------------------------------------------------


def one_by_one(
    op: Callable[..., Any], batch_size: int, in_dims: tuple[Any, ...], inputs: Inputs
) -> tuple[Any, Any]:
    """Results of an op for each sample of a batch, stacked, and the dimension of the batch.

    Kernels know no batches; a graph is shared by all samples.
    """
    dims, values = _pytree.tree_leaves(list(in_dims), is_leaf=_is_none), list(inputs)
    leaves, spec = _pytree.tree_flatten(values, is_leaf=_is_none)
    if batch_size == 0:
        raise ValueError("torch.func.vmap has a batch of no samples, expected at least one")
    results = []
    for sample in range(batch_size):
        chosen = [
            x if dim is None else x.select(dim, sample) for x, dim in zip(leaves, dims, strict=True)
        ]
        results.append(op(*_pytree.tree_unflatten(chosen, spec)))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _is_none(x: object) -> bool:
    return x is None


def register_vmap() -> None:
    """Gives every op a rule for torch.func.vmap."""
    for name in _library.op_names():
        op = getattr(_ops, name)

        def rule(
            info: Any, in_dims: tuple[Any, ...], *inputs: Any, _op: Any = op
        ) -> tuple[Any, Any]:
            return one_by_one(_op, info.batch_size, in_dims, inputs)

        if not op.default._schema.is_mutable:
            torch.library.register_vmap(f"kgrec_fast::{name}", rule)
