"""KGRec in hopwise: a model that hopwise trains, evaluates and saves as one of its own.

Importing this module makes hopwise find KGRec by name, where it has none: the release 0.9.1 has
none. Where hopwise brings its own, it stays until :func:`register` is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from kgrec_fast.integrations import _framework

try:
    from hopwise.model.abstract_recommender import KnowledgeRecommender
    from hopwise.trainer import KGTrainer
    from hopwise.utils import InputType, KnowledgeEvaluationType
except ImportError as error:
    raise _framework.missing("hopwise", error) from error

__all__ = ["KGRec", "KGRecTrainer", "main", "register"]


class KGRec(_framework.FrameworkKGRec, KnowledgeRecommender):
    """KGRec as a hopwise ``KnowledgeRecommender``.

    State dicts, and those of an optimizer, load from hopwise's own KGRec and into it.

    Args:
        config: hopwise's ``Config``. Hyper-parameters that it does not have take the published
            defaults, see :class:`kgrec_fast.models.KGRec`.
        dataset: hopwise's knowledge-based data set of the training interactions, as in
            ``train_data.dataset``.

    Raises:
        TypeError, ValueError: A hyper-parameter is not what is expected; the message names it.
    """

    input_type = InputType.PAIRWISE


class KGRecTrainer(_framework.PairTrainer, KGTrainer):
    """hopwise's ``KGTrainer``, whose training ends when early stopping says so.

    In hopwise 0.9.1 it leaves only an inner loop then, and fails at ``eval_step=0``. Here the loop
    is that of hopwise's ``Trainer``, from which it is derived.
    """

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Any = None,
    ) -> tuple[Any, Any]:
        """Trains, as ``Trainer.fit``, and returns what ``KGTrainer.fit`` does.

        Returns:
            Best valid score and result, each as a dict with hopwise's name of the recommendation
            task as its key. Where nothing was evaluated, the result is None.

        Raises:
            ValueError: The data asks for link prediction.
        """
        if isinstance(valid_data, list):
            raise ValueError(
                "eval_lp_args asks for link prediction, which KGRec cannot do: "
                "expected no knowledge_split in eval_lp_args"
            )
        score, result = super(KGTrainer, self).fit(
            train_data, valid_data, verbose, saved, show_progress, callback_fn
        )
        task = KnowledgeEvaluationType.REC
        return {task: score}, None if result is None else {task: result}

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, Any]:
        found: tuple[float, Any] = super(KGTrainer, self)._valid_epoch(valid_data, show_progress)
        return found


def register() -> None:
    """Makes hopwise find this KGRec and its trainer by name, in place of an own KGRec."""
    _framework.register("hopwise", KGRec, KGRecTrainer)


def main(arguments: Sequence[str]) -> None:
    """Runs hopwise's command with this KGRec, and ends the process as it does.

    Args:
        arguments: Those of hopwise's command.

    Raises:
        ImportError: hopwise's command lacks something. That of 0.9.1 needs setproctitle, which
            hopwise does not install.
    """
    try:
        from hopwise.cli import cli
    except ImportError as error:
        raise ImportError(
            f"hopwise's command needs {error.name}: pip install {error.name}"
        ) from error
    register()
    sys.argv = ["hopwise", *arguments]  # hopwise's configuration reads the command line itself
    cli(list(arguments), prog_name="kgrec-fast hopwise")


if not _framework.has_kgrec("hopwise"):
    register()
