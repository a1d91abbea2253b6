"""The layers and the model of the paper's own code, by their published interface."""

from __future__ import annotations

from kgrec_fast.integrations.paper.layers import AttnHGCN
from kgrec_fast.integrations.paper.model import KGRec
from kgrec_fast.integrations.paper.presets import PRESETS
from kgrec_fast.nn import Contrast

__all__ = ["PRESETS", "AttnHGCN", "Contrast", "KGRec"]
