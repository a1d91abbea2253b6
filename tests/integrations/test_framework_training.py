"""Training in a framework, from its entry points to checkpoints in a fresh process."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_runs import (
    FRAMEWORK,
    PLANTED,
    build,
    framework_trainer,
    framework_utils,
    integration,
    options,
    python,
    run,
)

# Knows nothing of kgrec_fast: what it needs follows from the checkpoint.
EVALUATE = f"""
import json, sys
from {FRAMEWORK}.quick_start.quick_start import load_data_and_model
from {FRAMEWORK}.utils import get_trainer
file = sys.argv.pop()
config, model, dataset, train, valid, test = load_data_and_model(file)
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
result = trainer.evaluate(test, load_best_model=False)
print(json.dumps([type(model).__module__, {{k: float(v) for k, v in result.items()}}]))
"""
# RecBole's own way to read a checkpoint needs this from torch 2.6 on; its trainer does not.
WHOLE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"} if FRAMEWORK == "recbole" else {}


def checkpoints(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob("*.pth"))


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


@pytest.fixture
def declining(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every evaluation on valid seems worse than the one before."""
    scores = iter(range(1000, 0, -1))
    monkeypatch.setattr(framework_trainer, "calculate_valid_score", lambda *_: next(scores) / 1000)


def plain(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


def best_score(result: dict[str, Any]) -> float:
    """hopwise has one score for each task."""
    score = result["best_valid_score"]
    return next(iter(score.values())) if isinstance(score, dict) else score


def test_learns_ml_100k_by_name():
    """The framework's own copy of ml-100k; chance is below 0.02."""
    settings = {"epochs": 2, "eval_step": 2, "show_progress": False, "valid_metric": "NDCG@10"}
    result = run(model="KGRec", dataset="ml-100k", config_dict=settings)
    assert 0.12 < best_score(result) < 0.5
    assert 0.12 < result["test_result"]["ndcg@10"] < 0.5
    (file,) = checkpoints("saved")
    checkpoint = read(file)
    assert checkpoint["epoch"] == 1
    sizes = [tuple(checkpoint["state_dict"][name].shape) for name in list(checkpoint["state_dict"])]
    assert sizes[3] == (25, 64)  # 24 relations, one for padding


def test_trains_by_class(data_path):
    settings = options(data_path, epochs=2, checkpoint_dir="by_class")
    by_class = run(model=integration.KGRec, dataset=PLANTED, config_dict=dict(settings))
    settings["checkpoint_dir"] = "by_name"
    by_name = run(model="KGRec", dataset=PLANTED, config_dict=settings)
    assert by_class == by_name
    states = [read(checkpoints(x)[0])["state_dict"] for x in ("by_class", "by_name")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_loss_declines(data_path):
    built = build(options(data_path, epochs=30, eval_step=30, learning_rate=0.01))
    trainer = built.trainer()
    assert type(trainer) is integration.KGRecTrainer
    trainer.fit(built.train, built.valid, verbose=False)
    losses = list(trainer.train_loss_dict.values())
    assert len(losses) == 30
    assert losses[-1] < 0.8 * losses[0]


def test_the_test_result_is_the_best_checkpoints(data_path, declining):
    """Here the first evaluated epoch is the best, and the embeddings of the last are cached."""
    built = build(options(data_path, epochs=4, learning_rate=0.05))
    trainer = built.trainer()
    trainer.fit(built.train, built.valid, verbose=False)
    last = trainer.evaluate(built.test, load_best_model=False)
    best = trainer.evaluate(built.test)
    assert read(Path(trainer.saved_model_file))["epoch"] == 0
    assert best != last
    module, fresh = json.loads(python(EVALUATE, str(trainer.saved_model_file), **WHOLE))
    assert module == integration.__name__
    assert fresh == pytest.approx(plain(best), abs=1e-4)


def test_early_stopping_ends_the_training(data_path, declining):
    built = build(options(data_path, epochs=50, stopping_step=2))
    trainer = built.trainer()
    trainer.fit(built.train, built.valid, verbose=False)
    # The best, two that are no better, and the one that is too many.
    assert sorted(trainer.train_loss_dict) == [0, 1, 2, 3]
    assert read(Path(trainer.saved_model_file))["epoch"] == 0


def test_no_evaluation_while_training(data_path):
    settings = options(data_path, epochs=2, eval_step=0)
    result = run(model="KGRec", dataset=PLANTED, config_dict=settings)
    assert result["best_valid_result"] is None
    assert 0 < result["test_result"]["ndcg@10"] < 1
    (file,) = checkpoints("saved")
    assert read(file)["epoch"] == 1
    _, fresh = json.loads(python(EVALUATE, str(file), **WHOLE))
    assert fresh == pytest.approx(plain(result["test_result"]), abs=1e-4)


def test_resumes(data_path):
    """After the epoch of the checkpoint, with its weights and Adam's state."""
    before = build(options(data_path, epochs=2))
    trainer = before.trainer()
    trainer.fit(before.train, before.valid, verbose=False)
    trainer._save_checkpoint(1, verbose=False)

    after = build(options(data_path, epochs=4))
    resumed = after.trainer()
    resumed.resume_checkpoint(trainer.saved_model_file)
    assert resumed.start_epoch == 2
    assert resumed.best_valid_score == trainer.best_valid_score
    for ours, theirs in zip(after.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    states = [t.optimizer.state_dict()["state"] for t in (resumed, trainer)]
    assert all(torch.equal(states[0][k]["exp_avg"], states[1][k]["exp_avg"]) for k in states[1])
    resumed.fit(after.train, after.valid, verbose=False)
    assert sorted(resumed.train_loss_dict) == [2, 3]


def test_epochs_draw_no_triples(data_path, monkeypatch):
    built = build(options(data_path, epochs=1, eval_step=0))
    seen = []
    loss = type(built.model).calculate_loss

    def spy(model: Any, batch: Any) -> torch.Tensor:
        seen.append(set(batch.columns))
        return loss(model, batch)

    monkeypatch.setattr(type(built.model), "calculate_loss", spy)
    built.trainer().fit(built.train, built.valid, verbose=False, saved=False)
    interactions = -(-len(built.dataset.inter_feat) // 256)
    assert len(seen) == interactions
    assert not any("head_id" in names for names in seen)


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd"])
def test_the_optimizer_is_the_frameworks(data_path, learner):
    """Adam in its fused form, with the framework's options and the model's order."""
    built = build(options(data_path, learner=learner, learning_rate=0.02, weight_decay=0.03))
    optimizer = built.trainer().optimizer
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    assert type(optimizer) is kinds[learner]
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.03)
    assert bool(group["fused"]) == (learner != "sgd")
    parameters = list(built.model.parameters())
    assert [id(p) for p in group["params"]] == [id(p) for p in parameters]
    plain = kinds[learner]([p.detach().clone() for p in parameters], lr=0.02, weight_decay=0.03)
    built.model.calculate_loss(built.batch()).backward()
    for other, parameter in zip(plain.param_groups[0]["params"], parameters, strict=True):
        other.grad = parameter.grad.clone()
    optimizer.step()
    plain.step()
    for other, parameter in zip(plain.param_groups[0]["params"], parameters, strict=True):
        torch.testing.assert_close(other, parameter, rtol=1e-5, atol=1e-6)


def test_is_found_by_name():
    assert framework_utils.get_model("KGRec") is integration.KGRec
    kind = framework_utils.ModelType.KNOWLEDGE
    assert framework_utils.get_trainer(kind, "KGRec") is integration.KGRecTrainer
    package = importlib.import_module(f"{FRAMEWORK}.model.knowledge_aware_recommender")
    assert package.KGRec is integration.KGRec


@pytest.mark.parametrize("asked", [False, True])
def test_anomaly_detection_is_left_as_it_is(asked):
    """A look-up by name imports a model that switches it on."""
    script = (
        f"import torch\ntorch.autograd.set_detect_anomaly({asked})\n"
        f"import {integration.__name__}\nfrom {FRAMEWORK}.utils import get_model\n"
        "get_model('KGRec')\nprint(torch.is_anomaly_enabled())"
    )
    assert python(script) == str(asked)
