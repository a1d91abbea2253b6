"""The published method as a model of hopwise: what `benchmarks.hopwise_epoch` measures against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from hopwise.model.abstract_recommender import KnowledgeRecommender
from hopwise.utils import InputType
from torch import Tensor

from kgrec_fast.integrations._framework import hyper_parameters
from kgrec_fast.models.reference import EdgeFunctions, ReferenceKGRec


class PublishedKGRec(KnowledgeRecommender):
    """`ReferenceKGRec` on hopwise's own matrices, trained by hopwise's own trainer.

    It differs from hopwise's port in two lines: ``W_Q`` is Xavier-initialised, where the port
    leaves it as uninitialised memory, and cached embeddings are dropped when a state dict is
    loaded, so that the test result is the best checkpoint's.
    """

    input_type = InputType.PAIRWISE
    functions = EdgeFunctions()  # what scatters; a benchmark puts others here

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        matrix, _ = dataset._create_norm_ckg_adjacency_matrix(symmetric=False)
        matrix = matrix.coalesce()
        graph = dataset.kg_graph(form="coo", value_field=self.RELATION_ID)
        self.method = ReferenceKGRec(
            self.n_users,
            self.n_items,
            self.n_entities,
            self.n_relations,
            torch.from_numpy(np.stack([graph.row, graph.col])).long(),
            torch.from_numpy(np.array(graph.data)).long(),
            matrix.indices(),
            matrix.values(),
            functions=self.functions,
            **hyper_parameters(config),
        )
        self._cache: tuple[Tensor, Tensor] | None = None

    def calculate_loss(self, interaction: Mapping[str, Tensor]) -> Tensor:
        self._cache = None
        return self.method.calculate_loss(interaction)

    def predict(self, interaction: Mapping[str, Tensor]) -> Tensor:
        return self.method.predict(interaction)

    def full_sort_predict(self, interaction: Mapping[str, Tensor]) -> Tensor:
        if self._cache is None:
            self._cache = self.method.embeddings()
        users, entities = self._cache
        return (users[interaction[self.USER_ID]] @ entities[: self.n_items].t()).view(-1)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._cache = None
        return super().load_state_dict(*args, **kwargs)
