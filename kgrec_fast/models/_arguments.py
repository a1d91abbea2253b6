"""What the model accepts as a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]


def batch_ids(batch: Batch, name: str, size: int, like: Tensor | None = None) -> Tensor:
    """Ids [B] of a batch.

    Args:
        batch: Tensors by name.
        name: The one that is wanted.
        size: The ids are below it. Checked on CPU, elsewhere the check would stall the device.
        like: Other ids, whose shape is expected.

    Raises:
        TypeError, ValueError: They are not what is expected.
    """
    if isinstance(batch, Tensor) or not hasattr(batch, "__getitem__"):
        raise TypeError(f"batch is a {type(batch).__name__}, expected a mapping of tensors")
    try:
        ids = batch[name]
    except KeyError:
        raise ValueError(f"batch has no {name!r}, expected int64 ids under that name") from None
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        found = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} is {found}, expected an int64 tensor")
    wanted = "[B]" if like is None else f"{list(like.shape)}, as the users"
    if ids.dim() != 1 or (like is not None and ids.shape != like.shape):
        raise ValueError(f"{name} has shape {list(ids.shape)}, expected {wanted}")
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= size:
            raise ValueError(
                f"{name} holds {low if low < 0 else high}, expected ids in [0, {size})"
            )
    return ids.long()
