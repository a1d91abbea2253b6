from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(restore_threads: None) -> None:
    """Tensors as small as these gain nothing from more, and lose much on a busy machine."""
    torch.set_num_threads(1)
