"""KGRec in RecBole: a model that RecBole trains, evaluates and saves as one of its own.

Importing this module makes RecBole find KGRec by name; RecBole 1.2.1 has none.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch

from kgrec_fast.integrations import _framework

try:
    from recbole.model.abstract_recommender import KnowledgeRecommender
    from recbole.trainer import KGTrainer
    from recbole.utils import InputType
except ImportError as error:
    raise _framework.missing("recbole", error) from error

__all__ = ["KGRec", "KGRecTrainer", "register"]


class KGRec(_framework.FrameworkKGRec, KnowledgeRecommender):
    """KGRec as a RecBole ``KnowledgeRecommender``.

    Args:
        config: RecBole's ``Config``. Hyper-parameters that it does not have take the published
            defaults, see :class:`kgrec_fast.models.KGRec`.
        dataset: RecBole's knowledge-based data set of the training interactions, as in
            ``train_data.dataset``.

    Raises:
        TypeError, ValueError: A hyper-parameter is not what is expected; the message names it.
    """

    input_type = InputType.PAIRWISE


class KGRecTrainer(_framework.PairTrainer, KGTrainer):
    """RecBole's ``KGTrainer``, which can read its checkpoints under torch 2.6 and later.

    They hold RecBole's configuration beside the weights. ``torch.load`` refuses that by default
    since torch 2.6, and RecBole 1.2.1 does not ask for more: here it is asked for. As with every
    pickle, load only files that you trust.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        # Names that numpy has given up and RecBole's metrics use. RecBole puts them back where a
        # configuration is made, but not where one is read from a checkpoint.
        config.compatibility_settings()

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | PathLike[str] | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Evaluates as ``KGTrainer.evaluate``, by default the best model of the training."""
        if eval_data and load_best_model:
            file = model_file or self.saved_model_file
            self._load_model(file)
            self.logger.info(f"Loading model structure and parameters from {file}")
        return super().evaluate(eval_data, load_best_model=False, show_progress=show_progress)

    def resume_checkpoint(self, resume_file: str | PathLike[str]) -> None:
        """Makes :meth:`fit` go on after the epoch that a checkpoint was written in.

        Args:
            resume_file: The checkpoint; better ones will overwrite it.
        """
        self.saved_model_file = str(resume_file)
        checkpoint = self._load_model(resume_file)
        self.start_epoch = checkpoint["epoch"] + 1
        self.cur_step = checkpoint["cur_step"]
        self.best_valid_score = checkpoint["best_valid_score"]
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.logger.info(f"Checkpoint loaded. Resume training from epoch {self.start_epoch}")

    def _load_model(self, file: str | PathLike[str]) -> Any:
        checkpoint = torch.load(file, map_location=self.device, weights_only=False)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.load_other_parameter(checkpoint.get("other_parameter"))
        return checkpoint


def register() -> None:
    """Makes RecBole find this KGRec and its trainer by name, in place of an own KGRec."""
    _framework.register("recbole", KGRec, KGRecTrainer)


if not _framework.has_kgrec("recbole"):
    register()
