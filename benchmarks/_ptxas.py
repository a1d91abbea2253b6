"""What ptxas says of every CUDA kernel: compiles csrc/cuda as setup.py does, and reads the reports.

nvcc is told to keep the PTX it makes, for the launch bounds stand there alone (`.maxntid`).
Figures are kept in build/ by the content that they depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from torch.utils import cpp_extension

from benchmarks._harness import ROOT

CACHE = ROOT / "build" / "kernel_resources"
ELEMENTS = {"float": "float32", "double": "float64", "Half": "float16", "BFloat16": "bfloat16"}


@dataclass(frozen=True)
class Name:
    """A kernel: its function, the type of its elements, and its other template arguments."""

    kernel: str
    element: str
    shape: str

    def __str__(self) -> str:
        return " ".join(part for part in astuple(self) if part)

    @property
    def specialised(self) -> bool:
        """Whether it is made for some shape, not for any."""
        return "any" not in self.shape.split()

    @property
    def order(self) -> tuple[Any, ...]:
        """To sort by: widths as numbers."""
        parts = re.findall(r"\d+|\D+", self.shape)
        return self.kernel, self.element, [part.zfill(9) for part in parts]


@dataclass(frozen=True)
class Usage:
    """What a kernel takes: threads of a block, registers of a thread, and bytes.

    Shared memory is what the kernel declares: more may be asked for at launch.
    """

    threads: int
    registers: int
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def is_local(self) -> bool:
        """Whether something lies in local memory, which is no faster than global memory."""
        return bool(self.stack or self.spill_stores or self.spill_loads)


# Of each kernel, by architecture (such as 8.0).
Usages = dict[Name, dict[str, Usage]]


# -- Reading --------------------------------------------------------------------------------------


def name_of(demangled: str) -> Name:
    """`void kgrec::cuda::x_kernel<float, kgrec::cuda::RowShape<float, 64, 16> >()`: x float32 64.

    Vectors of other than 16 bytes are said (32/8), AnyShape reads any, other template arguments
    stay as they are.
    """
    text = re.sub(r"(\w+::)+", "", demangled.removeprefix("void "))
    text = re.sub(r"RowShape<\w+, (\d+), 16>", r"\1", text).replace("AnyShape", "any")
    text = re.sub(r"RowShape<\w+, (\d+), (\d+)>", r"\1/\2", text)
    found = re.match(r"(\w+?)(?:_kernel)?(?:<(.*)>)?\(", text)
    if found is None:
        raise ValueError(f"{demangled!r} is not the signature of a kernel")
    arguments = [argument.strip() for argument in (found[2] or "").split(",") if argument.strip()]
    element = ELEMENTS.get(arguments[0], "") if arguments else ""
    return Name(found[1], element, " ".join(arguments[1:] if element else arguments))


FIGURES = {
    "registers": r"Used (\d+) registers",
    "shared": r"(\d+) bytes smem",
    "stack": r"(\d+) bytes stack frame",
    "spill_stores": r"(\d+) bytes spill stores",
    "spill_loads": r"(\d+) bytes spill loads",
}


def parse_report(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """What `ptxas -v` says, by mangled name and architecture."""
    result: dict[tuple[str, str], dict[str, int]] = {}
    figures: dict[str, int] = {}
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)(\d)\w?'", line):
            figures = result[entry[1], f"{entry[2]}.{entry[3]}"] = {}
        for figure, pattern in FIGURES.items():
            if found := re.search(pattern, line):
                # Functions that are called, not inlined, are listed with the entry.
                figures[figure] = max(figures.get(figure, 0), int(found[1]))
    return result


def parse_threads(ptx: str) -> dict[str, int]:
    """The block size in the launch bounds of each kernel, by mangled name."""
    result = {}
    for entry, directives in re.findall(r"\.entry\s+(\w+)\s*\([^)]*\)([^{]*)\{", ptx):
        bound = re.search(r"\.maxntid\s+(\d+(?:\s*,\s*\d+)*)", directives)
        if bound is None:
            raise ValueError(f"{entry} has no launch bounds")
        threads = 1
        for size in bound[1].split(","):
            threads *= int(size)
        result[entry] = threads
    return result


# -- Compiling ------------------------------------------------------------------------------------


@lru_cache
def _setup() -> dict[str, Any]:
    """The constants and functions of setup.py, which builds nothing here."""
    wishes = {"KGREC_FAST_CUDA": "0", "KGREC_FAST_WERROR": "1"}
    with mock.patch("setuptools.setup"), mock.patch.dict(os.environ, wishes):
        return runpy.run_path(str(ROOT / "setup.py"))


def architectures() -> list[str]:
    """Those that setup.py builds for, such as 8.0."""
    return list(_setup()["CUDA_ARCHITECTURES"])


def why_no_compiler() -> str | None:
    """Why nothing can be compiled here, None where it can."""
    reason = _setup()["_why_no_cuda"](_setup()["_cuda_home"]())
    return None if reason is None else str(reason)


def toolkit() -> Path:
    """The folder of the CUDA toolkit, where there is one."""
    return Path(_setup()["_cuda_home"]())


def _nvcc() -> str:
    return str(toolkit() / "bin" / "nvcc")


def _output(*command: str, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@lru_cache
def release() -> str:
    """Of nvcc, such as 13.0.88."""
    found = re.search(r"release [\d.]+, V([\d.]+)", _output(_nvcc(), "--version"))
    if found is None:
        raise RuntimeError(f"{_nvcc()} --version names no release")
    return found[1]


def _flags() -> list[str]:
    flags = [*cpp_extension.COMMON_NVCC_FLAGS, *_setup()["NVCC_FLAGS"]]
    return [flag for flag in flags if not flag.startswith("--threads")]


def sources() -> list[Path]:
    """The files that kernels are compiled from."""
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def included(source: Path) -> list[Path]:
    """The file and those of csrc that it includes, directly or not."""
    found, left = {source}, [source]
    while left:
        for name in re.findall(r'^#include "(.+)"', left.pop().read_text(), re.MULTILINE):
            path = ROOT / "csrc" / name
            if path.is_file() and path not in found:  # the emulator's is elsewhere
                found.add(path)
                left.append(path)
    return sorted(found)


def _kept(source: Path, architecture: str) -> Path:
    """Where figures are kept, named after the content of all that they depend on."""
    content = [path.read_text() for path in (Path(__file__), *included(source))]
    parts = [release(), *_flags(), *content]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return CACHE / f"{source.stem}-{architecture}-{digest}.json"


def _compile(source: Path, wanted: Sequence[str], threads: int) -> dict[str, dict[str, Usage]]:
    """Of the kernels of a file, by architecture and mangled name."""
    result: dict[str, dict[str, Usage]] = {architecture: {} for architecture in wanted}
    with tempfile.TemporaryDirectory() as folder:
        numbers = [architecture.replace(".", "") for architecture in wanted]
        targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
        where = [f"--keep-dir={folder}", f"-I{ROOT / 'csrc'}", "-o", f"{folder}/device.fatbin"]
        command = [_nvcc(), *_flags(), f"--threads={threads}", "-Xptxas=-v", "--keep", *where]
        report = parse_report(_output(*command, *targets, "-fatbin", str(source)))
        bounds: dict[str, int] = {}
        for path in Path(folder).glob("*.ptx"):
            bounds |= parse_threads(path.read_text())
    for (name, architecture), figures in report.items():
        result[architecture][name] = Usage(bounds[name], **figures)
    return result


def _of_file(source: Path, wanted: Sequence[str], threads: int) -> Iterator[tuple[str, str, Usage]]:
    """Mangled names, architectures and usages, compiled where they are not kept."""
    kept = {architecture: _kept(source, architecture) for architecture in wanted}
    missing = [architecture for architecture, path in kept.items() if not path.is_file()]
    if missing:
        CACHE.mkdir(parents=True, exist_ok=True)
        for architecture, usages in _compile(source, missing, threads).items():
            for old in CACHE.glob(f"{source.stem}-{architecture}-*"):
                old.unlink()
            part = kept[architecture].with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({n: astuple(u) for n, u in usages.items()}))
            part.replace(kept[architecture])
    for architecture, path in kept.items():
        for name, figures in json.loads(path.read_text()).items():
            yield name, architecture, Usage(*figures)


def measure(wanted: Sequence[str], threads: int = 2) -> Usages:
    """What every kernel takes on these architectures.

    Args:
        wanted: Such as 8.0.
        threads: Of nvcc.
    """
    found = [usage for source in sources() for usage in _of_file(source, wanted, threads)]
    mangled = sorted({name for name, _, _ in found})
    demangled = _output("c++filt", given="\n".join(mangled)).splitlines()
    names = {x: name_of(y) for x, y in zip(mangled, demangled, strict=True)}
    result: Usages = {name: {} for name in sorted(names.values(), key=lambda name: name.order)}
    for name, architecture, usage in found:
        result[names[name]][architecture] = usage
    return result
