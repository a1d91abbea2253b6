"""What backward keeps: recomputed by activation checkpointing, moved by hooks, guarded by torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_helpers import DIFFERENTIABLE, Example, Small, close, same
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kgrec_fast.nn import AttnHGCN

each_differentiable = pytest.mark.parametrize("name", DIFFERENTIABLE)
each_kind = pytest.mark.parametrize("reentrant", [False, True])


def leaves_of(example: Example) -> list[Tensor]:
    return [x.detach().clone().requires_grad_() for x in example.inputs[0]]


def plain(example: Example) -> tuple[Tensor, ...]:
    leaves = leaves_of(example)
    return torch.autograd.grad(example.loss(*leaves), leaves)


@each_kind
@each_differentiable
def test_checkpoint(name: str, reentrant: bool) -> None:
    example = Example(name)
    leaves = leaves_of(example)
    checkpoint(example.loss, *leaves, use_reentrant=reentrant).backward()
    same([x.grad for x in leaves], plain(example))


@each_differentiable
def test_hooks_are_asked_once_for_each_tensor(name: str) -> None:
    example = Example(name)
    leaves, asked = leaves_of(example), [0, 0]

    def pack(x: Tensor) -> Tensor:
        asked[0] += 1
        return x.detach().clone()

    def unpack(x: Tensor) -> Tensor:
        asked[1] += 1
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = example.loss(*leaves)
    same(torch.autograd.grad(loss, leaves), plain(example))
    assert 0 < asked[1] <= asked[0]


@each_differentiable
def test_changed_in_place(name: str) -> None:
    """Either it is an error, or the operand is not read in backward."""
    example = Example(name)
    wanted, refused = plain(example), []
    for changed in range(len(wanted)):
        leaves = leaves_of(example)
        operands = [x * 1 for x in leaves]
        loss = example.loss(*operands)
        with torch.no_grad():
            operands[changed].mul_(2)
        try:
            found = torch.autograd.grad(loss, leaves)
        except RuntimeError as error:
            refused.append(str(error))
        else:
            same(found, wanted)
    assert all("modified by an inplace operation" in message for message in refused)
    linear = name.startswith(("segment_", "scatter_", "dropout_", "weighted_aggregate, no weights"))
    assert linear or refused


@each_kind
def test_a_layer_with_dropout_in_a_checkpoint(reentrant: bool) -> None:
    """Which draws the same again."""
    model = Small.make().model
    gcn = AttnHGCN(8, 2, 9, 6, mess_dropout_rate=0.3)

    def gradients(through: Any) -> list[Tensor | None]:
        users, entities = (
            x.weight.detach().clone().requires_grad_()
            for x in (model.user_embedding, model.entity_embedding)
        )
        torch.manual_seed(3)
        args = (users, entities, model.kg, None, model.interactions, None)
        out = through(gcn, *args)
        sum(x.square().sum() for x in out).backward()
        return [users.grad, entities.grad]

    def within(layer: AttnHGCN, *args: Any) -> Any:
        return checkpoint(layer, *args, use_reentrant=reentrant)

    # That of old runs forward without a graph first, where the products are others.
    compare = close if reentrant else same
    compare(gradients(within), gradients(lambda layer, *args: layer(*args)))
