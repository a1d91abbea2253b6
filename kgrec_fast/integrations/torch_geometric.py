"""In place of `torch_geometric.utils`: its softmax.

from kgrec_fast.integrations.torch_geometric import softmax
"""

from __future__ import annotations

from typing import NoReturn

from kgrec_fast.ops import scatter_softmax as softmax

__all__ = ["softmax"]


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"{__name__} has no {name!r}; it has {', '.join(__all__)}")
