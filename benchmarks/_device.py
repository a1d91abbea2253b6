"""Where ops run, how they are timed there, and how fast memory is."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import _card
from benchmarks._harness import Timing, interleave
from kgrec_fast import _library

BUFFER_BYTES = 1 << 30


def why_not(device: torch.device) -> tuple[str, int] | None:
    """Why nothing can be measured on a device, with an exit code; None where it can."""
    if device.type == "cuda" and (reason := _card.why_no_gpu()):
        return reason, _card.NO_GPU
    if reason := _library.why_not_native(device):
        return f"ops would run as references on {device}: {reason}", 1
    return None


@dataclass
class Device:
    """Where ops run, and how they are timed there."""

    device: torch.device
    rounds: int
    budget: float  # seconds for the rounds of one measurement
    buffer_bytes: int = BUFFER_BYTES
    flush: Tensor | None = field(default=None, repr=False)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """As rows have it: "cpu", or the card."""
        return torch.cuda.get_device_name() if self.is_cuda else "cpu"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def buffer(self) -> Tensor:
        """Large enough for no cache to hold it, small enough for the card."""
        size = self.buffer_bytes
        if self.is_cuda:
            size = min(size, torch.cuda.mem_get_info()[0] // 8)
        return torch.zeros(size, dtype=torch.uint8, device=self.device)

    def timings(self, sides: Sequence[Callable[[], object]]) -> list[Timing]:
        """Times callables in turn: on the device by events, elsewhere by the clock.

        On CUDA 1 GiB is written before each call: caches are cold, and the host has run ahead of
        the device when the clock starts.
        """
        if not self.is_cuda:
            return interleave(sides, rounds=self.rounds, budget=self.budget)
        if self.flush is None:
            self.flush = self.buffer()
        for side in sides:
            side()
        self.synchronize()
        seconds: list[list[float]] = [[] for _ in sides]
        begin = time.perf_counter()
        for done in range(self.rounds):
            if done >= 3 and time.perf_counter() - begin > self.budget:
                break
            for side, durations in zip(sides, seconds, strict=True):
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.flush.zero_()
                first.record()
                side()
                last.record()
                last.synchronize()
                durations.append(first.elapsed_time(last) / 1e3)
        return [Timing.of(durations) for durations in seconds]

    def peak(self, call: Callable[[], object]) -> int | None:
        """Bytes that were allocated at once during a call, above what was before; CUDA only."""
        if not self.is_cuda:
            return None
        gc.collect()
        self.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def copy_bandwidth(self) -> float:
        """Bytes a second, read and written, of a copy of a large buffer."""
        source, target = self.buffer(), self.buffer()
        (timing,) = self.timings([lambda: target.copy_(source)])
        return (source.numel() + target.numel()) / timing.median
