"""The random choices of a step of the fast model, in the terms of a plain one."""

from __future__ import annotations

import torch
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec, StepMasks
from kgrec_fast.models.reference import StepChoice
from kgrec_fast.nn._streams import DROPOUT_STREAMS, dropout_stream
from kgrec_fast.ops import dropout_normalize_add


def to_choice(model: KGRec, masks: StepMasks) -> StepChoice:
    """Masks of the fast model as the choices of the reference, by ids of the caller."""
    kg, inter = model.kg, model.interactions

    def ids(graph: RelGraph | InteractionGraph, mask: Tensor | None) -> Tensor:
        if mask is None:
            return torch.arange(graph.num_edges)
        return graph.perm[mask].long()

    dropout = None
    if model.training and model.mess_dropout_rate > 0:
        rows = {"entity": model.n_entities, "user": model.n_users, "item": model.n_items}
        dropout = {}
        for place in DROPOUT_STREAMS:
            # Dropout keeps of ones what is not zero afterwards.
            ones = torch.ones(rows[place.split("/")[1]], model.embedding_size)
            for hop in range(model.context_hops):
                stream, rate = dropout_stream(place, hop), model.mess_dropout_rate
                y, _ = dropout_normalize_add(ones, ones, rate, masks.rng, stream, True)
                dropout[f"{place}/{hop}"] = y != 0
    return StepChoice(
        sampled_edges=ids(kg, masks.sampled),
        kept_interactions=ids(inter, masks.kept),
        masked_edges=ids(kg, masks.masked),
        contrast_edges=ids(kg, masks.contrast_edges),
        contrast_interactions=ids(inter, masks.contrast_interactions),
        permutation=masks.permutation,
        dropout=dropout,
    )
