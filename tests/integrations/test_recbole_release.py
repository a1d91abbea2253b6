"""What is RecBole's alone: checkpoints that torch 2.6 and later refuse to load by default."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from framework_runs import build, options, quick_start


@pytest.fixture
def saved(data_path) -> str:
    built = build(options(data_path, epochs=1))
    trainer = built.trainer()
    trainer.fit(built.train, built.valid, verbose=False)
    return trainer.saved_model_file


def test_checkpoints_hold_more_than_weights(saved):
    """Why the trainer reads them itself; the default of this torch refuses."""
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(saved)


def test_the_trainer_reads_them(data_path, saved):
    built = build(options(data_path))
    trainer = built.trainer()
    before = built.model.gcn.W_Q.clone()
    trainer.evaluate(built.test, model_file=saved)
    loaded = torch.load(saved, weights_only=False)["state_dict"]
    assert torch.equal(built.model.gcn.W_Q, loaded["gcn.W_Q"])
    assert not torch.equal(before, loaded["gcn.W_Q"])


def test_recbole_reads_them_where_torch_is_told(saved, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    config, model, *_ = quick_start.load_data_and_model(saved)
    assert config["model"] == "KGRec"
    assert torch.equal(model.gcn.W_Q, torch.load(saved)["state_dict"]["gcn.W_Q"])


def test_defaults_are_recboles(data_path):
    """They differ from hopwise's."""
    config = build(options(data_path)).config
    assert (config["valid_metric"], config["seed"]) == ("MRR@10", 2020)
    assert Path(config["data_path"]).parent == data_path
