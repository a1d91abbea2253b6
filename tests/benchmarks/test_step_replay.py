"""The operators of a training step, called again, do what the step does."""

import copy

import pytest
import torch

from benchmarks import _step_data, baselines
from benchmarks._step_replay import replay_of
from benchmarks.train_step import batches_of, make_models
from kgrec_fast.training.optimizer import make_adam

LEARNING_RATE = 1e-2


@pytest.mark.filterwarnings("error:mae_msize")
def test_a_replayed_step_changes_the_parameters_as_a_step_does():
    data = _step_data.load("any", quick=True)
    model, _ = make_models(data, baselines.find_baseline("torch"), mae_msize=8)
    (batch, *_), rng = batches_of(data, 64), torch.tensor([3, 1])
    other = copy.deepcopy(model)
    optimizer = make_adam(model, LEARNING_RATE, 0.0)

    again = replay_of(other, make_adam(other, LEARNING_RATE, 0.0), batch, rng)
    for steps in range(1, 5):
        optimizer.zero_grad()
        model.training_step(batch, rng).backward()
        optimizer.step()
        if steps > 2:  # those that replay_of made
            again.clocked() if steps == 4 else again.run()
        same = [
            torch.equal(ours, theirs)
            for ours, theirs in zip(model.parameters(), other.parameters(), strict=True)
        ]
        assert all(same) == (steps >= 2)
    assert all(parameter.grad is None for parameter in other.parameters())
