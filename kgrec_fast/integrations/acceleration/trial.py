"""Trying out a layer on a small graph: its own methods beside those that would take their place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kgrec_fast.integrations.acceleration.layers import ContrastLayer, PaperLayer

USERS, ITEMS, NODES, EDGES, INTERACTIONS = 4, 5, 12, 40, 12
# Of float64, where sums of some tens of terms agree to 1e-13: other formulas are far away.
RELATIVE, ABSOLUTE = 1e-6, 1e-9

Case = tuple[str, tuple[Any, ...], dict[str, Any]]


def disagreement(layer: nn.Module, swapped: type) -> str | None:
    """Where the methods of ``swapped`` compute something else than those of ``layer``, or None.

    A copy of the layer in float64 on the CPU, with random parameters, runs both in evaluation mode:
    values and gradients are compared. The layer and torch's random state stay as they are.

    Args:
        layer: A layer whose interface was recognised.
        swapped: The class that it would get.
    """
    try:
        with torch.device("cpu"), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            return _first_difference(_trial_copy(layer), swapped)
    except Exception as error:  # whatever a stranger's layer may raise
        return f"it could not be tried out: {type(error).__name__}: {error}"


def _trial_copy(layer: nn.Module) -> nn.Module:
    result = copy.deepcopy(layer).to("cpu", torch.float64).eval().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return result


def _first_difference(layer: Any, swapped: type) -> str | None:
    original = type(layer)
    contrast = issubclass(swapped, ContrastLayer)
    for name, args, named in _contrast_cases() if contrast else _graph_cases(layer, swapped):
        results = []
        for kind in (original, swapped):
            layer.__class__ = kind
            results.append(_run(layer, name, args, named))
        (values, grads), (fast_values, fast_grads) = results
        call = f"{name}({', '.join(named)})" if named else name
        if not _agree(values, fast_values):
            return f"its {call} computes something else"
        if not _agree(grads, fast_grads):
            return f"its {call} has another gradient"
    return None


def _contrast_cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(1)
    yield "loss", tuple(torch.randn(2, 6, 8, generator=generator, dtype=torch.float64)), {}


def _graph_cases(layer: Any, swapped: type) -> Iterator[Case]:
    """Graphs with everything that is awkward: duplicates, self-loops, nodes and users alone."""
    generator = torch.Generator().manual_seed(1)
    paper = issubclass(swapped, PaperLayer)

    def integers(high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    width = layer.W_Q.shape[0]
    users, entities, item_attn = normal(USERS, width), normal(NODES, width), normal(ITEMS)
    rows = layer.relation_emb.shape[0] if paper else layer.relation_embedding.num_embeddings
    edges = torch.stack([integers(NODES - 4, EDGES), integers(NODES - 2, EDGES)])
    types = integers(rows, EDGES) + int(paper)
    inter = torch.stack([integers(USERS - 1, INTERACTIONS), integers(ITEMS, INTERACTIONS)])
    weight = torch.rand(INTERACTIONS, generator=generator, dtype=torch.float64) + 0.1
    both = (users, entities, edges, types, inter, weight)

    yield "forward", both, {}
    yield "forward", both, {"item_attn": item_attn}
    yield "forward_ui", (users, entities[:ITEMS], inter, weight), {}
    yield "forward_kg", (entities, edges, types), {}
    yield "shared_layer_agg", (*both, layer.relation_emb) if paper else both, {}
    yield "ui_agg", (users, entities[:ITEMS], inter, weight), {}
    yield "kg_agg", (entities, edges, types), {}
    yield "norm_attn_computer", (entities, edges), {}
    yield "norm_attn_computer", (entities, edges, types), {"return_logits": True}


def _run(
    layer: nn.Module, name: str, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """What a method returns, and the gradient of some sum of it to arguments and parameters."""
    leaves = []

    def leaf(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point() and not isinstance(x, nn.Parameter):
            x = x.clone().requires_grad_()
            leaves.append(x)
        return x

    torch.default_generator.manual_seed(0)
    result = getattr(layer, name)(*map(leaf, args), **{k: leaf(v) for k, v in named.items()})
    values = list(result) if isinstance(result, tuple) else [result]
    leaves += layer.parameters()
    grads = [torch.zeros_like(x) for x in leaves]
    total = sum((v * _weight(v)).sum() for v in values if v.requires_grad)
    if isinstance(total, Tensor):
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        grads = [z if g is None else g for z, g in zip(grads, found, strict=True)]
    return values, grads


def _weight(x: Tensor) -> Tensor:
    return torch.arange(1.0, x.numel() + 1, dtype=x.dtype).cos().view(x.shape)


def _agree(theirs: list[Tensor], ours: list[Tensor]) -> bool:
    return len(theirs) == len(ours) and all(
        t.shape == o.shape and torch.allclose(t, o, RELATIVE, ABSOLUTE)
        for t, o in zip(theirs, ours, strict=True)
    )
