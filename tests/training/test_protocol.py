"""When a run is evaluated and which epoch it keeps: ours, and the paper's code's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_trainer import assert_same_run, interrupting
from training_helpers import fresh_model

from kgrec_fast.data import KGDataset
from kgrec_fast.training import RunFolder, Trainer, TrainingInterrupted
from kgrec_fast.training import trainer as trainer_module
from kgrec_fast.training.config import Config, ConfigError, load_config, parse_config
from kgrec_fast.training.metrics import metric_names
from kgrec_fast.training.protocol import PROTOCOLS

WARNING = "the epoch is chosen on the test split"


def published_loop(values: Sequence[float], epochs: int, every: int, patience: int) -> dict:
    """The published loop, read literally: epochs from 0, the state that is saved last."""
    best, waited, saved, evaluated = 0.0, 0, None, []
    numbers = iter(values)
    for epoch in range(epochs):
        if epoch % every or epoch < 1:
            continue
        value = next(numbers)
        evaluated.append(epoch + 1)
        if value >= best:
            best, waited, saved = value, 0, epoch + 1
        else:
            waited += 1
        if waited >= patience:
            return {"evaluated": evaluated, "best": saved, "epochs": epoch + 1, "early": True}
    return {"evaluated": evaluated, "best": saved, "epochs": epochs, "early": False}


def run(
    dataset: KGDataset,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: Sequence[float],
    **training: Any,
) -> tuple[dict, list[str]]:
    """A run whose evaluations in the course of training give the values; and their splits."""
    numbers, splits = iter(values), []

    def evaluate(model: Any, data: Any, split: str, *, ks: Sequence[int], stop: Any) -> dict:
        splits.append(split)
        return dict.fromkeys(metric_names(ks), next(numbers, 0.125))

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    settings = {"batch_size": 402, "threads": 1, **training}
    config = parse_config(
        {
            "training": settings,
            "evaluation": {"ks": [20], "best_by": "recall@20", "protocol": "paper"},
        }
    )
    with pytest.warns(UserWarning, match=WARNING):
        trainer = Trainer(fresh_model(dataset), dataset, config, folder)
    results = trainer.fit()
    found = {
        "evaluated": [r["epoch"] for r in results.history if r["test"]],
        "best": results.best_epoch,
        "epochs": len(results.history),
        "early": results.stopped_early,
    }
    assert results.valid is None
    return found, splits


@pytest.mark.parametrize(
    ("values", "epochs", "every", "patience"),
    [
        ([0.1, 0.2, 0.3, 0.4], 5, 1, 2),
        ([0.3, 0.2, 0.1, 0.4, 0.5], 6, 1, 2),
        ([0.3, 0.3, 0.2, 0.3, 0.1, 0.2, 0.9], 8, 1, 2),  # a tie is a gain
        ([0.3, 0.2, 0.1], 12, 5, 2),  # epochs 6 and 11
        ([0.3, 0.2], 11, 5, 5),
        ([0.0, 0.0, 0.0], 4, 1, 1),
    ],
)
def test_the_paper_s_protocol_is_that_of_its_loop(
    dataset: KGDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    epochs: int,
    every: int,
    patience: int,
) -> None:
    found, splits = run(
        dataset, tmp_path / "run", monkeypatch, values,
        epochs=epochs, eval_every=every, patience=patience,
    )  # fmt: skip
    assert found == published_loop(values, epochs, every, patience)
    assert set(splits) == {"test"}


def test_a_run_too_short_to_be_evaluated_keeps_its_last_epoch(
    dataset: KGDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = run(dataset, tmp_path / "run", monkeypatch, [], epochs=4, eval_every=10, patience=5)
    assert found == {"evaluated": [], "best": 4, "epochs": 4, "early": False}


def test_what_the_best_epoch_was_chosen_by_is_what_is_reported(
    dataset: KGDataset, tmp_path: Path
) -> None:
    config = load_config(
        overrides={"evaluation.protocol": "paper", "training.epochs": 3, "training.eval_every": 1}
    )
    with pytest.warns(UserWarning, match=WARNING):
        trainer = Trainer(fresh_model(dataset), dataset, config, tmp_path / "run")
    results = trainer.fit()
    assert results.history[results.best_epoch - 1]["test"] == results.test
    assert [r["valid"] for r in results.history] == [None] * 3


@pytest.mark.parametrize("evaluation", [1, 2, 3])  # the last one is that of the best epoch
@pytest.mark.filterwarnings("ignore:evaluation.protocol")
def test_a_run_interrupted_in_an_evaluation_goes_on(
    dataset: KGDataset, tmp_path: Path, evaluation: int
) -> None:
    config = load_config(
        overrides={"evaluation.protocol": "paper", "training.epochs": 3, "training.eval_every": 1}
    )
    Trainer(fresh_model(dataset), dataset, config, tmp_path / "whole").fit()
    model = interrupting(dataset, at_evaluation=evaluation)
    with pytest.raises(TrainingInterrupted):
        Trainer(model, dataset, config, tmp_path / "run").fit()
    folder = RunFolder.open(tmp_path / "run")
    Trainer(fresh_model(dataset), dataset, config, folder).fit(resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_evaluations_are_counted_without_going_through_the_epochs(name: str) -> None:
    protocol = PROTOCOLS[name]
    for every in range(1, 7):
        for last in range(1, 20):
            due = [protocol.is_due(epoch, every, last) for epoch in range(1, last + 1)]
            assert protocol.evaluations(every, last) == sum(due), (every, last)


def test_the_default_is_unchanged() -> None:
    protocol = PROTOCOLS[Config().evaluation.protocol]
    assert protocol.split == "valid"
    assert [n for n in range(1, 13) if protocol.is_due(n, 5, 12)] == [5, 10, 12]
    history = [{"epoch": n, "valid": {"recall@5": v}} for n, v in ((1, 0.1), (2, 0.3), (3, 0.3))]
    best = protocol.best(history, "recall@5")
    assert best is not None
    assert best["epoch"] == 2
    assert protocol.best([{"epoch": 1, "valid": None}], "recall@5") is None


def test_what_the_protocol_implies(tmp_path: Path) -> None:
    plain = load_config(overrides={"evaluation.protocol": "paper"})
    assert plain.dataset.split == "published"
    assert plain.evaluation.ks == (20,)
    assert plain.evaluation.best_by == "recall@20"
    file = tmp_path / "c.yaml"
    file.write_text("evaluation: {protocol: paper, ks: [5, 20]}\ndataset: {split: auto}\n")
    mixed = load_config(file)
    assert mixed.dataset.split == "auto"
    assert mixed.evaluation.best_by == "recall@5"  # the first cutoff, as published
    other = load_config(file, assignments=["evaluation.best_by=ndcg@20"])
    assert other.evaluation.best_by == "ndcg@20"
    assert load_config(assignments=["evaluation.protocol=default"]) == Config()
    assert parse_config(plain.model_dump()) == plain
    with pytest.raises(ConfigError, match=r"evaluation\.protocol: got 'other', expected"):
        load_config(assignments=["evaluation.protocol=other"])
    with pytest.raises(ConfigError, match=r"evaluation\.ks: got 20, expected"):
        load_config(assignments=["evaluation.protocol=paper", "evaluation.ks=20"])


def test_a_preset_comes_before_everything_else(tmp_path: Path) -> None:
    preset = {"training.lr": 0.5, "training.epochs": 7, "model.cl_tau": 0.2}
    file = tmp_path / "c.yaml"
    file.write_text("training: {epochs: 8}\n")
    config = load_config(file, preset=preset, overrides={"model.cl_tau": 0.3})
    assert (config.training.lr, config.training.epochs, config.model.cl_tau) == (0.5, 8, 0.3)
    assert load_config(preset=preset).training.epochs == 7
    file.write_text("training: 3\n")
    with pytest.raises(ConfigError, match="training: got 3, expected"):
        load_config(file, preset=preset)
