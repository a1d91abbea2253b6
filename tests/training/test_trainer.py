"""The loop: it learns, picks the best epoch, stops in time, and continues bit for bit."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import MatrixFactorisation, fresh_model, make_config

from kgrec_fast.data import KGDataset
from kgrec_fast.training import trainer as trainer_module
from kgrec_fast.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from kgrec_fast.training.config import ConfigError
from kgrec_fast.training.interrupts import Interrupts, TrainingInterrupted
from kgrec_fast.training.run_folder import RunFolder
from kgrec_fast.training.trainer import Results, Trainer, TrainingError

STEPS = 7  # of an epoch: 402 pairs in batches of 64


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = ("seconds", "pairs_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in history]


def assert_same_run(one: Path, two: Path) -> None:
    """All that two runs leave behind, except for times, is the same bit for bit."""
    for name in ("best.safetensors", "last.safetensors"):
        first, second = load_checkpoint(one / name), load_checkpoint(two / name)
        assert first.tensors.keys() == second.tensors.keys()
        for key, value in first.tensors.items():
            assert torch.equal(value, second.tensors[key]), f"{name}: {key}"
        for key in ("epoch", "steps", "loss_sum", "loader", "valid"):
            assert first.metadata.get(key) == second.metadata.get(key), f"{name}: {key}"
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (one, two)]
    for content in metrics:
        content["history"] = without_times(content["history"])
        del content["training_seconds"]
    assert metrics[0] == metrics[1]


class Interrupting(MatrixFactorisation):
    """Sends itself a signal in the course of a given step or evaluation."""

    at_loss = at_evaluation = 0
    evaluations = 0
    signal = signal.SIGINT

    def calculate_loss(self, batch: dict[str, Tensor]) -> Tensor:
        loss = super().calculate_loss(batch)
        if self.losses_made == self.at_loss:
            os.kill(os.getpid(), self.signal)
        return loss

    def embeddings(self) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        if self.evaluations == self.at_evaluation:
            os.kill(os.getpid(), self.signal)
        return super().embeddings()


def interrupting(dataset: KGDataset, **when: Any) -> Interrupting:
    torch.manual_seed(7)
    model = Interrupting(dataset)
    for name, value in when.items():
        setattr(model, name, value)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: KGDataset) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    Trainer(fresh_model(dataset), dataset, make_config(), folder).fit()
    return folder


def resume(folder: Path, dataset: KGDataset, **training: Any) -> Results:
    torch.manual_seed(999)  # whatever was drawn before must not matter
    other = MatrixFactorisation(dataset)
    config = make_config(**training)
    return Trainer(other, dataset, config, RunFolder.open(folder)).fit(resume=True)


@pytest.mark.parametrize("step", [1, 3, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS + 4, 4 * STEPS - 1])
def test_interrupted_at_any_step_and_resumed_is_the_same_run(
    tmp_path: Path, dataset: KGDataset, whole: Path, step: int
) -> None:
    model = interrupting(dataset, at_loss=step)
    with pytest.raises(TrainingInterrupted) as stop:
        Trainer(model, dataset, make_config(), tmp_path / "run").fit()
    assert model.losses_made == step
    done, rest = divmod(step - 1, STEPS)
    assert stop.value.where == f"in epoch {done + 1}, after step {rest + 1} of {STEPS}"
    resume(tmp_path / "run", dataset)
    assert_same_run(whole, tmp_path / "run")


def test_interrupted_again_and_again(tmp_path: Path, dataset: KGDataset, whole: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        Trainer(interrupting(dataset, at_loss=2), dataset, make_config(), folder).fit()
    for steps in (1, 1, 4, 10):
        model = interrupting(dataset, at_loss=steps)
        with pytest.raises(TrainingInterrupted):
            Trainer(model, dataset, make_config(), RunFolder.open(folder)).fit(resume=True)
    resume(folder, dataset)
    assert_same_run(whole, folder)


@pytest.mark.parametrize("evaluation", [1, 4, 5])  # the last one is that of the test split
def test_interrupted_in_an_evaluation(
    tmp_path: Path, dataset: KGDataset, whole: Path, evaluation: int
) -> None:
    model = interrupting(dataset, at_evaluation=evaluation)
    with pytest.raises(TrainingInterrupted):
        Trainer(model, dataset, make_config(), tmp_path / "run").fit()
    resume(tmp_path / "run", dataset)
    assert_same_run(whole, tmp_path / "run")


def test_killed_between_two_saves(
    tmp_path: Path, dataset: KGDataset, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best checkpoint may be ahead of the last one; what follows rewrites it the same."""
    real = Trainer._save

    def save(self: Trainer) -> None:
        if self.epoch == 3:
            raise MemoryError
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", save)
        trainer = Trainer(fresh_model(dataset), dataset, make_config(), tmp_path / "run")
        with pytest.raises(MemoryError):
            trainer.fit()
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").metadata["epoch"] == 3
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").metadata["epoch"] == 2
    resume(tmp_path / "run", dataset)
    assert_same_run(whole, tmp_path / "run")


def test_killed_in_the_first_epoch(
    tmp_path: Path, dataset: KGDataset, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise MemoryError

    trainer = Trainer(fresh_model(dataset), dataset, make_config(), tmp_path / "run")
    monkeypatch.setattr(trainer, "_end_epoch", killed)
    with pytest.raises(MemoryError):
        trainer.fit()
    resume(tmp_path / "run", dataset)
    assert_same_run(whole, tmp_path / "run")


def test_a_finished_run_resumes_to_the_same_results(
    tmp_path: Path, dataset: KGDataset, whole: Path
) -> None:
    folder = tmp_path / "run"
    first = Trainer(fresh_model(dataset), dataset, make_config(), folder).fit()
    second = resume(folder, dataset)
    assert (first.valid, first.test) == (second.valid, second.test)
    assert_same_run(whole, folder)


def test_more_epochs_continue_the_run(tmp_path: Path, dataset: KGDataset) -> None:
    Trainer(fresh_model(dataset), dataset, make_config(epochs=2), tmp_path / "a").fit()
    longer = resume(tmp_path / "a", dataset, epochs=4)
    whole = Trainer(fresh_model(dataset), dataset, make_config(), tmp_path / "b").fit()
    assert without_times(longer.history) == without_times(whole.history)


def test_a_run_without_its_best_epoch_is_not_continued(tmp_path: Path, dataset: KGDataset) -> None:
    Trainer(fresh_model(dataset), dataset, make_config(epochs=1), tmp_path / "a").fit()
    (tmp_path / "a" / "best.safetensors").unlink()
    before = (tmp_path / "a" / "last.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"best\.safetensors: no such checkpoint"):
        resume(tmp_path / "a", dataset, epochs=2)
    assert (tmp_path / "a" / "last.safetensors").read_bytes() == before


def test_a_run_of_any_number_of_epochs_begins_at_once(tmp_path: Path, dataset: KGDataset) -> None:
    model = interrupting(dataset, at_loss=1)
    with pytest.raises(TrainingInterrupted):
        Trainer(model, dataset, make_config(epochs=10**15), tmp_path / "run").fit()


def test_sigterm_is_handled_like_ctrl_c(tmp_path: Path, dataset: KGDataset) -> None:
    model = interrupting(dataset, at_loss=2, signal=signal.SIGTERM)
    with pytest.raises(TrainingInterrupted) as stop:
        Trainer(model, dataset, make_config(), tmp_path / "run").fit()
    assert stop.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_second_ctrl_c_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored, where the suite runs in the background
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_learns_and_the_best_epoch_is_what_is_left(
    tmp_path: Path, dataset: KGDataset
) -> None:
    model = fresh_model(dataset)
    results = Trainer(model, dataset, make_config(epochs=12), tmp_path / "run").fit()
    losses = [record["loss"] for record in results.history]
    assert losses[-1] < 0.8 * losses[0]
    by = [record["valid"]["ndcg@10"] for record in results.history]
    assert results.valid is not None
    assert results.valid["ndcg@10"] == max(by)
    assert results.best_epoch == by.index(max(by)) + 1
    from kgrec_fast.training.evaluation import evaluate

    assert evaluate(model, dataset, "valid", ks=[3, 10]) == results.valid
    assert evaluate(model, dataset, "test", ks=[3, 10]) == results.test
    assert not model.training


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Makes the valid evaluations return the given numbers, in order."""
    numbers = iter(values)

    def fake(model: Any, dataset: Any, split: str, *, ks: Any, stop: Any) -> dict[str, float]:
        value = next(numbers) if split == "valid" else 0.5
        return {f"{m}@{k}": value for m in trainer_module_metrics for k in ks}

    from kgrec_fast.training.metrics import METRICS as trainer_module_metrics

    monkeypatch.setattr(trainer_module, "evaluate", fake)


def test_the_best_epoch_is_chosen_by_unrounded_values(
    tmp_path: Path, dataset: KGDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.23451, 0.23452, 0.2345200000001, 0.2345200000001])
    results = Trainer(fresh_model(dataset), dataset, make_config(), tmp_path / "run").fit()
    assert results.best_epoch == 3  # of equal ones the first


@pytest.mark.parametrize(
    ("values", "epochs", "best", "early"),
    [
        ([0.3, 0.2, 0.2, 0.9], 3, 1, True),
        ([0.3, 0.2, 0.4, 0.4, 0.4, 0.9], 5, 3, True),
        ([0.3, 0.3, 0.3, 0.9], 3, 1, True),  # no gain is no gain
        ([0.1, 0.2, 0.3, 0.4, 0.3, 0.2], 6, 4, False),
    ],
)
def test_early_stopping(
    tmp_path: Path,
    dataset: KGDataset,
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    epochs: int,
    best: int,
    early: bool,
) -> None:
    scripted(monkeypatch, values)
    config = make_config(epochs=6, patience=2)
    results = Trainer(fresh_model(dataset), dataset, config, tmp_path / "run").fit()
    assert len(results.history) == epochs
    assert results.best_epoch == best
    assert results.stopped_early is early


def test_patience_counts_evaluations_and_the_last_epoch_is_evaluated(
    tmp_path: Path, dataset: KGDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [0.3, 0.2, 0.1])
    config = make_config(epochs=5, eval_every=2, patience=3)
    results = Trainer(fresh_model(dataset), dataset, config, tmp_path / "run").fit()
    assert [record["epoch"] for record in results.history if record["valid"]] == [2, 4, 5]
    assert not results.stopped_early


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(
    tmp_path: Path, dataset: KGDataset, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    model = fresh_model(dataset)
    real = model.calculate_loss

    def loss(batch: dict[str, Tensor]) -> Tensor:
        result = real(batch)
        return result * value if model.losses_made == STEPS + 3 else result

    monkeypatch.setattr(model, "calculate_loss", loss)
    with pytest.raises(TrainingError, match=rf"epoch 2, step 3 of {STEPS}: the loss is (nan|inf)"):
        Trainer(model, dataset, make_config(), tmp_path / "run").fit()
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").metadata["epoch"] == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_files_of_a_run(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == [
        "best.safetensors",
        "config.yaml",
        "curves.png",
        "last.safetensors",
        "loss.csv",
        "metrics.json",
    ]
    assert (whole / "curves.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((whole / "metrics.json").read_text())
    with open(whole / "loss.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["loss"]) for row in rows] == [r["loss"] for r in content["history"]]
    best = content["history"][content["best_epoch"] - 1]
    assert content["valid"] == best["valid"]
    assert content["test"].keys() == best["valid"].keys()
    assert RunFolder(whole).read_config() == make_config()


def test_without_validation_the_last_epoch_is_taken(tmp_path: Path, dataset: KGDataset) -> None:
    from dataclasses import replace

    empty = dataset.valid[:, :0]
    results = Trainer(
        fresh_model(dataset), replace(dataset, valid=empty), make_config(), tmp_path / "run"
    ).fit()
    assert results.best_epoch == 4
    assert results.valid is None
    assert results.test is not None
    only_train = replace(dataset, valid=empty, test=empty)
    results = Trainer(fresh_model(dataset), only_train, make_config(), tmp_path / "b").fit()
    assert results.test is None


def test_folders_are_not_overwritten(tmp_path: Path, whole: Path, dataset: KGDataset) -> None:
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        Trainer(fresh_model(dataset), dataset, make_config(), whole)
    with pytest.raises(ConfigError, match="no folder of a run"):
        RunFolder.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "run", make_config())


def test_default_folders_are_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {str(RunFolder.create(None, make_config()).path) for _ in range(3)}
    assert len(paths) == 3
    assert all(path.startswith("runs/run-") for path in paths)
    # Of runs that begin together, each looks before the others have made their folder.
    monkeypatch.setattr(Path, "exists", lambda _: False)
    paths |= {str(RunFolder.create(None, make_config()).path) for _ in range(3)}
    assert len(paths) == 6
    monkeypatch.undo()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "runs").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="runs cannot be made"):
        RunFolder.create(None, make_config())


def test_resuming_what_does_not_fit(tmp_path: Path, dataset: KGDataset, whole: Path) -> None:
    from dataclasses import replace

    folder = RunFolder.create(tmp_path / "new", make_config())
    trainer = Trainer(fresh_model(dataset), dataset, make_config(), folder)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: no such checkpoint"):
        trainer.fit(resume=True)
    save_checkpoint(folder.last, {"a": torch.ones(1)}, {})
    with pytest.raises(CheckpointError, match="was trained on other data"):
        trainer.fit(resume=True)
    best = load_checkpoint(whole / "best.safetensors")
    with pytest.raises(CheckpointError, match="holds no state to resume from"):
        trainer.restore(best)
    state = load_checkpoint(whole / "last.safetensors")
    faster = Trainer(fresh_model(dataset), dataset, make_config(lr=0.5), tmp_path / "faster")
    with pytest.raises(CheckpointError, match=r"training\.lr: got 0\.5, expected 0\.02"):
        faster.restore(state)
    fewer = replace(dataset, train=dataset.train[:, 1:])
    other = Trainer(fresh_model(dataset), fewer, make_config(), tmp_path / "other")
    with pytest.raises(CheckpointError, match="was trained on other data"):
        other.restore(state)
