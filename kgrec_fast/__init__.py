"""Fused native kernels for knowledge-graph recommenders, and KGRec itself on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph

if TYPE_CHECKING:
    from kgrec_fast.integrations.acceleration import accelerate, restore

__all__ = ["EdgeMask", "InteractionGraph", "RelGraph", "__version__", "accelerate", "restore"]


def __getattr__(name: str) -> Any:
    # These two stand on the layers: imported here, every import of the package would bring them.
    if name in ("accelerate", "restore"):
        from kgrec_fast.integrations import acceleration

        return getattr(acceleration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
