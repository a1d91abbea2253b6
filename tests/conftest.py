"""Fixtures for every test: the instruction sets of this machine, and calm around threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kgrec_fast import _library


def pytest_configure() -> None:
    # A suite that silently ran on the reference ops would test nothing.
    if not _library.CPU.loaded:
        raise pytest.UsageError(f"the native library is not loaded: {_library.CPU.error}")


@pytest.fixture(params=_library.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set that the machine has."""
    before = _library.isa()
    _library.set_isa(request.param)
    yield request.param
    _library.set_isa(before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
