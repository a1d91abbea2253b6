"""Peak memory of one call, in a process of its own.

``python -m benchmarks._memory MODULE FUNCTION [ARGUMENT ...]`` calls that function with the
arguments, which prepares everything and returns a callable, and prints by how many bytes the peak
during that callable's call lies above what was resident before.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks._harness import ROOT

_CLEAR_REFS = Path("/proc/self/clear_refs")
# glibc then maps every larger block by itself and unmaps it when freed, on either side: resident
# memory is what the call holds, not what malloc keeps in holes that fit nothing.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _resident(name: str) -> int | None:
    """A figure of /proc/self/status in bytes: VmRSS or VmHWM (its peak)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    return next(found, None)


def measure(module: str, function: str, arguments: list[str]) -> int | None:
    """`peak_of` what a function returns, which is called with some arguments."""
    return peak_of(getattr(importlib.import_module(module), function)(*arguments))


def peak_of(call: Callable[[], object]) -> int | None:
    """Bytes above what was resident before the call; None where the system does not tell.

    The peak is reset first, so that the preparations do not hide it, and memory that malloc keeps
    for reuse is given back, so that the call cannot hide in it.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return None
    before = _resident("VmRSS")
    result = call()
    peak = _resident("VmHWM")
    del result
    return None if before is None or peak is None else max(peak - before, 0)


def output_of_fresh_process(module: str, *arguments: str) -> str:
    """The last line that a module prints in a new interpreter, in which nothing was run before.

    Raises:
        RuntimeError: The process failed; the message holds what it printed.
    """
    command = [sys.executable, "-m", module, *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, **_MALLOC, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def peak_in_fresh_process(module: str, function: str, *arguments: str) -> int | None:
    """`measure` in a new interpreter.

    Raises:
        RuntimeError: The process failed; the message holds what it printed.
    """
    answer = output_of_fresh_process("benchmarks._memory", module, function, *arguments)
    return None if answer == "None" else int(answer)


def peaks_of_sides(module: str, function: str, *arguments: str) -> tuple[int | None, int | None]:
    """`peak_in_fresh_process` of "ours" and of "theirs", the function's first argument."""
    ours, theirs = (
        peak_in_fresh_process(module, function, side, *arguments) for side in ("ours", "theirs")
    )
    return ours, theirs


if __name__ == "__main__":
    print(measure(sys.argv[1], sys.argv[2], sys.argv[3:]))
