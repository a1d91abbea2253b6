"""Files that torch.save has written."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch


def unpickled(path: str | PathLike[str]) -> Any:
    """The tensors and plain values in a file, on the CPU; None where it is of another kind.

    Raises:
        OSError: It cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # a file of another kind can make an unpickler raise anything
        return None
