"""Builds the emulator once a session, before the first test that needs it."""

from __future__ import annotations

import build_host
import pytest


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    build_host.build()
