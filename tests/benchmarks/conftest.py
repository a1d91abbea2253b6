"""The benchmarks are no part of the package: they are imported from the root of the repository."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch, restore_threads: None) -> None:
    """What a benchmark pins for its process ends with the test."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
