"""Meta tensors: shapes and types of results and gradients, without numbers."""

from __future__ import annotations

import pytest
import torch
from pytorch_helpers import DIFFERENTIABLE, EXAMPLES, Example
from torch.utils import _pytree


def on_meta(x: object) -> object:
    return _pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), x)


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if EXAMPLES[n].masked])
def test_ops_on_graphs(name: str) -> None:
    example = Example(name)
    leaves, *others = on_meta(example.inputs)
    for leaf in leaves:
        leaf.requires_grad_()
    found, wanted = example(leaves, *others), example(*example.inputs)
    assert [(x.device.type, x.shape, x.dtype) for x in found] == [
        ("meta", x.shape, x.dtype) for x in wanted
    ]
    grads = torch.autograd.grad(found[0], leaves, torch.ones_like(found[0]), allow_unused=True)
    assert all(g is None or g.shape == x.shape for g, x in zip(grads, leaves, strict=True))
