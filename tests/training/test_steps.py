"""Steps of training: plain, padded, and captured (with a stand-in for CUDA's graphs)."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import fresh_model, make_config, small_dataset

from kgrec_fast.data import KGDataset
from kgrec_fast.models import KGRec
from kgrec_fast.training import Trainer, build_model, steps
from kgrec_fast.training.config import Config
from kgrec_fast.training.optimizer import make_adam
from kgrec_fast.training.recorded_step import RecordedStep
from kgrec_fast.training.report import Reporter
from kgrec_fast.training.steps import CapturedStep, PlainStep, padded


@pytest.fixture(scope="module")
def dataset() -> KGDataset:
    return small_dataset()


def kgrec_config(**training: object) -> Config:
    config = make_config(**training)
    model = config.model.model_copy(update={"embedding_size": 8, "mae_msize": 8})
    return config.model_copy(update={"model": model})


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_run_is_a_function_of_its_seed_alone(tmp_path: Path, dataset: KGDataset) -> None:
    ends = []
    for run, seed in enumerate((5, 5, 6)):
        config = kgrec_config(epochs=2, seed=seed)
        torch.manual_seed(0)
        model = build_model(dataset, config)
        torch.manual_seed(run)  # has no say
        Trainer(model, dataset, config, tmp_path / str(run)).fit()
        ends.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*ends[:2], strict=True))
    assert not torch.equal(ends[0][0], ends[2][0])


def test_the_number_of_the_step_goes_through_the_epochs(
    tmp_path: Path, dataset: KGDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kgrec_config(epochs=3)
    model = build_model(dataset, config)
    trainer = Trainer(model, dataset, config, tmp_path / "run", record_steps=False)
    seen: list[list[int]] = []
    step = KGRec.training_step

    def spy(model: KGRec, batch: Any, rng: Tensor) -> Tensor:
        seen.append(rng.tolist())
        return step(model, batch, rng)

    monkeypatch.setattr(KGRec, "training_step", spy)
    trainer.fit()
    assert seen == [[5, number] for number in range(3 * len(trainer.loader))]


def test_padded() -> None:
    batch = {"user_id": torch.tensor([4, 5]), "item_id": torch.tensor([6, 7])}
    found = padded(batch, 4, torch.float64)
    assert {name: x.tolist() for name, x in found.items()} == {
        "user_id": [4, 5, 0, 0],
        "item_id": [6, 7, 0, 0],
        "weight": [1.0, 1.0, 0.0, 0.0],
    }
    assert found["weight"].dtype == torch.float64
    assert padded(batch, 2, torch.float32)["weight"].tolist() == [1.0, 1.0]


# -- where steps cannot be captured ----------------------------------------------------------------


def test_says_why_steps_are_not_captured(
    tmp_path: Path, dataset: KGDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, notes = kgrec_config(epochs=1), Notes()
    model = build_model(dataset, config)
    trainer = Trainer(model, dataset, config, tmp_path / "run", notes, cuda_graph=True)
    assert type(trainer._step.step) is RecordedStep
    (note,) = notes.notes
    assert "the model is on cpu, a CUDA graph needs it on CUDA; steps are not captured" in note
    trainer.fit()

    quiet = Notes()
    Trainer(model, dataset, config, tmp_path / "other", quiet)
    assert not quiet.notes  # nobody asked for it

    cuda = torch.device("cuda")
    assert "no training_step" in str(steps.why_not_captured(fresh_model(dataset), cuda))
    for why, expected in ((None, None), ("gone", "the ops would run as references (gone)")):
        monkeypatch.setattr("kgrec_fast._library.why_not_native", lambda device, why=why: why)
        assert steps.why_not_captured(model, cuda) == expected


# -- captured, with a stand-in: what is recorded is a function, and replaying calls it -----


class Recorder:
    """In the place of torch.cuda: runs what a graph would record each time it is replayed."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.captures, self.replays = fails, 0, 0
        self.capturing = False

    Stream = staticmethod(lambda device: SimpleNamespace(wait_stream=lambda other: None))
    current_stream = Stream

    @contextmanager
    def stream(self, stream: object) -> Any:
        yield

    @contextmanager
    def graph(self, graph: SimpleNamespace) -> Any:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand so on")
        self.captures += 1
        self.capturing = True
        yield
        self.capturing = False

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace(replay=self.replay)

    def replay(self) -> None:
        self.replays += 1
        step = self.step
        step._loss = PlainStep.__call__(step, step._batch)

    step: Any = None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for name in ("Stream", "current_stream", "stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, getattr(recorder, name))
    plain = PlainStep.__call__

    def call(self: Any, batch: Any, check: Any = None) -> Tensor:
        # Recording does nothing.
        return torch.tensor(0.0) if recorder.capturing else plain(self, batch, check)

    monkeypatch.setattr(PlainStep, "__call__", call)
    return recorder


def train(dataset: KGDataset, kind: str, count: int, recorder: Recorder) -> tuple[list, list]:
    """Losses and final weights of so many steps on batches of 10, the last one of 6."""
    config = kgrec_config()
    model = build_model(dataset, config).train()
    optimizer, rng = make_adam(model, 0.02, 0.0), torch.tensor([1, 0])
    step = PlainStep(model, optimizer, rng)
    if kind == "captured":
        step = CapturedStep(model, optimizer, rng, 10)
        recorder.step = step
    generator = torch.Generator().manual_seed(0)
    losses = []
    for number in range(count):
        chosen = torch.randperm(dataset.train.shape[1], generator=generator)[
            : 6 if number % 4 else 10
        ]
        user, item = dataset.train[:, chosen]
        losses.append(step({"user_id": user, "item_id": item, "neg_item_id": 39 - item}).item())
    assert rng.tolist() == [1, count]
    return losses, weights(model)


def test_captured_steps_are_the_plain_ones(dataset: KGDataset, recorder: Recorder) -> None:
    plain = train(dataset, "plain", 9, recorder)
    captured = train(dataset, "captured", 9, recorder)
    assert (recorder.captures, recorder.replays) == (1, 6)
    torch.testing.assert_close(captured, plain, rtol=1e-4, atol=1e-6)


def test_a_failed_capture_is_told_and_loses_no_step(
    tmp_path: Path, dataset: KGDataset, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kgrec_config(epochs=2)
    ends = []
    for name in ("plain", "failing"):
        notes = Notes()
        model = build_model(dataset, config)
        if name == "failing":
            recorder.fails = True
            monkeypatch.setattr("kgrec_fast.training.chosen_step.why_not_captured", lambda *_: None)
        trainer = Trainer(
            model, dataset, config, tmp_path / name, notes, cuda_graph=name == "failing"
        )
        assert len(trainer.loader) > CapturedStep.WARM_UP
        trainer.fit()
        ends.append(weights(model))
    assert notes.notes == [
        "cuda_graph: capture failed (operation not permitted when stream is capturing); "
        "steps run plainly"
    ]
    # The first steps were padded to the size of a batch, which changes the order of a sum.
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-6)
