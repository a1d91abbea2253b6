"""One step of training: loss, gradients, optimizer; plain, or captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kgrec_fast import _library

Batch = Mapping[str, Tensor]
Check = Callable[[Tensor], None]


class PlainStep:
    """Runs a step operation by operation.

    Args:
        model: a module with ``training_step(batch, rng)``, or else ``calculate_loss(batch)``, whose
            random choices are its own affair.
        optimizer: of its parameters.
        rng: int64 [2], seed and number of the step, on the device of the model. The second is
            counted up, on the device.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rng: Tensor) -> None:
        self.model: Any = model
        self.optimizer = optimizer
        self.rng = rng
        self._counts = hasattr(model, "training_step")
        self._one = torch.tensor([0, 1], device=rng.device)

    def __call__(self, batch: Batch, check: Check | None = None) -> Tensor:
        """Makes a step; returns its loss, detached.

        Args:
            batch: what the model takes.
            check: called with the loss before that reaches the weights; it may raise.
        """
        self.optimizer.zero_grad(set_to_none=True)  # first: a step then holds one set of gradients
        if self._counts:
            loss: Tensor = self.model.training_step(batch, self.rng)
        else:
            loss = self.model.calculate_loss(batch)
        if check is not None:
            check(loss.detach())
        loss.backward()
        self.optimizer.step()
        self.rng += self._one
        return loss.detach()


def padded(batch: Batch, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The batch with "weight" [size] (of ``dtype``) and as many pairs, those added of weight 0."""
    count = batch["user_id"].shape[0]
    result = {n: nn.functional.pad(ids, (0, size - count)) for n, ids in batch.items()}
    weight = batch["user_id"].new_ones(count, dtype=dtype)
    return {**result, "weight": nn.functional.pad(weight, (0, size - count))}


class CaptureError(RuntimeError):
    """A step could not be captured. Nothing was done: a capture only records."""


class CapturedStep(PlainStep):
    """Captures a step, optimizer included, in one CUDA graph, and replays it from then on.

    The first steps run plainly, on a stream of their own: libraries and the optimizer make then
    what they keep. All batches are brought to one size by pairs of weight 0, so that one graph
    serves an epoch to its end; random numbers change because `rng` counts up inside of the graph.

    Args:
        model, optimizer, rng: as for `PlainStep`; the optimizer must be capturable.
        batch_size: largest size of a batch.

    Raises:
        CaptureError: at the first call that captures, if the step cannot be captured.
    """

    WARM_UP = 3

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, rng: Tensor, batch_size: int
    ) -> None:
        super().__init__(model, optimizer, rng)
        self.batch_size = batch_size
        self._dtype = next(model.parameters()).dtype
        self._plain_left = self.WARM_UP
        self._stream = torch.cuda.Stream(rng.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: dict[str, Tensor] = {}
        self._loss = torch.empty(0)

    def __call__(self, batch: Batch, check: Check | None = None) -> Tensor:
        """Makes a step; returns its loss. `check` is not called: it would have to wait."""
        batch = padded(batch, self.batch_size, self._dtype)
        if self._plain_left > 0:
            self._plain_left -= 1
            return self._on_side_stream(batch)
        if self._graph is None:
            self._batch = {name: value.clone() for name, value in batch.items()}
            self._graph = self._capture()
        for name, value in batch.items():
            self._batch[name].copy_(value)
        self._graph.replay()
        return self._loss.clone()

    def _on_side_stream(self, batch: Batch) -> Tensor:
        here = torch.cuda.current_stream(self.rng.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            loss = super().__call__(batch)
        here.wait_stream(self._stream)
        return loss

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph):
                self._loss = super().__call__(self._batch)
        except RuntimeError as error:
            raise CaptureError(str(error).strip().splitlines()[0]) from error
        return graph


def why_not_captured(model: nn.Module, device: torch.device) -> str | None:
    """Why a step of the model cannot be captured, as far as it can be told before; else None."""
    if device.type != "cuda":
        return f"the model is on {device}, a CUDA graph needs it on CUDA"
    return why_only_plain(model, device)


def why_only_plain(model: nn.Module, device: torch.device) -> str | None:
    """Why no other step of the model is made than plain ones, on whatever device; else None."""
    if not hasattr(model, "training_step"):
        return f"{type(model).__name__} has no training_step"
    if reason := _library.why_not_native(device):
        return f"the ops would run as references ({reason})"
    return None
