"""Layers of KGRec on fused ops."""

from __future__ import annotations

from kgrec_fast.nn.attn_hgcn import AttnHGCN
from kgrec_fast.nn.contrast import Contrast
from kgrec_fast.nn.hops import HopGraphs

__all__ = ["AttnHGCN", "Contrast", "HopGraphs"]
