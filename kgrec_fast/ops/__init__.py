"""The ops: one module each, the public function with its plain PyTorch reference beside it.

``x_reference`` has the signature of ``x``, serves where no binary is loaded, and is the oracle of
the tests. `use_reference` forces it.
"""

from __future__ import annotations

from kgrec_fast.ops._common import use_reference
from kgrec_fast.ops.dropout_normalize_add import (
    dropout_normalize_add,
    dropout_normalize_add_reference,
)
from kgrec_fast.ops.edge_score_means import edge_score_means, edge_score_means_reference
from kgrec_fast.ops.projected_attention import projected_attention, projected_attention_reference
from kgrec_fast.ops.rationale_scores import rationale_scores, rationale_scores_reference
from kgrec_fast.ops.relation_attention import relation_attention, relation_attention_reference
from kgrec_fast.ops.relation_mean import relation_mean, relation_mean_reference
from kgrec_fast.ops.scatter import (
    scatter_mean,
    scatter_mean_reference,
    scatter_softmax,
    scatter_softmax_reference,
    scatter_sum,
    scatter_sum_reference,
)
from kgrec_fast.ops.segment import (
    segment_mean,
    segment_mean_reference,
    segment_softmax,
    segment_softmax_reference,
    segment_sum,
    segment_sum_reference,
)
from kgrec_fast.ops.topk_items import topk_items, topk_items_reference
from kgrec_fast.ops.weighted_aggregate import weighted_aggregate, weighted_aggregate_reference

__all__ = [
    "dropout_normalize_add",
    "dropout_normalize_add_reference",
    "edge_score_means",
    "edge_score_means_reference",
    "projected_attention",
    "projected_attention_reference",
    "rationale_scores",
    "rationale_scores_reference",
    "relation_attention",
    "relation_attention_reference",
    "relation_mean",
    "relation_mean_reference",
    "scatter_mean",
    "scatter_mean_reference",
    "scatter_softmax",
    "scatter_softmax_reference",
    "scatter_sum",
    "scatter_sum_reference",
    "segment_mean",
    "segment_mean_reference",
    "segment_softmax",
    "segment_softmax_reference",
    "segment_sum",
    "segment_sum_reference",
    "topk_items",
    "topk_items_reference",
    "use_reference",
    "weighted_aggregate",
    "weighted_aggregate_reference",
]
