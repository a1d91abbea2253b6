"""When a run is evaluated, on which split, and which of its epochs is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


class Protocol:
    """Evaluates on valid after every so many epochs and after the last; a tie changes nothing."""

    split = "valid"

    def is_due(self, epoch: int, every: int, last: int) -> bool:
        """Whether an epoch, counted from 1, ends with an evaluation.

        Args:
            epoch: The epoch.
            every: Epochs between evaluations.
            last: The last epoch of the run.
        """
        return epoch % every == 0 or epoch == last

    def evaluations(self, every: int, last: int) -> int:
        """How many of the epochs 1 to ``last`` are due; a run may be meant to have any number."""
        return -(-last // every)

    def best(self, history: Sequence[Record], by: str) -> Record | None:
        """The record with the highest metric ``by``; of equal ones the first. None without any."""
        evaluated = [record for record in history if metrics_of(record)]
        return max(evaluated, key=lambda record: metrics_of(record)[by], default=None)


class PaperProtocol(Protocol):
    """What the published loop does: the epoch is chosen on test.

    Its epochs count from 0, and it evaluates those that ``every`` divides, 0 excepted: the second
    one, counted from 1, where ``every`` is 1. An epoch as good as the best so far takes its place.
    """

    split = "test"

    def is_due(self, epoch: int, every: int, last: int) -> bool:
        return epoch > 1 and (epoch - 1) % every == 0

    def evaluations(self, every: int, last: int) -> int:
        return (last - 1) // every

    def best(self, history: Sequence[Record], by: str) -> Record | None:
        return super().best(history[::-1], by)


PROTOCOLS: dict[str, Protocol] = {"default": Protocol(), "paper": PaperProtocol()}


def metrics_of(record: Record) -> dict[str, float]:
    """The metrics by which an epoch was judged, empty where it was not evaluated."""
    return record["valid"] or record.get("test") or {}


def split_of(record: Record) -> str:
    """The split of :func:`metrics_of`."""
    return "test" if record.get("test") else "valid"


def implied_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What a protocol asks of the rest of a configuration, where that says nothing else.

    Args:
        tree: The sections, as far as they are given.

    Returns:
        Values by dotted name.
    """
    given = tree.get("evaluation")
    section = given if isinstance(given, Mapping) else {}
    if section.get("protocol") != "paper":
        return {}
    ks = section.get("ks", [20])
    first = ks[0] if isinstance(ks, Sequence) and ks else 20
    return {
        "dataset.split": "published",
        "evaluation.ks": ks,
        "evaluation.best_by": f"recall@{first}",
    }
