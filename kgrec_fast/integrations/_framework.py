"""What the integrations with RecBole, and with hopwise, which grew out of it, have in common."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec, StepMasks
from kgrec_fast.models._arguments import Batch

# Those of the framework-free model, whose defaults are the published ones.
HYPER_PARAMETERS = tuple(
    name
    for name, parameter in inspect.signature(KGRec).parameters.items()
    if parameter.default is not parameter.empty
)


def missing(framework: str, error: ImportError) -> ImportError:
    """What to raise where a framework cannot be imported."""
    return ImportError(
        f"kgrec_fast.integrations.{framework} cannot import {framework} ({error}): "
        f"pip install 'kgrec_fast[{framework}]'"
    )


def hyper_parameters(config: Any) -> dict[str, Any]:
    """The hyper-parameters that a framework's configuration holds.

    A configuration answers None for what it does not have: these are left out, and take the
    published defaults of :class:`kgrec_fast.models.KGRec`.
    """
    values = {name: config[name] for name in HYPER_PARAMETERS}
    return {name: value for name, value in values.items() if value is not None}


def knowledge_graph(dataset: Any, relation_field: str, n_relations: int) -> RelGraph:
    """The knowledge graph of a framework's data set, ids as they are there.

    Args:
        dataset: A knowledge-based data set.
        relation_field: Name of its column of relations.
        n_relations: Number of relations, the interaction being one of them, the last.
    """
    triples = dataset.kg_graph(form="coo", value_field=relation_field)
    return RelGraph.from_edges(
        torch.from_numpy(np.stack([triples.row, triples.col])).long(),
        torch.from_numpy(np.array(triples.data)).long(),
        num_nodes=triples.shape[0],
        num_relations=n_relations - 1,
    )


def interaction_graph(dataset: Any) -> InteractionGraph:
    """The distinct interactions of a framework's data set, without weights.

    The model then weighs them by 1 / (degree of the user + 1e-7), which are the weights of
    hopwise's normalised matrix.
    """
    matrix = dataset.inter_matrix(form="coo")
    distinct = matrix.tocsr().tocoo()  # adds up repeated ones
    return InteractionGraph.from_edges(
        torch.from_numpy(np.stack([distinct.row, distinct.col])).long(),
        num_users=matrix.shape[0],
        num_items=matrix.shape[1],
    )


class FrameworkKGRec(KGRec):
    """KGRec behind the interface of a framework's models.

    A subclass names the framework's ``KnowledgeRecommender`` as its second base. Parameters have
    the published names and order. Ids are the framework's: users, items and entities start with a
    padding id 0, and the contrast runs over all ``n_items`` rows, the padding row among them, as
    published.

    Args:
        config: The framework's configuration.
        dataset: Its knowledge-based data set, whose interactions are those trained on.

    Raises:
        TypeError, ValueError: A hyper-parameter is not what :class:`kgrec_fast.models.KGRec`
            expects; the message names it.
    """

    USER_ID: str
    ITEM_ID: str
    NEG_ITEM_ID: str
    RELATION_ID: str

    def __init__(self, config: Any, dataset: Any) -> None:
        super(KGRec, self).__init__(config, dataset)  # the framework's: field names and sizes
        super().__init__(
            self.n_users,
            self.n_items,
            self.n_entities,
            self.n_relations,
            knowledge_graph(dataset, self.RELATION_ID, self.n_relations),
            interaction_graph(dataset),
            **hyper_parameters(config),
        )

    def calculate_loss(self, interaction: Any, masks: StepMasks | None = None) -> Tensor:
        """The training loss (scalar) of a framework's batch of (user, item, negative item)."""
        return super().calculate_loss(self._batch(interaction), masks)

    def predict(self, interaction: Any) -> Tensor:
        """Scores [B] of the pairs of users and items of a framework's batch."""
        return super().predict(self._batch(interaction))

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores [B * n_items] of all items for the users of a framework's batch.

        They are the caller's own and may be overwritten.
        """
        return super().full_sort_predict(self._batch(interaction))

    def _batch(self, interaction: Any) -> Batch:
        names = {
            "user_id": self.USER_ID,
            "item_id": self.ITEM_ID,
            "neg_item_id": self.NEG_ITEM_ID,
        }
        return {name: interaction[field] for name, field in names.items() if field in interaction}


class PairTrainer:
    """A trainer's first base, which leaves out work that changes no result.

    Epochs draw interactions alone: a framework's trainer of knowledge models reads triples beside
    every batch, unless it is told to train in turns, and KGRec's loss takes its edges from the
    graph. Adam is torch's fused one, which goes once over each parameter.
    """

    train_rec_step: int | None
    train_kg_step: int | None

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)  # type: ignore[call-arg]
        self.train_rec_step, self.train_kg_step = 1, 0

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        built: torch.optim.Optimizer = super()._build_optimizer(**kwargs)  # type: ignore[misc]
        for kind in (torch.optim.Adam, torch.optim.AdamW):
            if type(built) is kind:
                return kind([group | {"fused": True} for group in built.param_groups], fused=True)
        return built


def _module_name(framework: str) -> str:
    """The module in which the framework looks for a model of the name KGRec."""
    return f"{framework}.model.knowledge_aware_recommender.kgrec"


def has_kgrec(framework: str) -> bool:
    """Whether the framework finds a KGRec: its own, or one that was registered."""
    return importlib.util.find_spec(_module_name(framework)) is not None


def register(framework: str, model: type, trainer: type) -> None:
    """Makes a framework find a model and its trainer by the name KGRec, in place of its own.

    Frameworks look a model up as a module, and its trainer as ``KGRecTrainer`` in their package of
    trainers. The module that defines ``model`` stands in for theirs.

    Args:
        framework: Name of the package.
        model, trainer: What it is to find.
    """
    # A look-up by name imports all sequential models. One of them switches torch's anomaly
    # detection on, for the whole process, in which an epoch takes a third longer then. Imported
    # here first, it leaves that as it is.
    with torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled()):
        importlib.import_module(f"{framework}.model.sequential_recommender")
    folder, _, name = _module_name(framework).rpartition(".")
    package = importlib.import_module(folder)
    module = sys.modules[model.__module__]
    sys.modules[_module_name(framework)] = module
    setattr(package, name, module)
    setattr(package, model.__name__, model)
    setattr(importlib.import_module(f"{framework}.trainer"), trainer.__name__, trainer)
