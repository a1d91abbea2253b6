"""Fast computations for layers of KGRec that someone built with hopwise or with the paper's code.

`accelerate` and `restore` are exported by :mod:`kgrec_fast`. A layer is recognised by what it has
and how its methods are called (:mod:`.recognition`), tried out beside its own computations
(:mod:`.trial`), and given methods that compute the same (:mod:`.layers`) by way of its class
(:mod:`.swap`).
"""

from __future__ import annotations

from kgrec_fast.integrations.acceleration.report import Layer, Report
from kgrec_fast.integrations.acceleration.swap import accelerate, restore

__all__ = ["Layer", "Report", "accelerate", "restore"]
