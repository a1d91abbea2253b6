"""What an sdist holds, and what a build says where it cannot go on.

Builds stop before anything is compiled. Those of a real wheel are checked by `make wheel-check`.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils import cpp_extension

from kgrec_fast import _library

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("benchmarks", "csrc", "docs", "kgrec_fast", "tests")
LEFT = shutil.ignore_patterns("__pycache__", "*.so", "_build")


def test_an_sdist_holds_all_that_a_build_and_its_tests_take(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in SHIPPED:
        shutil.copytree(ROOT / folder, source / folder, ignore=LEFT)
    for file in ROOT.iterdir():
        if file.is_file() and file.name != ".git":
            shutil.copy(file, source)
    (source / "kgrec_fast" / "_C.abi3.so").write_text("of another build")
    build = "from setuptools import build_meta as b; import sys; print(b.build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source,
        env={**os.environ, "KGREC_FAST_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / done.stdout.split()[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        files = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    wanted = {
        str(path.relative_to(source))
        for folder in SHIPPED
        for path in (source / folder).rglob("*")
        if path.is_file() and path.suffix != ".so"
    }
    wanted |= {"LICENSE", "Makefile", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    made = {"PKG-INFO", "setup.cfg"}
    assert files - made - {n for n in names if ".egg-info/" in n} == wanted | {".clang-format"}


# -- setup.py --------------------------------------------------------------------------------------


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A CUDA toolkit of version 12.4, as far as setup.py looks, that knows two architectures."""
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    answer = '[ "$1" = --version ] && echo "release 12.4, V12.4.131" || echo compute_80 compute_90'
    (tmp_path / "bin/nvcc").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "bin/nvcc").chmod(0o755)
    return tmp_path


def extensions(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    """Names of the libraries that setup.py would build in an environment."""
    for name in ("KGREC_FAST_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    arguments: dict[str, Any] = setup.call_args.kwargs
    return [extension.name for extension in arguments["ext_modules"]]


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What setup.py says where it stops."""
    with pytest.raises(SystemExit) as stopped:
        extensions(monkeypatch, **environment)
    return str(stopped.value)


def test_the_oldest_torch_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGREC_FAST_CUDA", "0")
    with mock.patch("setuptools.setup"):
        names = runpy.run_path(str(ROOT / "setup.py"))
    major, minor = _library.MIN_TORCH
    assert names["MIN_TORCH"] == (major, minor)
    assert names["TORCH_TARGET"] == f"0x{major:02x}{minor:02x}000000000000"
    required = re.findall(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert required == [f"{major}.{minor}"] * 2  # to build and to run


def test_a_build_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where build isolation is left out in an environment that has no torch yet."""
    monkeypatch.setitem(sys.modules, "torch", None)
    said = refusal(monkeypatch)
    assert said.startswith("kgrec_fast is built against torch, which cannot be imported here (")
    assert said.endswith(
        "run `pip install 'torch>=2.10' ninja` first, or leave out --no-build-isolation"
    )


def test_a_build_against_a_torch_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert refusal(monkeypatch) == (
        "torch 2.9.1+cpu is too old to build kgrec_fast against: run `pip install 'torch>=2.10'` "
        "first, or leave out --no-build-isolation"
    )


def test_a_wish_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, KGREC_FAST_CUDA="yes")
    assert said == "KGREC_FAST_CUDA is 'yes', expected 0, 1 or nothing"


@pytest.mark.parametrize(
    ("cuda", "home", "reason"),
    [
        (None, "", f"torch {torch.__version__} was built without CUDA: install one with it"),
        ("12.8", "/nowhere", "no CUDA toolkit was found: install one, or set CUDA_HOME"),
        (
            "13.0",
            "toolkit",
            "the CUDA toolkit in {toolkit} is 12.4, that of torch 13.0: "
            "set CUDA_HOME to one of CUDA 13",
        ),
    ],
)
def test_a_build_whose_cuda_does_not_fit(
    cuda: str | None,
    home: str,
    reason: str,
    toolkit: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a wish the CUDA library is left out, and the build says why; with one it stops."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    home, reason = home.replace("toolkit", str(toolkit)), reason.format(toolkit=toolkit)
    assert extensions(monkeypatch, CUDA_HOME=home) == ["kgrec_fast._C"]
    assert capsys.readouterr().err == f"kgrec_fast: building without the CUDA library: {reason}\n"
    said = refusal(monkeypatch, CUDA_HOME=home, KGREC_FAST_CUDA="1")
    assert said == f"KGREC_FAST_CUDA=1, but the CUDA library cannot be built: {reason}"
    assert extensions(monkeypatch, CUDA_HOME=home, KGREC_FAST_CUDA="0") == ["kgrec_fast._C"]
    assert capsys.readouterr().err == ""


def test_a_build_whose_cuda_fits(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    home = str(toolkit)
    both = ["kgrec_fast._C", "kgrec_fast._C_cuda"]
    assert extensions(monkeypatch, CUDA_HOME=home) == both
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0+PTX"
    assert extensions(monkeypatch, CUDA_HOME=home, TORCH_CUDA_ARCH_LIST="8.6") == both
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6"


def test_a_build_without_a_compiler(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "-b", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "KGREC_FAST_CUDA": "0", "CXX": "no-such-compiler -O2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "kgrec_fast needs a C++ compiler, and there is no no-such-compiler -O2: run "
        "`apt-get install g++`, or set CXX to one"
    )


def test_warnings_are_errors_only_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for wish, expected in (("", False), ("1", True)):
        monkeypatch.setenv("KGREC_FAST_CUDA", "0")
        monkeypatch.setenv("KGREC_FAST_WERROR", wish)
        with mock.patch("setuptools.setup"):
            names = runpy.run_path(str(ROOT / "setup.py"))
        flags = " ".join([*names["NVCC_FLAGS"], *names["CUDA_HOST_FLAGS"], *names["CXX_FLAGS"]])
        assert ("Werror" in flags) is expected
