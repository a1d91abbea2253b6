"""Layers of KGRec on fused ops, and the relational layers of other models on the same ones."""

from __future__ import annotations

from kgrec_fast.nn.attn_hgcn import AttnHGCN
from kgrec_fast.nn.contrast import Contrast
from kgrec_fast.nn.hops import HopGraphs
from kgrec_fast.nn.kgat import KGATAttention
from kgrec_fast.nn.kgcl import KGCLAggregation
from kgrec_fast.nn.kgin import KGINAggregation
from kgrec_fast.nn.rgat import RGATAttention

__all__ = [
    "AttnHGCN",
    "Contrast",
    "HopGraphs",
    "KGATAttention",
    "KGCLAggregation",
    "KGINAggregation",
    "RGATAttention",
]
