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
CXX = os.environ.get("CXX", "g++")
FLAGS = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-DKGREC_CUDA_HOST",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",  # unroll, which is nvcc's
    "-fvisibility=hidden",
    "-fno-strict-aliasing",  # rows are read as vectors
    "-ffp-contract=off",
    f"-I{ROOT / 'csrc'}",
    f"-I{HERE}",
]
MODULE_FLAGS = [
    f"-isystem{pybind11.get_include()}",
    f"-isystem{sysconfig.get_path('include')}",
]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "absent"


def _flags(source: Path) -> list[str]:
    return FLAGS + (MODULE_FLAGS if source.name == "module.cpp" else [])


def _recipe(source: Path, depends: list[str]) -> dict:
    """All that decides what the object of `source` is."""
    return {
        "command": [CXX, *_flags(source)],
        "depends": {path: _digest(Path(path)) for path in sorted(depends)},
    }


def _compile(source: Path) -> Path:
    """The object of one source, compiled if anything that it was made from has changed."""
    obj = BUILD / f"{source.stem}.o"
    record = BUILD / f"{source.stem}.json"
    if obj.exists() and record.exists():
        old = json.loads(record.read_text())
        if old == _recipe(source, list(old["depends"])):
            return obj
    record.unlink(missing_ok=True)
    rule = BUILD / f"{source.stem}.d"
    command = [CXX, *_flags(source), "-MMD", "-MF", str(rule), "-c", str(source), "-o", str(obj)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    depends = rule.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    record.write_text(json.dumps(_recipe(source, depends)))
    return obj


def build() -> Path:
    """Compiles what has changed, links, and returns the module's file."""
    BUILD.mkdir(parents=True, exist_ok=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    module = BUILD / f"kgrec_cuda_host{suffix}"
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = sorted(HERE.glob("*.cpp"))
        with ThreadPoolExecutor(min(MAX_JOBS, os.cpu_count() or 1)) as pool:
            objects = list(pool.map(_compile, sources))
        digests = json.dumps([CXX, *(_digest(obj) for obj in objects)])
        record = BUILD / "module.link"
        if not module.exists() or not record.exists() or record.read_text() != digests:
            temporary = module.with_suffix(".tmp")
            subprocess.run([CXX, "-shared", "-o", str(temporary), *map(str, objects)], check=True)
            temporary.replace(module)
            record.write_text(digests)
    return module


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
