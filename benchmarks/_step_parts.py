"""Where the time of a training step goes: by part of the model, and by kind of operator."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import quantile
from kgrec_fast.models import KGRec
from kgrec_fast.models.reference import ReferenceKGRec
from kgrec_fast.training.recorded_step import RecordedStep
from kgrec_fast.training.recording import Call, Program

IN_A_ROW = 5  # steps of a side at its turn: caches hold what its last step left, as in training
BACKWARD, WHOLE = "backward of everything", "whole step"
OTHERS, BETWEEN = "other operators", "between operators"


def watched(model: KGRec | ReferenceKGRec) -> list[tuple[Any, str, str]]:
    """Methods of a model, and what part of a step each is."""
    gcn = model.gcn
    common: list[tuple[Any, str, str]] = [(model.contrast_fn, "forward", "contrast")]
    if isinstance(model, KGRec):
        return [
            *common,
            (model, "draw_masks", "draws and rationale scores"),
            (gcn, "messages", "recommendation: attention hops, users"),
            (gcn, "ui_messages", "user-item view"),
            (gcn, "kg_messages", "KG view"),
        ]
    return [
        *common,
        (model, "relation_aware_edge_sampling", "draws and rationale scores"),
        (model, "node_dropout", "draws and rationale scores"),
        (gcn, "norm_attn_computer", "draws and rationale scores"),
        (model, "item_scores", "draws and rationale scores"),
        (model, "mae_edge_mask_adapt_mixed", "draws and rationale scores"),
        (model, "adaptive_kg_drop_cl", "draws and rationale scores"),
        (model, "adaptive_ui_drop_cl", "draws and rationale scores"),
        (gcn, "forward", "recommendation: attention hops, users"),
        (gcn, "forward_ui", "user-item view"),
        (gcn, "forward_kg", "KG view"),
    ]


class Parts:
    """Seconds by part of a step; each call that is watched adds to its part.

    Times of backward are those of the autograd engine as a whole.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def add(self, part: str, seconds: float) -> None:
        self.steps[-1][part] = self.steps[-1].get(part, 0.0) + seconds

    @contextmanager
    def watch(self, methods: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Replaces ``owner.method`` by itself with a clock, for as long as this lasts."""
        originals = [(owner, name, owner.__dict__.get(name)) for owner, name, _ in methods]
        for owner, name, part in methods:
            setattr(owner, name, self._timed(getattr(owner, name), part))
        try:
            yield
        finally:
            for owner, name, original in originals:
                delattr(owner, name) if original is None else setattr(owner, name, original)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.add(part, time.perf_counter() - begin)

        return timed

    def median(self) -> dict[str, float]:
        """Of all steps but the first."""
        steps = self.steps[1:]
        names = dict.fromkeys(name for step in steps for name in step)
        return {n: quantile([step.get(n, 0.0) for step in steps], 0.5) for n in names}


def breakdown(
    model: KGRec | ReferenceKGRec, step: Callable[[], object], steps: int
) -> dict[str, float]:
    """Median seconds of the parts of a step of the model."""
    parts = Parts()
    optimizers = (torch.optim.Adam, "step", "Adam")
    with parts.watch([*watched(model), (Tensor, "backward", BACKWARD), optimizers]):
        for _ in range(steps + 1):
            parts.steps.append({})
            begin = time.perf_counter()
            step()
            whole = time.perf_counter() - begin
            listed = sum(parts.steps[-1].values())
            parts.add("losses, projection and the rest", whole - listed)
            parts.add(WHOLE, whole)
    return parts.median()


# What an operator of our step belongs to, by its name; the rest belongs to neither.
KINDS = {
    "graph aggregation and its epilogue": (
        "kgrec_fast::relation_attention",
        "kgrec_fast::relation_mean",
        "kgrec_fast::weighted_aggregate",
        "kgrec_fast::dropout_normalize_add",
        "kgrec_fast::rationale_scores",
        "kgrec_fast::edge_subgraph",  # the mask of an aggregation, read once for all its passes
    ),
    "dense layers": (
        "aten::mm",
        "aten::addmm",
        "aten::relu",
        "aten::threshold_backward",
        "aten::clamp_min",
        "kgrec_fast::project",
    ),
    "optimizer": ("aten::_fused_adam", "aten::_foreach_add"),  # the latter counts its steps
}


@dataclass
class Operator:
    """What a step calls at one place, and how many seconds each of these calls took."""

    name: str  # as in "aten::mm"
    seconds: list[float] = field(default_factory=list)


class ClockedStep(RecordedStep):
    """A recorded step with a look at the clock before and after each of its operators.

    Attributes:
        operators: Those of the batch, which must have one size.
        whole: Seconds of each recorded step, in the order of the operators' seconds.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.operators: list[Operator] = []
        self.whole: list[float] = []

    def __call__(self, *args: Any) -> Tensor:
        is_recorded = bool(self.operators)
        begin = time.perf_counter()
        loss = super().__call__(*args)
        if is_recorded:
            self.whole.append(time.perf_counter() - begin)
        return loss

    def _compiled(self, program: Program) -> Callable[..., tuple[Tensor, ...]]:
        return program.compiled(self._wrapped)

    def _wrapped(self, call: Call, function: Callable[..., Any]) -> Callable[..., Any]:
        operator = Operator(call.name)
        self.operators.append(operator)

        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            operator.seconds.append(time.perf_counter() - begin)
            return result

        return run


def kinds(operators: Sequence[Operator], whole: Sequence[float]) -> dict[str, float]:
    """The share of a step that its operators of each of the kinds take, those of no kind, and what
    is between operators: the median over steps of each share, so that a step that was disturbed as
    a whole counts as any other.
    """
    shares: dict[str, list[float]] = {kind: [] for kind in (*KINDS, OTHERS, BETWEEN)}
    of = [next((k for k, n in KINDS.items() if x.name.startswith(n)), OTHERS) for x in operators]
    for step, seconds in enumerate(whole):
        found = dict.fromkeys(shares, 0.0)
        for kind, x in zip(of, operators, strict=True):
            found[kind] += x.seconds[step]
        found[BETWEEN] = seconds - sum(found.values())
        for kind, sum_of_kind in found.items():
            shares[kind].append(sum_of_kind / seconds)
    return {kind: quantile(values, 0.5) for kind, values in shares.items()}


def by_name(operators: Sequence[Operator]) -> list[tuple[str, int, float]]:
    """Name, number of calls in a step and their seconds, the most expensive first."""
    found: dict[str, list[float]] = {}
    for x in operators:
        found.setdefault(x.name, []).append(quantile(x.seconds, 0.5))
    rows = [(name, len(calls), sum(calls)) for name, calls in found.items()]
    return sorted(rows, key=lambda row: -row[2])
