"""Fused native kernels for knowledge-graph recommenders, and KGRec itself on top of them."""

from __future__ import annotations

__version__ = "0.1.0"

from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph

__all__ = ["EdgeMask", "InteractionGraph", "RelGraph", "__version__"]
