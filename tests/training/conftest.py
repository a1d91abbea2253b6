"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import MatrixFactorisation, fresh_model, small_dataset, write_atomic

from kgrec_fast.data import KGDataset


@pytest.fixture(scope="session")
def dataset() -> KGDataset:
    return small_dataset()


@pytest.fixture
def model(dataset: KGDataset) -> MatrixFactorisation:
    return fresh_model(dataset)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory, dataset: KGDataset) -> Path:
    """The data set as atomic files."""
    return write_atomic(tmp_path_factory.mktemp("data") / "tiny", dataset)
