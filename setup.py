"""Build of the two native libraries; everything declarative stands in pyproject.toml.

``kgrec_fast._C`` (op schemas and CPU kernels) is built against PyTorch's stable ABI and the limited
Python API, so that one binary serves every torch from 2.10 and every Python from 3.10 on.
``kgrec_fast._C_cuda`` (CUDA kernels) is built where torch has CUDA and a toolkit is found:

* ``KGREC_FAST_CUDA=1`` makes its absence an error, ``KGREC_FAST_CUDA=0`` leaves it out;
* ``TORCH_CUDA_ARCH_LIST`` chooses the architectures, as in every PyTorch extension.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020a000000000000"  # stable ABI of torch 2.10

DEFINES = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
CXX_FLAGS = [
    "-O3",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",  # torch headers
    "-Wno-psabi",  # vector types are only passed to functions that are always inlined
    "-Wno-unknown-pragmas",
    "-Wno-uninitialized",  # g++ 12, inside its own AVX-512 intrinsics
    # Contraction is per expression and keeps inf and NaN; ISO mode would switch it off.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]


def _sources(folder: str, *suffixes: str) -> list[str]:
    """Relative paths, as setuptools wants them, of all sources below csrc/<folder>."""
    base = ROOT / "csrc" / folder
    return sorted(str(p.relative_to(ROOT)) for p in base.glob("*") if p.suffix in suffixes)


def _headers() -> list[str]:
    base = ROOT / "csrc"
    return sorted(str(p.relative_to(ROOT)) for p in base.rglob("*") if p.suffix in (".h", ".cuh"))


def _cpu_extension() -> Extension:
    return cpp_extension.CppExtension(
        "kgrec_fast._C",
        ["csrc/ops.cpp", *_sources("cpu", ".cpp")],
        include_dirs=[str(ROOT / "csrc")],
        depends=_headers(),
        extra_compile_args={"cxx": DEFINES + CXX_FLAGS},
        extra_link_args=["-Wl,--as-needed"] if sys.platform == "linux" else [],
        py_limited_api=True,
    )


def _cuda_extension() -> Extension | None:
    """The CUDA library, None where it is left out; raises where it was asked for and cannot be."""
    wish = os.environ.get("KGREC_FAST_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"KGREC_FAST_CUDA is {wish!r}, expected 0, 1 or nothing")
    if wish == "0":
        return None
    sources = _sources("cuda", ".cpp", ".cu")
    missing = None
    if not sources:
        missing = "this version of kgrec_fast has no CUDA kernels yet"
    elif torch.version.cuda is None:
        missing = f"torch {torch.__version__} was built without CUDA"
    elif cpp_extension.CUDA_HOME is None:
        missing = "no CUDA toolkit was found (set CUDA_HOME)"
    if missing:
        if wish == "1":
            raise SystemExit(f"KGREC_FAST_CUDA=1, but the CUDA library cannot be built: {missing}")
        print(f"kgrec_fast: building without the CUDA library: {missing}", file=sys.stderr)
        return None
    return cpp_extension.CUDAExtension(
        "kgrec_fast._C_cuda",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        depends=_headers(),
        extra_compile_args={
            "cxx": [*DEFINES, "-DUSE_CUDA", "-O3"],
            "nvcc": [*DEFINES, "-DUSE_CUDA", "-O3"],
        },
        py_limited_api=True,
    )


setup(
    ext_modules=[e for e in (_cpu_extension(), _cuda_extension()) if e is not None],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
