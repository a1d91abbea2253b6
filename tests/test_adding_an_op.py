"""docs/adding_an_op.md keeps its word: its template, put into a copy of the sources, works there.

The copy has no other op: both libraries, with the schemas of all, are then built within seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "adding_an_op.md"
sys.path.insert(0, str(ROOT / "tests" / "cuda"))
import build_host  # noqa: E402

# "`file`:" or "`file`, before `the beginning of a line`:", and the code.
BLOCK = re.compile(
    r"^`([^`\n]+)`(?:, before `([^`\n]+)`)?:\n\n```(?:cpp|python)?\n(.*?)^```$", re.DOTALL | re.M
)


class Block(NamedTuple):
    """A new file, or lines that go before a line of one that is there."""

    file: str
    before: str
    code: str


def template() -> list[Block]:
    _, text = PAGE.read_text(encoding="utf-8").split("\n## A template\n")
    blocks = [Block(*groups) for groups in BLOCK.findall(text)]
    opened = re.findall(r"^```(.*)$", text, re.M)[::2]
    # None is passed over because its heading is written in another way.
    assert len(blocks) == len(opened) - opened.count("sh")
    return blocks


def insert(block: Block, root: Path) -> None:
    path = root / block.file
    if not block.before:
        assert path.parent.is_dir(), block.file
        assert not path.exists(), block.file
        path.write_text(block.code, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    (place,) = (i for i, line in enumerate(lines) if line.strip().startswith(block.before))
    path.write_text("".join([*lines[:place], block.code, *lines[place:]]), encoding="utf-8")


def run(root: Path, *arguments: str, **environment: str) -> str:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the template, built; and what the emulator has been compiled to so far."""
    if any((ROOT / block.file).exists() for block in template() if not block.before):
        pytest.skip("the template is in the sources themselves")
    build_host.build()
    build_host.build_program()
    root = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "lock")
    for folder in ("csrc", "kgrec_fast", "tests", "benchmarks", "docs/reference"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, root / file)
    for path in (*root.glob("csrc/cpu/*.cpp"), *root.glob("csrc/cuda/*.c*")):
        if path.suffix in (".cpp", ".cu") and not path.name.startswith(("isa", "architectures")):
            path.unlink()
    shutil.copytree(build_host.BUILD, root / "build" / "cuda_host")
    for record in root.glob("build/cuda_host/*/*.json"):  # of files by their whole path
        record.write_text(record.read_text().replace(f"{ROOT}/", f"{root}/"))
    for block in template():
        insert(block, root)
    run(root, "setup.py", "-q", "build_ext", "--inplace", TORCH_CUDA_ARCH_LIST="8.0", MAX_JOBS="2")
    return root


def test_the_table_of_places_is_that_of_the_template() -> None:
    rows = re.findall(r"^\| .* \| (`.*`) \| .* \|$", PAGE.read_text(encoding="utf-8"), re.M)
    places = {name for row in rows for name in re.findall(r"`([^`]*/[^`]*)`", row)}
    places.remove("csrc/cpu/X.h")  # "or at the top of X.cpp", as here
    assert {block.file for block in template()} == {x.replace("X", "scale_rows") for x in places}


def test_the_tests_of_the_template_pass(copy: Path) -> None:
    run(
        copy,
        *("-m", "pytest", "-p", "no:cacheprovider", "-k", "scale_rows"),
        *("tests/ops/test_scale_rows.py", "tests/cuda/test_cuda_scale_rows.py"),
        *("tests/test_on_cuda.py", "tests/pytorch/test_torch_func.py"),
        KGREC_FAST_TEST_DEVICE="cpu",
    )


def test_the_tests_that_look_for_every_op_pass(copy: Path) -> None:
    everywhere = "reference_has_every_public_name or every_public_op_with_a_cuda_kernel"
    run(
        copy,
        *("-m", "pytest", "-p", "no:cacheprovider", "-k", everywhere),
        *("tests/test_readme.py", "tests/test_gpu_check.py"),
    )


def test_the_cuda_library_has_the_op(copy: Path) -> None:
    facts = run(copy, "-m", "kgrec_fast.info")
    if not list(copy.glob("kgrec_fast/_C_cuda.*so")):
        pytest.skip("the CUDA library cannot be built here")
    assert re.search(r"^ops on cuda +1 of \d+: scale_rows$", facts, re.M)
