"""Finds and loads the native libraries, and keeps the reason where one is missing.

``_C`` holds every op schema and the CPU kernels, ``_C_cuda`` the CUDA kernels. Nothing here
compiles or downloads anything, and importing the package never fails because of a binary.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

ISA_NAMES = ("baseline", "avx2", "avx512")
MIN_TORCH = (2, 10)


@dataclass(frozen=True)
class Library:
    """One native library: where it was found, and why it is not loaded (None when it is)."""

    name: str
    path: Path | None
    error: str | None

    @property
    def loaded(self) -> bool:
        return self.error is None


def _load(name: str) -> Library:
    path = next(iter(sorted(Path(__file__).parent.glob(f"{name}.*so"))), None)
    if os.environ.get("KGREC_FAST_REFERENCE") == "1":
        return Library(name, path, "KGREC_FAST_REFERENCE=1 asks for the reference ops")
    if path is None:
        return Library(name, None, "not built: no such file beside the package")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH:
        return Library(name, path, f"torch {torch.__version__} is too old, 2.10 or later is needed")
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return Library(name, path, " ".join(str(error).split()))
    return Library(name, path, None)


def _load_cuda() -> Library:
    if not CPU.loaded:
        return Library("_C_cuda", None, "needs _C, which is not loaded")
    if torch.version.cuda is None:
        return Library("_C_cuda", None, f"torch {torch.__version__} was built without CUDA")
    return _load("_C_cuda")


CPU = _load("_C")
CUDA = _load_cuda()
_warned = False


def is_native(device: torch.device) -> bool:
    """Whether tensors on `device` are served by native kernels."""
    if device.type == "cuda":
        return cuda_is_complete()
    # Fake and meta tensors need the schemas only.
    return CPU.loaded and device.type in ("cpu", "meta")


def warn_once(device: torch.device) -> None:
    """Tells, once a process, that ops run as plain PyTorch on `device`, and why."""
    global _warned
    if not _warned:
        _warned = True
        library = CUDA if device.type == "cuda" and CPU.loaded else CPU
        reason = library.error or f"no native kernels exist for device type {device.type!r}"
        if library is CUDA and CUDA.loaded:
            count = f"{len(cuda_op_names())} of {len(op_names())}"
            reason = f"so far {count} ops have CUDA kernels"
        warnings.warn(
            f"kgrec_fast runs on its reference ops, which are much slower: {reason}. "
            "See `python -m kgrec_fast.info`.",
            UserWarning,
            stacklevel=4,
        )


def isa() -> str:
    """Instruction set of the CPU kernels: 'baseline', 'avx2', 'avx512', or 'none' without them.

    The best one of the machine, unless the environment variable KGREC_FAST_ISA names another.
    """
    return ISA_NAMES[torch.ops.kgrec_fast._isa(-1)] if CPU.loaded else "none"


def set_isa(name: str) -> None:
    """Switches the CPU kernels of this process to another instruction set (for tests).

    Raises:
        ValueError: `name` is unknown, or the machine does not have it.
    """
    if name not in ISA_NAMES:
        raise ValueError(f"name is {name!r}, expected one of {', '.join(ISA_NAMES)}")
    if not CPU.loaded:
        raise ValueError(f"no CPU kernels are loaded: {CPU.error}")
    wanted = ISA_NAMES.index(name)
    if torch.ops.kgrec_fast._isa(wanted) != wanted:
        raise ValueError(f"name is {name!r}, which this machine does not have")


def supported_isas() -> list[str]:
    """Instruction sets that can run here, from the simplest to the best."""
    if not CPU.loaded:
        return []
    before = torch.ops.kgrec_fast._isa(-1)
    names = [n for i, n in enumerate(ISA_NAMES) if torch.ops.kgrec_fast._isa(i) == i]
    torch.ops.kgrec_fast._isa(before)
    return names


def op_names() -> list[str]:
    """Every op of the library that computes something, sorted."""
    prefix = "kgrec_fast::"
    names = (name for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix))
    return sorted(name[len(prefix) :] for name in names if not name.startswith(prefix + "_"))


def cuda_op_names() -> list[str]:
    """Those of `op_names` with a CUDA implementation."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in op_names() if has(f"kgrec_fast::{name}", "CUDA")]


def cuda_architectures() -> list[int]:
    """Compute capabilities the CUDA library was compiled for, as 80 for 8.0; [] where not loaded.

    Newer cards compile the last one's PTX when a kernel first runs.
    """
    return list(torch.ops.kgrec_fast._cuda_architectures()) if CUDA.loaded else []


@cache
def cuda_is_complete() -> bool:
    """Whether every op has a CUDA implementation; until then CUDA tensors take the references."""
    return CUDA.loaded and cuda_op_names() == op_names()
