"""What a trained model is asked for: embeddings, scores, rationales."""

from __future__ import annotations

import operator
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from kgrec_fast.graph import EdgeMask, InteractionGraph, RelGraph
from kgrec_fast.graph_build import outliving
from kgrec_fast.models._arguments import Batch, batch_ids
from kgrec_fast.nn import HopGraphs
from kgrec_fast.nn.edge_layer import EdgeLayer

P = TypeVar("P", bound="Prediction")
# Embeddings of users and entities, and the parameters and their versions that they were made of.
_Kept: TypeAlias = tuple[tuple[Tensor, Tensor], list[nn.Parameter], list[int]]


class Prediction(nn.Module):
    """Mix-in of :class:`~kgrec_fast.models.KGRec`."""

    n_users: int
    n_items: int
    gcn: EdgeLayer
    hops: HopGraphs
    interactions: InteractionGraph
    _edge_weight: Tensor | None
    _cache: _Kept | None = None

    @property
    def kg(self) -> RelGraph:
        """The knowledge graph."""
        raise NotImplementedError

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Embeddings of users [U, D] and entities [N, D] before propagation."""
        raise NotImplementedError

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Users [U, D] and entities [N, D], propagated over the whole graphs without dropout.

        In evaluation mode they are computed once, without gradient, and kept until
        :meth:`train`, :meth:`load_state_dict`, :meth:`calculate_loss`, a change of device or dtype,
        or one of the parameters, in place or by others (``torch.func.functional_call``). What torch
        does not see, a write through ``.data`` or in a CUDA graph, asks for one of these.
        """
        if self.training:
            return self._propagate()
        parameters = list(self.parameters())
        versions = [0 if p.is_inference() else p._version for p in parameters]
        if self._cache is not None:
            kept, of, at = self._cache
            if at == versions and all(map(operator.is_, of, parameters)):
                return kept
        with torch.no_grad():
            kept = outliving(self._propagate())
        self._cache = kept, parameters, versions
        return kept

    def _propagate(self, edge_mask: EdgeMask | None = None) -> tuple[Tensor, Tensor]:
        users, entities = self._tables()
        return self.gcn.propagate(
            users, entities, self.hops, self.interactions, self._edge_weight, edge_mask=edge_mask
        )

    def predict(self, batch: Batch) -> Tensor:
        """Scores [B] of the pairs "user_id", "item_id" (int64 [B] each)."""
        user = batch_ids(batch, "user_id", self.n_users)
        item = batch_ids(batch, "item_id", self.n_items, user)
        users, entities = self.embeddings()
        return (users.index_select(0, user) * entities.index_select(0, item)).sum(1)

    def full_sort_predict(self, batch: Batch) -> Tensor:
        """Scores [B * n_items] of all items for each of "user_id" (int64 [B]), user by user."""
        user = batch_ids(batch, "user_id", self.n_users)
        users, entities = self.embeddings()
        return (users.index_select(0, user) @ entities[: self.n_items].t()).view(-1)

    def rationales(self) -> Tensor:
        """Rationale scores [E] of all edges, in the order in which the graph was given."""
        return self.gcn.rationale_scores(self._tables()[1], self.kg)[0]

    def train(self: P, mode: bool = True) -> P:
        self._cache = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache = None
        super()._load_from_state_dict(*args, **kwargs)
