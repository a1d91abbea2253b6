"""One thread, as tensors as small as these gain nothing from more."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
