"""Finds and loads the native libraries, and keeps the reason where one is missing.

``_C`` holds every op schema and the CPU kernels, ``_C_cuda`` the CUDA kernels. Nothing here
compiles or downloads anything, and importing the package never fails because of a binary. Each
reason is one sentence that ends with what to do about it.
"""

from __future__ import annotations

import mmap
import os
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

ISA_NAMES = ("baseline", "avx2", "avx512")
MIN_TORCH = (2, 10)

# Ops without a CUDA kernel: in their place CUDA tensors take torch's own.
CPU_ONLY = frozenset(
    (
        "count_edges",
        "edge_subgraph",
        "edges_of_rows",
        "masked_slots",
        "project",
        "project_backward_onto",
        "projection_head",
        "projection_head_backward",
        "row_subgraph",
        "scatter_add_",
    )
)

BUILD = "build it here with `pip install --no-build-isolation .` in the sources of kgrec_fast"
BUILD_CUDA = BUILD.replace("pip", "KGREC_FAST_CUDA=1 pip")


@dataclass(frozen=True)
class Library:
    """One native library: where it was found, and why it is not loaded (None when it is)."""

    name: str
    path: Path | None
    error: str | None

    @property
    def loaded(self) -> bool:
        return self.error is None


def _find(name: str) -> Path | None:
    return next(iter(sorted(Path(__file__).parent.glob(f"{name}.*so"))), None)


def _load(name: str, build: str = BUILD) -> Library:
    path = _find(name)
    if os.environ.get("KGREC_FAST_REFERENCE") == "1":
        return Library(name, path, "KGREC_FAST_REFERENCE=1 asks for the reference ops")
    if path is None:
        return Library(name, None, f"no such file lies beside the package: {build}")
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH:
        old = f"torch {torch.__version__} is too old: update it with `pip install 'torch>=2.10'`"
        return Library(name, path, old)
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return Library(name, path, f"{' '.join(str(error).split())}: {build}")
    return Library(name, path, None)


def _load_cuda() -> Library:
    if not CPU.loaded:
        return Library("_C_cuda", None, "needs _C, which is not loaded")
    if torch.version.cuda is None:
        return Library("_C_cuda", None, f"torch {torch.__version__} was built without CUDA")
    path = _find("_C_cuda")
    major = _cuda_major(path) if path else None
    if major is not None and major != int(torch.version.cuda.split(".")[0]):
        # It may well load, beside a second CUDA runtime.
        misfit = f"built for CUDA {major}, and torch {torch.__version__} has {torch.version.cuda}"
        return Library("_C_cuda", path, f"{misfit}: {BUILD_CUDA}")
    return _load("_C_cuda", BUILD_CUDA)


def _cuda_major(path: Path) -> int | None:
    """Major version of the CUDA runtime that a library names; None where it names none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(rb"libcudart\.so\.(\d+)", data)
        return int(found[1]) if found else None


CPU = _load("_C")
CUDA = _load_cuda()
_warned = False


def is_native(device: torch.device) -> bool:
    """Whether tensors on `device` are served by native kernels."""
    return why_not_native(device) is None


def why_not_native(device: torch.device) -> str | None:
    """Why tensors on `device` take the reference ops; None where native kernels serve them."""
    if CPU.error is not None:
        return CPU.error
    if device.type == "cuda":
        return _why_not_on_cuda(device.index)
    if device.type in ("cpu", "meta"):  # fake and meta tensors need the schemas only
        return None
    return f"no native kernels exist for device type {device.type!r}"


def _why_not_on_cuda(index: int | None) -> str | None:
    if CUDA.error is not None:
        return CUDA.error
    if not cuda_is_complete():
        return f"so far {len(cuda_op_names())} of {len(ops_for_cuda())} ops have CUDA kernels"
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return _why_not_on_card(index)


# For torch.compile, which cannot look into the dispatcher. This is what
# torch.compiler.assume_constant_result does, but that imports the compiler.
_why_not_on_cuda._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _why_not_on_card(index: int) -> str | None:
    if not torch.cuda.is_available():
        return None  # for fake tensors
    major, minor = torch.cuda.get_device_capability(index)
    card, built = 10 * major + minor, cuda_architectures()
    # Machine code runs on later cards of its major version; later ones compile the last one's PTX.
    if card >= built[-1] or any(x <= card and x // 10 == major for x in built):
        return None
    build = BUILD_CUDA.replace("`", f"`TORCH_CUDA_ARCH_LIST={major}.{minor} ", 1)
    return (
        f"{torch.cuda.get_device_name(index)} is sm_{card}, and _C_cuda was built for "
        f"{', '.join(f'sm_{x}' for x in built)}: {build}"
    )


def warn_once(device: torch.device) -> None:
    """Tells, once a process, that ops run as plain PyTorch on `device`, and why."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "kgrec_fast runs on its reference ops, which are much slower: "
            f"{why_not_native(device)}. See `python -m kgrec_fast.info`.",
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


def ops_for_cuda() -> list[str]:
    """Those of `op_names` that are to have a CUDA implementation."""
    return [name for name in op_names() if name not in CPU_ONLY]


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
    """Whether all of `ops_for_cuda` are there; until then CUDA tensors take the references."""
    return CUDA.loaded and cuda_op_names() == ops_for_cuda()
