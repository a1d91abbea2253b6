"""Builds the emulator with all entry points, cached by the content of its sources.

python tests/cuda/build_host.py     builds it and prints where it is
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_host"
MAX_JOBS = 2
MODULE_SOURCE = "module.cpp"
PROGRAM_SOURCE = "run_cases.cpp"
CXX = os.environ.get("CXX", "g++")
FLAGS = [
    "-std=c++17",
    "-DKGREC_CUDA_HOST",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",  # unroll, which is nvcc's
    "-fno-strict-aliasing",  # rows are read as vectors
    "-ffp-contract=off",
    f"-I{ROOT / 'csrc'}",
    f"-I{HERE}",
]
MODULE_FLAGS = [*FLAGS, "-O2", "-g1", "-fPIC", "-fvisibility=hidden"]
PYTHON_FLAGS = [
    f"-isystem{pybind11.get_include()}",
    f"-isystem{sysconfig.get_path('include')}",
]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
PROGRAM_FLAGS = [*FLAGS, *SANITIZE, "-O1", "-g", "-fno-omit-frame-pointer"]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "absent"


def _recipe(command: list[str], depends: list[str]) -> dict:
    """All that decides what the object of a source is."""
    return {
        "command": command,
        "depends": {path: _digest(Path(path)) for path in sorted(depends)},
    }


def _compile(source: Path, flags: list[str], folder: Path) -> Path:
    """The object of one source, compiled if anything that it was made from has changed."""
    obj = folder / f"{source.stem}.o"
    record = folder / f"{source.stem}.json"
    command = [CXX, *flags, *(PYTHON_FLAGS if source.name == MODULE_SOURCE else [])]
    if obj.exists() and record.exists():
        old = json.loads(record.read_text())
        if old == _recipe(command, list(old["depends"])):
            return obj
    record.unlink(missing_ok=True)
    rule = folder / f"{source.stem}.d"
    _run([*command, "-MMD", "-MF", str(rule), "-c", str(source), "-o", str(obj)])
    depends = rule.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    record.write_text(json.dumps(_recipe(command, depends)))
    return obj


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _build(target: Path, flags: list[str], link: list[str], without: str) -> Path:
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = sorted(s for s in HERE.glob("*.cpp") if s.name != without)
        with ThreadPoolExecutor(min(MAX_JOBS, os.cpu_count() or 1)) as pool:
            objects = list(pool.map(lambda s: _compile(s, flags, folder), sources))
        recipe = json.dumps([CXX, *link, *(_digest(obj) for obj in objects)])
        record = folder / "link.json"
        if not target.exists() or not record.exists() or record.read_text() != recipe:
            temporary = target.with_suffix(".tmp")
            _run([CXX, *link, "-o", str(temporary), *map(str, objects)])
            temporary.replace(target)
            record.write_text(recipe)
    return target


def build() -> Path:
    """Compiles what has changed, links, and returns the Python module's file."""
    target = BUILD / "module" / f"kgrec_cuda_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    return _build(target, MODULE_FLAGS, ["-shared"], without=PROGRAM_SOURCE)


def build_program() -> Path:
    """The same for the program that runs cases under AddressSanitizer and UBSan."""
    return _build(BUILD / "program" / "run_cases", PROGRAM_FLAGS, SANITIZE, without=MODULE_SOURCE)


def load() -> ModuleType:
    """The built module."""
    spec = importlib.util.spec_from_file_location("kgrec_cuda_host", build())
    if spec is None or spec.loader is None:
        raise ImportError("the emulator cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(build())
    print(build_program())
