"""The built libraries take from torch its stable C shim alone, and from Python nothing.

That one binary serves every torch from 2.10 on stands on this. The tables of dynamic symbols are
read as the loader reads them; what the shim is, torch's own headers say.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.hash import GNUHashSection

from kgrec_fast import _library

ROOT = Path(__file__).parent.parent
TORCH = Path(torch.__file__).parent
SHIM_HEADERS = (
    "torch/csrc/inductor/aoti_torch/c/*.h",
    "torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h",
    "torch/csrc/stable/c/*.h",
)
LIBRARIES = [x for x in (_library.CPU, _library.CUDA) if x.path is not None]
each_library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)


def undefined(path: Path) -> dict[str, str | None]:
    """Symbols that a library wants from others, with the library whose version it asks for."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".dynsym")
        versions = elf.get_section_by_name(".gnu.version")
        needed = elf.get_section_by_name(".gnu.version_r")
        assert isinstance(needed, GNUVerNeedSection)
        owner = {
            version["vna_other"]: need.name
            for need, all_of in needed.iter_versions()
            for version in all_of
        }
        return {
            symbol.name: owner.get(versions.get_symbol(i)["ndx"])
            for i, symbol in enumerate(symbols.iter_symbols())
            if symbol.name and symbol["st_shndx"] == "SHN_UNDEF"
        }


def exported_by_torch(names: list[str]) -> set[str]:
    """Those of some symbols that a library of torch defines."""
    found = set()
    for path in sorted((TORCH / "lib").glob("lib*.so")):
        if not re.match(r"lib(c10|torch)", path.name):
            continue
        with path.open("rb") as file:
            table = ELFFile(file).get_section_by_name(".gnu.hash")
            assert isinstance(table, GNUHashSection), path
            found |= {name for name in names if table.get_symbol(name) is not None}
    return found


def shim() -> set[str]:
    """Every name that the headers of the C shim declare."""
    headers = [path for pattern in SHIM_HEADERS for path in (TORCH / "include").glob(pattern)]
    assert headers
    return {
        name
        for path in headers
        for name in re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", path.read_text())
    }


@each_library
def test_what_torch_exports_is_wanted_from_the_shim_alone(library: _library.Library) -> None:
    assert library.path is not None
    wanted = undefined(library.path)
    # What carries a version is that of another library, such as libstdc++.
    free = [name for name, owner in wanted.items() if owner is None]
    of_torch = exported_by_torch(free)
    assert len(of_torch) > 10  # the table was read
    assert of_torch <= shim()


def is_of_torchs_c_plus_plus(name: str) -> bool:
    """Whether a mangled name has a part, such as `3c10`, that is one of torch's namespaces."""
    return re.match(r"_Z.*?(?<!\d)(2at|3c10|5torch|6caffe2)(?=[A-Z\d])", name) is not None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("_ZN3c106detail14torchCheckFailEPKcS2_jRKSs", True),
        ("_ZNK2at10TensorBase8toStringEv", True),
        ("_ZTIN5torch8autograd8FunctionE", True),
        ("_ZNSt6vectorIN3c1010IValueESaIS1_EED1Ev", True),
        ("_ZNSt13runtime_errorC1EPKc", False),
        ("_ZN6kgrec3cpu5torchyEv", False),
        ("aoti_torch_get_dim", False),
    ],
)
def test_torchs_c_plus_plus_is_told_by_its_namespaces(name: str, wanted: bool) -> None:
    assert is_of_torchs_c_plus_plus(name) == wanted


@each_library
def test_nothing_of_torchs_c_plus_plus_is_wanted(library: _library.Library) -> None:
    assert library.path is not None
    assert [name for name in undefined(library.path) if is_of_torchs_c_plus_plus(name)] == []


@each_library
def test_python_is_not_wanted(library: _library.Library) -> None:
    """The binary of one Python serves all: it calls none of it."""
    assert library.path is not None
    assert [name for name in undefined(library.path) if re.match(r"_?Py", name)] == []


# Macros that the headers of torch 2.10 have, of those that later ones have too.
MACROS = {
    "STABLE_TORCH_LIBRARY",
    "STABLE_TORCH_LIBRARY_IMPL",
    "STD_CUDA_CHECK",
    "STD_CUDA_KERNEL_LAUNCH_CHECK",
    "STD_TORCH_CHECK",
    "TORCH_ABI_VERSION",
    "TORCH_BOX",
    "TORCH_ERROR_CODE_CHECK",
}


def test_sources_need_no_macro_that_is_younger_than_the_oldest_torch() -> None:
    """Who builds against the oldest torch has its headers, whatever the target version hides."""
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu", ".cuh", ".h")]
    names = re.compile(r"\b(?:STD|STABLE|THO|TORCH)_[A-Z_0-9]+\b")
    used = {name for path in sources for name in names.findall(path.read_text())}
    assert used <= MACROS
    assert "TORCH_BOX" in used
