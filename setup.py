"""Build of the two native libraries; everything declarative stands in pyproject.toml.

``kgrec_fast._C`` (op schemas and CPU kernels) is built against PyTorch's stable ABI and the limited
Python API, so that one binary serves every torch from 2.10 and every Python from 3.10 on.
``kgrec_fast._C_cuda`` (CUDA kernels) is built where torch has CUDA and a toolkit is found:

* ``KGREC_FAST_CUDA=1`` makes its absence an error, ``KGREC_FAST_CUDA=0`` leaves it out;
* ``KGREC_FAST_WERROR=1`` makes warnings of the CUDA sources errors, as in `make test`: compilers
  of others may warn of more than ours;
* ``KGREC_FAST_SANITIZE=1`` builds the CPU library for `make sanitize`;
* ``TORCH_CUDA_ARCH_LIST`` chooses the architectures, as in every PyTorch extension; without it
  all of CUDA_ARCHITECTURES that the toolkit knows are built, whatever card is in this machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        f"kgrec_fast is built against torch, which cannot be imported here ({error}): run "
        "`pip install 'torch>=2.10' ninja` first, or leave out --no-build-isolation"
    ) from error

MIN_TORCH = (2, 10)
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
    raise SystemExit(
        f"torch {torch.__version__} is too old to build kgrec_fast against: run "
        "`pip install 'torch>=2.10'` first, or leave out --no-build-isolation"
    )

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020a000000000000"  # stable ABI of torch 2.10

CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")

DEFINES = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]  # torch headers have unused parameters
CXX_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags may ask for debug information, ten times the library
    *WARNINGS,
    "-Wno-psabi",  # vector types are only passed to functions that are always inlined
    "-Wno-unknown-pragmas",
    "-Wno-uninitialized",  # g++ 12, inside its own AVX-512 intrinsics
    # Contraction is per expression and keeps inf and NaN; ISO mode would switch it off.
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]
SANITIZERS = []
if os.environ.get("KGREC_FAST_SANITIZE") == "1":
    # Optimised further, such code takes long to compile.
    SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-O1"]
WERROR = os.environ.get("KGREC_FAST_WERROR") == "1"
CUDA_HOST_FLAGS = [*WARNINGS, *(["-Werror"] if WERROR else []), "-fvisibility=hidden"]
NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    *(["-Werror=all-warnings"] if WERROR else []),
    f"-Xcompiler={','.join(CUDA_HOST_FLAGS)}",
    "--threads=2",  # architectures of one file side by side, and ninja runs files side by side
]


def _sources(folder: str, *suffixes: str) -> list[str]:
    """Relative paths, as setuptools wants them, of all sources below csrc/<folder>."""
    base = ROOT / "csrc" / folder
    return sorted(str(p.relative_to(ROOT)) for p in base.glob("*") if p.suffix in suffixes)


def _headers() -> list[str]:
    base = ROOT / "csrc"
    return sorted(str(p.relative_to(ROOT)) for p in base.rglob("*") if p.suffix in (".h", ".cuh"))


def _link_options(*more: str) -> dict[str, list[str]]:
    """Of a library that takes from torch the shim alone."""
    if sys.platform != "linux":
        return {}
    # torch's libraries export parts of libstdc++, too: it comes before them.
    return {"libraries": ["stdc++"], "extra_link_args": ["-Wl,--as-needed", *more]}


class BuildLibraries(cpp_extension.BuildExtension):
    """torch's build_ext, which looks for the compiler before it calls it."""

    def build_extensions(self) -> None:
        compiler = cpp_extension.get_cxx_compiler()
        if shutil.which(shlex.split(compiler)[0]) is None:
            raise SystemExit(
                f"kgrec_fast needs a C++ compiler, and there is no {compiler}: run "
                "`apt-get install g++`, or set CXX to one"
            )
        super().build_extensions()


def _cpu_extension() -> Extension:
    return cpp_extension.CppExtension(
        "kgrec_fast._C",
        ["csrc/ops.cpp", *_sources("cpu", ".cpp")],
        include_dirs=[str(ROOT / "csrc")],
        depends=_headers(),
        extra_compile_args={"cxx": [*DEFINES, *CXX_FLAGS, *SANITIZERS]},
        **_link_options(*SANITIZERS),
        py_limited_api=True,
    )


def _cuda_home() -> str | None:
    """The toolkit: CUDA_HOME where it is set, else torch's guess or the usual place."""
    asked = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for home in [asked] if asked else [cpp_extension.CUDA_HOME, "/usr/local/cuda"]:
        if home and all((Path(home) / x).exists() for x in ("bin/nvcc", "include/cuda_runtime.h")):
            return home
    return None


def _ask_nvcc(cuda_home: str, question: str) -> str:
    command = [str(Path(cuda_home) / "bin" / "nvcc"), question]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _known_architectures(cuda_home: str) -> str:
    """Those of CUDA_ARCHITECTURES that nvcc knows, the last also as PTX for what comes after it."""
    known = _ask_nvcc(cuda_home, "--list-gpu-arch").split()
    names = [x for x in CUDA_ARCHITECTURES if f"compute_{x.replace('.', '')}" in known]
    return ";".join(names) + "+PTX"


def _why_no_cuda(cuda_home: str | None) -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: install one with it"
    if cuda_home is None:
        return "no CUDA toolkit was found: install one, or set CUDA_HOME"
    release = re.search(r"release ([\d.]+)", _ask_nvcc(cuda_home, "--version"))
    version = release[1] if release else "of an unknown version"
    major = torch.version.cuda.split(".")[0]
    if version.split(".")[0] != major:
        return (
            f"the CUDA toolkit in {cuda_home} is {version}, that of torch {torch.version.cuda}: "
            f"set CUDA_HOME to one of CUDA {major}"
        )
    return None


def _cuda_extension() -> Extension | None:
    """The CUDA library, None where it is left out; raises where it was asked for and cannot be."""
    wish = os.environ.get("KGREC_FAST_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"KGREC_FAST_CUDA is {wish!r}, expected 0, 1 or nothing")
    if wish == "0":
        return None
    home = _cuda_home()
    missing = _why_no_cuda(home)
    if missing or home is None:
        if wish == "1":
            raise SystemExit(f"KGREC_FAST_CUDA=1, but the CUDA library cannot be built: {missing}")
        print(f"kgrec_fast: building without the CUDA library: {missing}", file=sys.stderr)
        return None
    cpp_extension.CUDA_HOME = home
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = _known_architectures(home)
    return cpp_extension.CUDAExtension(
        "kgrec_fast._C_cuda",
        _sources("cuda", ".cpp", ".cu"),
        include_dirs=[str(ROOT / "csrc")],
        depends=_headers(),
        extra_compile_args={
            "cxx": [*DEFINES, "-DUSE_CUDA", "-O3", "-g0", *CUDA_HOST_FLAGS],
            "nvcc": NVCC_FLAGS,  # no torch in there
        },
        **_link_options(),
        py_limited_api=True,
    )


setup(
    ext_modules=[e for e in (_cpu_extension(), _cuda_extension()) if e is not None],
    cmdclass={"build_ext": BuildLibraries},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
