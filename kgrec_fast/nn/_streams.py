"""Random streams of message dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast.ops.random import Stream

# Where message dropout happens: "view/side". A block of streams serves two views, half each.
DROPOUT_STREAMS = {
    "rec/entity": int(Stream.ENTITY_MESSAGE),
    "kg/entity": int(Stream.ENTITY_MESSAGE) + 128,
    "rec/user": int(Stream.USER_MESSAGE),
    "ui/user": int(Stream.USER_MESSAGE) + 128,
    "ui/item": int(Stream.ITEM_MESSAGE),
}
MAX_HOPS = 128


def dropout_stream(place: str, hop: int) -> int:
    """Number of the random stream of a place of message dropout in a hop, counted from 0."""
    return DROPOUT_STREAMS[place] + hop


def draw_rng(device: torch.device) -> Tensor:
    """Seed and step (int64 [2]) of counter-based draws, from torch's default generator."""
    return torch.randint(2**63 - 1, (2,), dtype=torch.int64, device=device)
