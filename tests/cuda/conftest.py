"""Builds the emulator once a session, before the first test that needs it."""

from __future__ import annotations

import sys
from pathlib import Path

import build_host
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))  # graph_helpers


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    build_host.build()
