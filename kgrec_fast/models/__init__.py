"""KGRec, and its plain PyTorch reference (:mod:`kgrec_fast.models.reference`)."""

from __future__ import annotations

from kgrec_fast.models.kgrec import KGRec
from kgrec_fast.models.sampling import StepMasks

__all__ = ["KGRec", "StepMasks"]
