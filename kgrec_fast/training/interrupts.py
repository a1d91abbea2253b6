"""Ctrl-C and SIGTERM as a request that is asked for between steps, not an exception anywhere."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class TrainingInterrupted(Exception):
    """Training was stopped by a signal, after everything needed to go on had been saved."""

    def __init__(self, received: signal.Signals, run_dir: Path, where: str) -> None:
        super().__init__(f"stopped by {received.name} {where}")
        self.signal = received
        self.run_dir = run_dir
        self.where = where


class Interrupts:
    """Within a ``with`` block the first SIGINT or SIGTERM is kept in `received`.

    The second raises KeyboardInterrupt at once, for those who will not wait. Outside the main
    thread, where Python has no signal handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
