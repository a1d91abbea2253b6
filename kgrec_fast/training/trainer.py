"""The training loop: BPR on sampled negatives, evaluation, early stopping, exact continuation."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import kgrec_fast
from kgrec_fast.training.build import fingerprint
from kgrec_fast.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_config,
    check_dataset,
    load_checkpoint,
    load_model,
    model_tensors,
    save_checkpoint,
)
from kgrec_fast.training.chosen_step import ChosenStep
from kgrec_fast.training.config import Config
from kgrec_fast.training.evaluation import evaluate
from kgrec_fast.training.interrupts import Interrupts, TrainingInterrupted
from kgrec_fast.training.optimizer import load_optimizer, make_adam, optimizer_tensors
from kgrec_fast.training.protocol import PROTOCOLS, metrics_of
from kgrec_fast.training.report import Reporter
from kgrec_fast.training.run_folder import RunFolder

if TYPE_CHECKING:
    from kgrec_fast.data.dataset import KGDataset

# Reading a loss waits for the device, so that elsewhere than on a CPU it is done in groups.
_STEPS_PER_READ = 32
# Between evaluations the state is saved at ends of epochs, but no more often than this.
_SECONDS_PER_SAVE = 30.0
# Drawing the curves takes as long as some epochs; the end of a run always draws them.
_SECONDS_PER_DRAWING = 20.0


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclass
class Results:
    """What a finished run has found; metrics are those of the best epoch, unrounded."""

    run_dir: Path
    best_epoch: int
    valid: dict[str, float] | None
    test: dict[str, float] | None
    stopped_early: bool
    history: list[dict[str, Any]] = field(repr=False)


class Trainer:
    """Trains a model on a data set, in a run folder.

    All draws, those of order, negatives and of the steps of the model, are functions of
    ``training.seed``. A model without ``training_step(batch, rng)`` draws from torch's generator as
    it is when `fit` starts.

    On CUDA a step is captured, optimizer included, in one CUDA graph; on the CPU the operators of a
    step of `KGRec` are recorded, and called again without the Python between them. Where that
    cannot be, the reporter is told why, and steps run plainly.

    Args:
        model: a module with ``training_step(batch, rng)`` (see `KGRec.training_step`) or
            ``calculate_loss(batch)``, and ``embeddings()``, on its device.
        dataset: the interactions.
        config: the configuration; its sections ``training`` and ``evaluation`` are used here.
        run_dir: the folder; ``runs/<dataset>-<timestamp>`` where None. A `RunFolder` is taken as
            it is, which is how a run is continued.
        reporter: told what happens; silent by default.
        cuda_graph: whether to capture steps; None takes ``training.cuda_graph``, which by default
            is where the model is on CUDA.
        record_steps: whether to record steps, see `kgrec_fast.training.RecordedStep`; None takes
            ``training.record_steps``, which by default is where the model is a `KGRec` on the CPU.

    Raises:
        ConfigError: if the folder already holds a run.
        ValueError: if there is nothing to train on.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: KGDataset,
        config: Config,
        run_dir: Path | str | RunFolder | None = None,
        reporter: Reporter | None = None,
        cuda_graph: bool | None = None,
        record_steps: bool | None = None,
    ) -> None:
        from kgrec_fast.data.samplers import PairLoader

        self.model = model
        self.dataset = dataset
        self.config = config
        self.reporter = reporter or Reporter()
        settings = config.training
        self.protocol = PROTOCOLS[config.evaluation.protocol]
        if self.protocol.split == "test":
            warnings.warn(
                f"evaluation.protocol is {config.evaluation.protocol!r}: the epoch is chosen on "
                "the test split, so that the metrics reported for it flatter the model",
                stacklevel=2,
            )
        self._is_judged = dataset.split(self.protocol.split).shape[1] > 0
        self.device = next(model.parameters()).device
        self.loader = PairLoader(
            dataset, settings.batch_size, seed=settings.seed, device=self.device
        )
        self.optimizer = make_adam(model, settings.lr, settings.weight_decay)
        if isinstance(run_dir, RunFolder):
            self.folder = run_dir
        else:
            self.folder = RunFolder.create(None if run_dir is None else Path(run_dir), config)
        self.epoch = 0  # epochs that are over, evaluation included
        self.history: list[dict[str, Any]] = []
        self._loss_sum = 0.0
        self._steps = 0
        self._seconds = 0.0
        self._loader_state = self.loader.state_dict()
        self._saved_at = time.monotonic()
        self._drawn_at = -math.inf
        self._fingerprint = fingerprint(dataset)
        self._rng = torch.tensor([settings.seed, 0], device=self.device)
        self._step = ChosenStep(
            model,
            self.optimizer,
            self._rng,
            min(settings.batch_size, dataset.train.shape[1]),
            cuda_graph=settings.cuda_graph if cuda_graph is None else cuda_graph,
            record_steps=settings.record_steps if record_steps is None else record_steps,
            note=self.reporter.note,
        )

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record of the best evaluated epoch so far, see `Protocol.best`."""
        return self.protocol.best(self.history, self.config.evaluation.best_by)

    @property
    def stopped_early(self) -> bool:
        """Whether training is over before its last epoch."""
        return self._out_of_patience() and self.epoch < self.config.training.epochs

    def _out_of_patience(self) -> bool:
        """Whether the last ``patience`` evaluations brought no gain."""
        best = self.best
        if best is None:
            return False
        since = sum(1 for r in self.history if metrics_of(r) and r["epoch"] > best["epoch"])
        return since >= self.config.training.patience

    def fit(self, *, resume: bool = False) -> Results:
        """Trains to the end, then evaluates the best epoch on the test split.

        The model ends with the weights of the best epoch, in evaluation mode.

        Args:
            resume: go on from the folder's last checkpoint, with exactly the numbers of a run
                that was never interrupted.

        Raises:
            TrainingInterrupted: at Ctrl-C or SIGTERM, once the state is saved.
            TrainingError: if the loss is NaN or infinite.
            CheckpointError: if `resume` finds no checkpoint, or one of something else.
        """
        if resume:
            self.restore(load_checkpoint(self.folder.last))
            if self.best is not None and not self.folder.best.is_file():
                raise CheckpointError(f"{self.folder.best}: no such checkpoint, to end with")
        settings = self.config.training
        with Interrupts() as interrupts:
            pairs = self.dataset.train.shape[1]
            done = self.epoch * pairs + min(self._steps * settings.batch_size, pairs)
            evaluations = self.protocol.evaluations(settings.eval_every, settings.epochs)
            self.reporter.start(
                epochs=settings.epochs,
                pairs=pairs,
                evaluations=evaluations if self._is_judged else 0,
                done=done,
            )
            if not resume:
                self._save()  # whatever happens from now on, there is something to resume from
            try:
                while self.epoch < settings.epochs and not self._out_of_patience():
                    self._train_epoch(interrupts)
                    self._end_epoch(interrupts)
            finally:
                self.reporter.stop()
            return self._finish(interrupts)

    def _train_epoch(self, interrupts: Interrupts) -> None:
        """The steps of an epoch that are not made yet."""
        self.model.train()
        self.reporter.epoch(self.epoch + 1)
        self._rng[1] = self.epoch * len(self.loader) + self._steps
        unread: list[tuple[Tensor, int]] = []
        on_cpu = self.device.type == "cpu"
        clock = time.perf_counter()
        for batch in self.loader:
            pairs = batch["user_id"].shape[0]
            if on_cpu:  # the loss is read before a bad one can reach the weights
                self._step(batch, partial(self._read_loss, pairs))
            else:
                unread.append((self._step(batch), pairs))
                if len(unread) >= _STEPS_PER_READ:
                    self._read_losses(unread)
            now = time.perf_counter()
            self._seconds, clock = self._seconds + now - clock, now
            self._loader_state = self.loader.state_dict()
            if interrupts():
                self._read_losses(unread)
                self._stop(interrupts)
        self._read_losses(unread)
        self._seconds += time.perf_counter() - clock

    def _read_loss(self, pairs: int, loss: Tensor) -> None:
        self._read_losses([(loss, pairs)])

    def _read_losses(self, unread: list[tuple[Tensor, int]]) -> None:
        if not unread:
            return
        for value, (_, size) in zip(
            torch.stack([loss for loss, _ in unread]).tolist(), unread, strict=True
        ):
            self._steps += 1
            if not math.isfinite(value):
                raise TrainingError(
                    f"epoch {self.epoch + 1}, step {self._steps} of {len(self.loader)}: the loss "
                    f"is {value}, expected a finite number; a lower training.lr may help. Nothing "
                    f"of this was saved in {self.folder.path}"
                )
            self._loss_sum += value
            self.reporter.step(value, size)
        unread.clear()

    def _end_epoch(self, interrupts: Interrupts) -> None:
        """Evaluates if it is time to, records the epoch and saves."""
        settings = self.config.training
        number = self.epoch + 1
        metrics = None
        if self._is_due(number):
            metrics = self._evaluate(self.protocol.split, interrupts, save=True)
        record = {
            "epoch": number,
            "loss": self._loss_sum / self._steps,
            "seconds": self._seconds,
            "pairs_per_second": self.dataset.train.shape[1] / max(self._seconds, 1e-9),
            "valid": None,
            self.protocol.split: metrics,
        }
        self.history.append(record)
        self.epoch = number
        self._loss_sum, self._steps, self._seconds = 0.0, 0, 0.0
        self._loader_state = self.loader.state_dict()
        is_best = metrics is not None and self.best is record
        if is_best:
            self._save_best()
        last = number == settings.epochs or self._out_of_patience()
        if metrics or last or time.monotonic() - self._saved_at >= _SECONDS_PER_SAVE:
            self._save()
            self._write_reports(draw=time.monotonic() - self._drawn_at >= _SECONDS_PER_DRAWING)
        self.reporter.epoch_end(record, is_best=is_best)
        if interrupts() and not last:
            self._stop(interrupts)

    def _is_due(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, ends with an evaluation."""
        settings = self.config.training
        return self._is_judged and self.protocol.is_due(epoch, settings.eval_every, settings.epochs)

    def _finish(self, interrupts: Interrupts) -> Results:
        """Loads the best epoch and evaluates it on the test split."""
        best = self.best
        if best is None:  # nothing to choose by: the last epoch it is
            best = self.history[-1]
            self._save_best()
        checkpoint = load_checkpoint(self.folder.best)
        if checkpoint.metadata.get("epoch") != best["epoch"]:
            raise CheckpointError(
                f"{checkpoint.path}: got epoch {checkpoint.metadata.get('epoch')}, expected the "
                f"best epoch {best['epoch']}"
            )
        load_model(self.model, checkpoint)
        test = None
        if self.dataset.test.shape[1]:  # the last state is saved already
            test = self._evaluate("test", interrupts, save=False)
        results = Results(
            run_dir=self.folder.path,
            best_epoch=best["epoch"],
            valid=best["valid"],
            test=test,
            stopped_early=self.stopped_early,
            history=self.history,
        )
        self._write_reports(test)
        self.model.eval()
        return results

    def _evaluate(self, split: str, interrupts: Interrupts, *, save: bool) -> dict[str, float]:
        """Metrics of a split; ``save`` says whether to save the state if a signal comes."""
        try:
            return evaluate(
                self.model,
                self.dataset,
                split,
                ks=self.config.evaluation.ks,
                stop=interrupts,
            )
        except InterruptedError:
            self._stop(interrupts, save=save)
            raise

    def _stop(self, interrupts: Interrupts, *, save: bool = True) -> None:
        """Saves, where asked to, and leaves."""
        if interrupts.received is None:
            raise RuntimeError("no signal was received")
        if save:
            self._save()
            self._write_reports()
        where = f"after epoch {self.epoch}"
        if self._steps:
            where = f"in epoch {self.epoch + 1}, after step {self._steps} of {len(self.loader)}"
        raise TrainingInterrupted(interrupts.received, self.folder.path, where)

    def _common_metadata(self) -> dict[str, Any]:
        return {
            "kgrec_fast_version": kgrec_fast.__version__,
            "config": self.config.model_dump(mode="json"),
            "dataset_fingerprint": self._fingerprint,
        }

    def _save_best(self) -> None:
        metadata = {**self._common_metadata(), "epoch": self.epoch}
        metadata["valid"] = self.history[-1]["valid"]
        save_checkpoint(self.folder.best, model_tensors(self.model), metadata)

    def _save(self) -> None:
        tensors = model_tensors(self.model)
        tensors |= optimizer_tensors(self.optimizer, self.model)
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        metadata = {
            **self._common_metadata(),
            "epoch": self.epoch,
            "steps": self._steps,
            "loss_sum": self._loss_sum,
            "seconds": self._seconds,
            "loader": self._loader_state,
            "history": self.history,
        }
        save_checkpoint(self.folder.last, tensors, metadata)
        self._saved_at = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over the state of a checkpoint, after comparing it with what is here.

        Raises:
            CheckpointError: if it belongs to another model or data set, or holds no such state.
        """
        state = checkpoint.metadata
        check_dataset(checkpoint, self._fingerprint)
        missing = [name for name in ("loader", "history", "steps") if name not in state]
        if missing or "rng.cpu" not in checkpoint.tensors:
            raise CheckpointError(f"{checkpoint.path}: holds no state to resume from")
        check_config(checkpoint, self.config)
        load_model(self.model, checkpoint)
        load_optimizer(self.optimizer, self.model, checkpoint)
        try:
            self.loader.load_state_dict(state["loader"])
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        self.epoch = state["epoch"]
        self.history = state["history"]
        self._steps = state["steps"]
        self._loss_sum = state["loss_sum"]
        self._seconds = state["seconds"]
        self._loader_state = state["loader"]
        torch.set_rng_state(checkpoint.tensors["rng.cpu"])
        if self.device.type == "cuda" and "rng.cuda" in checkpoint.tensors:
            torch.cuda.set_rng_state(checkpoint.tensors["rng.cuda"], self.device)

    def _write_reports(self, test: dict[str, float] | None = None, *, draw: bool = True) -> None:
        best = self.best or (self.history[-1] if self.history else None)
        self.folder.write_metrics(
            {
                "dataset": self.config.dataset.name,
                "best_by": self.config.evaluation.best_by,
                "best_epoch": best and best["epoch"],
                "valid": best and best["valid"],
                "test": test,
                "stopped_early": self.stopped_early,
                "training_seconds": sum(record["seconds"] for record in self.history),
                "kgrec_fast": kgrec_fast.__version__,
                "torch": torch.__version__,
                "device": str(self.device),
                "threads": torch.get_num_threads(),
                "history": self.history,
            }
        )
        if best:
            self.folder.write_loss(self.history)
            if draw:
                by = self.config.evaluation.best_by
                self.folder.write_curves(self.history, by, best["epoch"])
                self._drawn_at = time.monotonic()
