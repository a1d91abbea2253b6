"""Data: readers, splits, samplers and generators."""

from __future__ import annotations

from kgrec_fast.data.atomic import AtomicFields, load_atomic
from kgrec_fast.data.dataset import SPLITS, KGDataset
from kgrec_fast.data.errors import DataFormatError
from kgrec_fast.data.kgat import load_kg_final, load_kgat
from kgrec_fast.data.load import detect_format, find_dataset, load_dataset
from kgrec_fast.data.samplers import NegativeSampler, PairLoader
from kgrec_fast.data.shapes import (
    SHAPES,
    EdgeList,
    GraphShape,
    measure_shape,
    shaped_graph,
)
from kgrec_fast.data.splits import split_by_user
from kgrec_fast.data.synthetic import planted_rationales

__all__ = [
    "SHAPES",
    "SPLITS",
    "AtomicFields",
    "DataFormatError",
    "EdgeList",
    "GraphShape",
    "KGDataset",
    "NegativeSampler",
    "PairLoader",
    "detect_format",
    "find_dataset",
    "load_atomic",
    "load_dataset",
    "load_kg_final",
    "load_kgat",
    "measure_shape",
    "planted_rationales",
    "shaped_graph",
    "split_by_user",
]
