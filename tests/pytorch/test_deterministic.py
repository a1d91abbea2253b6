"""torch.use_deterministic_algorithms(True): everything runs, to the same bits.

It also fills memory that is allocated and not yet written with NaN, so that a kernel that leaves
out a part of its result, or reads it before it is written, shows.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytorch_helpers import EXAMPLES, Example, Small, relational_layers, same
from torch import Tensor

from kgrec_fast.training.optimizer import make_adam
from kgrec_fast.training.steps import PlainStep


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def results(name: str) -> list[Tensor]:
    """Outputs and gradients."""
    example = Example(name, torch.float32)
    if not example.of.op.differentiable:
        return list(example(*example.inputs))
    leaves = [x.requires_grad_() for x in example.inputs[0]]
    out = example(*example.inputs)
    return [*(x.detach() for x in out), *torch.autograd.grad(example.loss(*leaves), leaves)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_ops(name: str, request: pytest.FixtureRequest) -> None:
    wanted = results(name)
    request.getfixturevalue("deterministic")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        same(results(name), wanted)


@pytest.mark.parametrize("name", ["KGIN", "KGCL", "KGAT", "R-GAT"])
def test_relational_layers(name: str, request: pytest.FixtureRequest) -> None:
    def run() -> list[Tensor]:
        layer, args = relational_layers(Small.make())[name]
        out = layer(*args)
        out = out if isinstance(out, tuple) else (out,)
        loss = sum(y.square().sum() for y in out)
        return [*out, *torch.autograd.grad(loss, list(layer.parameters()))]

    wanted = run()
    request.getfixturevalue("deterministic")
    same(run(), wanted)


def trained(steps: int) -> list[Tensor]:
    """Losses and parameters of a few steps of training, negatives drawn, and its scores."""
    small = Small.make()
    del small.batch["neg_item_id"]
    step = PlainStep(small.model, make_adam(small.model, 1e-2, 1e-4), small.rng.clone())
    losses = [step(small.batch) for _ in range(steps)]
    small.model.eval()
    return [*losses, *small.model.parameters(), *small.model.embeddings(), small.model.rationales()]


def test_training(request: pytest.FixtureRequest) -> None:
    wanted = trained(4)
    assert all(bool(torch.isfinite(x).all()) for x in wanted)
    request.getfixturevalue("deterministic")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        same(trained(4), wanted)
