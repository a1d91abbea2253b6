"""The ops: one module each, the public function with its plain PyTorch reference beside it.

``x_reference`` has the signature of ``x``, serves where no binary is loaded, and is the oracle of
the tests. `use_reference` forces it.
"""

from __future__ import annotations

from kgrec_fast import _library
from kgrec_fast.ops._common import register_vmap, use_reference
from kgrec_fast.ops.bpr_loss import bpr_loss, bpr_loss_reference
from kgrec_fast.ops.contrast_loss import contrast_loss, contrast_loss_reference
from kgrec_fast.ops.dropout_normalize_add import (
    dropout_normalize_add,
    dropout_normalize_add_reference,
)
from kgrec_fast.ops.edge_score_means import edge_score_means, edge_score_means_reference
from kgrec_fast.ops.edge_subgraph import edge_subgraph, edge_subgraph_reference
from kgrec_fast.ops.gumbel import gumbel_noise, gumbel_noise_reference
from kgrec_fast.ops.projected_attention import (
    attention_and_mean,
    attention_and_mean_reference,
    projected_attention,
    projected_attention_reference,
)
from kgrec_fast.ops.projection_head import projection_head, projection_head_reference
from kgrec_fast.ops.rationale_scores import rationale_scores, rationale_scores_reference
from kgrec_fast.ops.reconstruction_loss import reconstruction_loss, reconstruction_loss_reference
from kgrec_fast.ops.relation_attention import relation_attention, relation_attention_reference
from kgrec_fast.ops.relation_mean import relation_mean, relation_mean_reference
from kgrec_fast.ops.row_subgraph import row_subgraph, row_subgraph_reference
from kgrec_fast.ops.sampling import (
    dropout_mask,
    dropout_mask_reference,
    random_permutation,
    random_permutation_reference,
    sample_edges,
    sample_edges_per_relation,
    sample_edges_per_relation_reference,
    sample_edges_reference,
    sample_negatives,
    sample_negatives_reference,
)
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
from kgrec_fast.ops.selection import (
    gumbel_topk,
    gumbel_topk_reference,
    mask_positions,
    mask_positions_reference,
    masked_edges,
    masked_edges_reference,
    topk_mask,
    topk_mask_reference,
)
from kgrec_fast.ops.topk_items import topk_items, topk_items_reference
from kgrec_fast.ops.weighted_aggregate import (
    edge_dot,
    edge_dot_reference,
    weighted_aggregate,
    weighted_aggregate_reference,
)

if _library.CPU.loaded:
    register_vmap()

__all__ = [
    "attention_and_mean",
    "attention_and_mean_reference",
    "bpr_loss",
    "bpr_loss_reference",
    "contrast_loss",
    "contrast_loss_reference",
    "dropout_mask",
    "dropout_mask_reference",
    "dropout_normalize_add",
    "dropout_normalize_add_reference",
    "edge_dot",
    "edge_dot_reference",
    "edge_score_means",
    "edge_score_means_reference",
    "edge_subgraph",
    "edge_subgraph_reference",
    "gumbel_noise",
    "gumbel_noise_reference",
    "gumbel_topk",
    "gumbel_topk_reference",
    "mask_positions",
    "mask_positions_reference",
    "masked_edges",
    "masked_edges_reference",
    "projected_attention",
    "projected_attention_reference",
    "projection_head",
    "projection_head_reference",
    "random_permutation",
    "random_permutation_reference",
    "rationale_scores",
    "rationale_scores_reference",
    "reconstruction_loss",
    "reconstruction_loss_reference",
    "relation_attention",
    "relation_attention_reference",
    "relation_mean",
    "relation_mean_reference",
    "row_subgraph",
    "row_subgraph_reference",
    "sample_edges",
    "sample_edges_per_relation",
    "sample_edges_per_relation_reference",
    "sample_edges_reference",
    "sample_negatives",
    "sample_negatives_reference",
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
    "topk_mask",
    "topk_mask_reference",
    "use_reference",
    "weighted_aggregate",
    "weighted_aggregate_reference",
]
