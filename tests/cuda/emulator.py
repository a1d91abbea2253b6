"""Runs kernels of csrc/cuda on the CPU by the name of their entry point."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import build_host
import numpy as np
import torch

# Three shuffles besides the two extremes; results must be the same bits in all of them.
ORDERS = (("forward", 0), ("backward", 0), ("shuffled", 1), ("shuffled", 2), ("shuffled", 3))
DTYPE_NAMES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
}


class Traffic(NamedTuple):
    """Global memory touched at one call site, in one array, by all warps of a call."""

    site: str  # file:line
    array: str
    write: bool
    executions: int  # by warps
    sectors: int  # of 32 bytes, distinct in each execution
    bytes: int  # as lanes asked for them


_recording: IO[bytes] | None = None


@functools.cache
def _module() -> ModuleType:
    return build_host.load()


def as_array(value: np.ndarray | torch.Tensor) -> np.ndarray:
    """The same memory as numpy sees it; half types as 16-bit integers."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.dtype in (torch.bfloat16, torch.float16):
            value = value.view(torch.int16)
            return value.numpy().view(np.uint16)
        return value.numpy()
    return value.view(np.uint16) if value.dtype == np.float16 else value


def run(
    name: str,
    /,
    *,
    order: str = "forward",
    seed: int = 0,
    max_blocks: int = 0,
    count: bool = False,
    **arguments: Any,
) -> list[Traffic]:
    """Calls an entry point.

    Args:
        name: as in ``KGREC_ENTRY(name)``.
        order: of lanes, warps and blocks: forward, backward or shuffled (by `seed`).
        max_blocks: most blocks of a launch, 0 for as many as the launch wants.
        count: counts sectors, which takes time.
        arguments: arrays (numpy or CPU tensors, written in place), integers, floats, texts, torch
            dtypes (as their short name); None is an operand left out.

    Returns:
        What was counted, empty without `count`.

    Raises:
        RuntimeError: a mistake of the kernel: names block, thread and line.
        ValueError: arguments that do not fit the entry point.
    """
    arrays: dict[str, np.ndarray] = {}
    integers: dict[str, int] = {}
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    for key, value in arguments.items():
        if value is None:
            continue
        if isinstance(value, np.ndarray | torch.Tensor):
            arrays[key] = as_array(value)
        elif isinstance(value, bool | int | np.integer):
            integers[key] = int(value)
        elif isinstance(value, float):
            numbers[key] = value
        elif isinstance(value, torch.dtype):
            texts[key] = DTYPE_NAMES[value]
        elif isinstance(value, str):
            texts[key] = value
        else:
            raise TypeError(f"{key} is {type(value).__name__}, which no entry point takes")
    if _recording is not None:
        _record(_recording, name, arrays, integers, numbers, texts, order, seed, max_blocks)
    traffic = _module().run(name, arrays, integers, numbers, texts, order, seed, max_blocks, count)
    return [Traffic(*t) for t in traffic]


@contextlib.contextmanager
def recording(path: Path) -> Iterator[None]:
    """Meanwhile calls of `run` are written to a file too, for `run_sanitized`."""
    global _recording
    with path.open("wb") as file:
        _recording = file
        try:
            yield
        finally:
            _recording = None


def run_sanitized(path: Path) -> subprocess.CompletedProcess[str]:
    """Runs recorded cases in a program with AddressSanitizer and UBSan; fine if it returns 0."""
    command = [str(build_host.build_program()), str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def _record(
    file: IO[bytes],
    name: str,
    arrays: dict[str, np.ndarray],
    integers: dict[str, int],
    numbers: dict[str, float],
    texts: dict[str, str],
    order: str,
    seed: int,
    max_blocks: int,
) -> None:
    """Writes one case as run_cases.cpp reads it."""
    lines: list[tuple[str, bytes]] = []
    for key, value in arrays.items():
        row = value.size // max(len(value), 1) if value.ndim else 1
        stride = value.strides[0] // value.itemsize if value.ndim and len(value) > 1 else row
        extent = (len(value) - 1) * stride + row if value.size and value.ndim else value.size
        flat = np.lib.stride_tricks.as_strided(value, (extent,), (value.itemsize,))
        past = value.ctypes.data % 16
        shape = " ".join(str(n) for n in (value.ndim, *value.shape))
        kind = f"{value.dtype.kind} {value.itemsize}"
        lines.append((f"array {key} {kind} {stride} {past} {flat.nbytes} {shape}", flat.tobytes()))
    lines += [(f"integer {key} {value}", b"") for key, value in integers.items()]
    lines += [(f"number {key} {value.hex()}", b"") for key, value in numbers.items()]
    lines += [(f"text {key} {value}", b"") for key, value in texts.items()]
    head = f"case {name} {order} {seed} {max_blocks} {len(lines)}"
    for line, data in [(head, b""), *lines]:
        file.write(line.encode() + b"\n" + data)
