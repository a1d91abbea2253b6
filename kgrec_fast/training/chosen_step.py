"""Which kind of step a training makes: captured, recorded or plain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kgrec_fast.models import KGRec
from kgrec_fast.training.recorded_step import RecordedStep, why_not_recorded
from kgrec_fast.training.steps import (
    Batch,
    CapturedStep,
    CaptureError,
    Check,
    PlainStep,
    why_not_captured,
)


class ChosenStep:
    """A `CapturedStep` or a `RecordedStep` where that is wanted, as long as it serves; then a
    `PlainStep`, which nothing but time tells from them.

    Args:
        model, optimizer, rng: as for `PlainStep`.
        batch_size: largest size of a batch.
        cuda_graph: whether to capture steps; None for where the model is on CUDA.
        record_steps: whether to record steps; None for where the model is a `KGRec`, of whose
            steps it is known that they can be, on the CPU.
        note: told why steps are plain ones though others were wanted.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rng: Tensor,
        batch_size: int,
        *,
        cuda_graph: bool | None,
        record_steps: bool | None,
        note: Callable[[str], None],
    ) -> None:
        self._plain = PlainStep(model, optimizer, rng)
        self._note = note
        self.step = self._plain
        on_cuda = rng.device.type == "cuda"
        if on_cuda if cuda_graph is None else cuda_graph:
            reason = why_not_captured(model, rng.device)
            if reason is None:
                self.step = CapturedStep(model, optimizer, rng, batch_size)
                return
            note(f"cuda_graph: {reason}; steps are not captured")
        is_ours = type(model) is KGRec and not on_cuda
        if is_ours if record_steps is None else record_steps:
            reason = why_not_recorded(model, optimizer)
            if reason is None:
                self.step = RecordedStep(model, optimizer, rng)
            elif record_steps:  # somebody asked for it
                note(f"record_steps: {reason}; steps are not recorded")

    def __call__(self, batch: Batch, check: Check | None = None) -> Tensor:
        """Makes a step, see `PlainStep`."""
        try:
            loss = self.step(batch, check)
        except CaptureError as error:
            self._fall_back(f"cuda_graph: capture failed ({error})")
            return self.step(batch, check)
        if isinstance(self.step, RecordedStep) and self.step.reason is not None:
            self._fall_back(f"record_steps: {self.step.reason}")
        return loss

    def _fall_back(self, reason: str) -> None:
        self._note(f"{reason}; steps run plainly")
        self.step = self._plain
