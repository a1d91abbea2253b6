"""Methods that take the place of a layer's own, in the signatures of both code bases.

Each class here holds the methods of one interface; the signatures are what a layer is recognised
by. Their computations are those of :mod:`kgrec_fast.nn`, on the layer's own parameters.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kgrec_fast.nn import AttnHGCN, Contrast


def dropout_module(layer: Any) -> nn.Module | None:
    """The module through which a layer drops elements of messages; None where it has none."""
    modules = (getattr(layer, name, None) for name in ("mess_dropout", "dropout"))
    return next((m for m in modules if isinstance(m, nn.Module)), None)


def message_dropout(layer: Any) -> float:
    """Probability with which a layer drops an element of a message now; 0 outside of training."""
    module = dropout_module(layer)
    if isinstance(module, nn.Dropout):
        return module.p if module.training else 0.0
    if isinstance(module, nn.Identity):  # put there so that nothing is dropped
        return 0.0
    return layer.mess_dropout_rate if layer.training else 0.0


def _fast(layer: Any, relation: Tensor, dropout: float) -> AttnHGCN:
    """:class:`AttnHGCN` on the parameters of another layer, as they are now.

    It is made for one call and never kept: so nothing goes stale when parameters are moved, loaded
    or replaced, and there is nothing to copy or to pickle.

    Args:
        layer: Has W_Q [D, D], n_hops, n_heads.
        relation: [R, D], a row for each relation id.
        dropout: Rate of message dropout; 0 for none.
    """
    fast = AttnHGCN.__new__(AttnHGCN)
    nn.Module.__init__(fast)
    fast.W_Q = layer.W_Q
    fast.relation_embedding = SimpleNamespace(weight=relation)  # type: ignore[assignment]
    fast.embedding_size = layer.W_Q.shape[0]
    fast.n_hops, fast.n_heads = layer.n_hops, layer.n_heads
    fast.d_k = fast.embedding_size // fast.n_heads
    fast.n_relations = relation.shape[0] + 1
    fast.mess_dropout_rate, fast.training = dropout, dropout > 0
    return fast


def _scores(
    fast: AttnHGCN,
    entity_emb: Tensor,
    edge_index: Tensor,
    edge_type: Tensor | None,
    return_logits: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    if return_logits:
        return fast.norm_attn_computer(entity_emb, edge_index, edge_type, return_logits=True)
    return fast.norm_attn_computer(entity_emb, edge_index, edge_type)


class HopwiseLayer:
    """AttnHGCN of hopwise: an embedding of relations with ids from 0, users before entities."""

    def forward(
        self: Any,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
        item_attn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return _hopwise(self).forward(
            user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w, item_attn
        )

    def forward_ui(
        self: Any, user_emb: Tensor, item_emb: Tensor, inter_edge: Tensor, inter_edge_w: Tensor
    ) -> Tensor:
        return _hopwise(self).forward_ui(user_emb, item_emb, inter_edge, inter_edge_w)

    def forward_kg(self: Any, entity_emb: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        return _hopwise(self).forward_kg(entity_emb, edge_index, edge_type)

    def shared_layer_agg(
        self: Any,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return _hopwise(self).shared_layer_agg(
            user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w
        )

    def ui_agg(
        self: Any, user_emb: Tensor, item_emb: Tensor, inter_edge: Tensor, inter_edge_w: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _hopwise(self).ui_agg(user_emb, item_emb, inter_edge, inter_edge_w)

    def kg_agg(self: Any, entity_emb: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        return _hopwise(self).kg_agg(entity_emb, edge_index, edge_type)

    def norm_attn_computer(
        self: Any,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor | None = None,
        return_logits: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        return _scores(_hopwise(self), entity_emb, edge_index, edge_type, return_logits)


def _hopwise(layer: Any) -> AttnHGCN:
    rate = message_dropout(layer) if layer.mess_dropout_rate > 0 else 0.0
    return _fast(layer, layer.relation_embedding.weight, rate)


class PaperLayer:
    """AttnHGCN of the paper: a matrix of relations with ids from 1, entities before users."""

    def forward(
        self: Any,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
        mess_dropout: bool = True,
        item_attn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        users, entities = _paper(self, self.relation_emb, mess_dropout).forward(
            user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w, item_attn
        )
        return entities, users

    def forward_ui(
        self: Any,
        user_emb: Tensor,
        item_emb: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
        mess_dropout: bool = True,
    ) -> Tensor:
        fast = _paper(self, self.relation_emb, mess_dropout)
        return fast.forward_ui(user_emb, item_emb, inter_edge, inter_edge_w)

    def forward_kg(
        self: Any,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        mess_dropout: bool = True,
    ) -> Tensor:
        fast = _paper(self, self.relation_emb, mess_dropout)
        return fast.forward_kg(entity_emb, edge_index, edge_type)

    def shared_layer_agg(
        self: Any,
        user_emb: Tensor,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor,
        inter_edge: Tensor,
        inter_edge_w: Tensor,
        relation_emb: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return _paper(self, relation_emb).shared_layer_agg(
            user_emb, entity_emb, edge_index, edge_type, inter_edge, inter_edge_w
        )

    def ui_agg(
        self: Any, user_emb: Tensor, item_emb: Tensor, inter_edge: Tensor, inter_edge_w: Tensor
    ) -> tuple[Tensor, Tensor]:
        fast = _paper(self, self.relation_emb)
        return fast.ui_agg(user_emb, item_emb, inter_edge, inter_edge_w)

    def kg_agg(self: Any, entity_emb: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        return _paper(self, self.relation_emb).kg_agg(entity_emb, edge_index, edge_type)

    def norm_attn_computer(
        self: Any,
        entity_emb: Tensor,
        edge_index: Tensor,
        edge_type: Tensor | None = None,
        print: bool = False,
        return_logits: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if print:  # the layer writes to its own log
            scores: Tensor | tuple[Tensor, Tensor] = super().norm_attn_computer(  # type: ignore[misc]
                entity_emb, edge_index, edge_type, print, return_logits
            )
            return scores
        fast = _paper(self, self.relation_emb)
        return _scores(fast, entity_emb, edge_index, edge_type, return_logits)


def _paper(layer: Any, relation: Tensor, mess_dropout: bool = False) -> AttnHGCN:
    # Relation r is row r - 1, and of the interaction, id 0, the last one. With that row in front
    # edge types are row numbers as they stand, so that a graph built for them is found again.
    rows = torch.cat([relation[-1:], relation])
    return _fast(layer, rows, message_dropout(layer) if mess_dropout else 0.0)


class ContrastLayer:
    """Contrast of both: the layer's own MLPs, and the loss of what they give."""

    def loss(self: Any, z1: Tensor, z2: Tensor) -> Tensor:
        return Contrast.loss(self, z1, z2)
