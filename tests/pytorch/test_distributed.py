"""DistributedDataParallel on gloo: two processes, half of the batch each, one gradient."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_helpers import Small, same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kgrec_fast import ops
from kgrec_fast.models import KGRec

PROCESSES, STEPS = 2, 3


class TrainingStep(nn.Module):
    """The step as a forward, which is what DistributedDataParallel wraps."""

    def __init__(self, model: KGRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], rng: Tensor) -> Tensor:
        return self.model.training_step(batch, rng)


def make(hyper: dict[str, Any], seed: int = 1) -> Small:
    small = Small.make(seed, **hyper)
    small.model.double()
    return small


def batches(small: Small) -> list[dict[str, Tensor]]:
    """Of 16 pairs each, their negatives drawn together."""
    drawn = []
    for number in range(STEPS):
        batch = {n: small.batch[n].roll(number) for n in ("user_id", "item_id")}
        rng = small.rng + torch.tensor([0, number])
        batch["neg_item_id"] = ops.sample_negatives(batch["user_id"], small.model.interactions, rng)
        drawn.append(batch)
    return drawn


def train(step: nn.Module, small: Small, share: slice) -> list[Tensor]:
    """Steps on a share of each batch: gradients of the first, and parameters at the end."""
    optimizer = torch.optim.Adam(step.parameters(), lr=1e-2)
    gradients: list[Tensor] = []
    for number, batch in enumerate(batches(small)):
        optimizer.zero_grad()
        part = {name: ids[share] for name, ids in batch.items()}
        step(part, small.rng + torch.tensor([0, number])).backward()
        gradients = gradients or [p.grad.clone() for p in step.parameters() if p.grad is not None]
        optimizer.step()
    return [*gradients, *(p.detach().clone() for p in step.parameters())]


def work(rank: int, folder: str, hyper: dict[str, Any], unused: bool) -> None:
    """One process; the second starts from other parameters, which are those of the first then."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    small = make(hyper)
    with torch.no_grad():
        for parameter in small.model.parameters():
            parameter.add_(rank)
    step = DistributedDataParallel(TrainingStep(small.model), find_unused_parameters=unused)
    half = 16 // PROCESSES
    result = train(step, small, slice(rank * half, (rank + 1) * half))
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()  # neither leaves while the other still talks to it
    dist.destroy_process_group()
    # torch keeps the group of any DistributedDataParallel alive after that, and its threads with
    # it; an interpreter that ends while they run may abort. So this one does not end by itself.
    os._exit(0)


@pytest.mark.parametrize(
    ("hyper", "unused"),
    [
        ({}, False),
        ({"node_dropout_rate": 0.0, "mess_dropout_rate": 0.0}, False),
        ({"context_hops": 0}, True),
    ],
    ids=["default", "no dropout", "no hops"],
)
def test_two_processes_have_the_gradients_of_one(
    hyper: dict[str, Any], unused: bool, tmp_path: Path
) -> None:
    mp.spawn(work, args=(str(tmp_path), hyper, unused), nprocs=PROCESSES, join=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    same(first, second)
    small = make(hyper)
    wanted = train(TrainingStep(small.model), small, slice(None))
    assert len(first) == len(wanted)
    for ours, theirs in zip(first, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hops", [0, 1, 2])
def test_parameters_without_gradient(hops: int) -> None:
    """Those for which DistributedDataParallel wants find_unused_parameters: none but W_Q, where
    nothing is propagated.
    """
    small = Small.make(context_hops=hops)
    small.loss().backward()
    without = {name for name, p in small.model.named_parameters() if p.grad is None}
    assert without == ({"gcn.W_Q"} if hops == 0 else set())
