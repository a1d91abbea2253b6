"""A whole training step of KGRec, Adam included, against the reference on torch_scatter + PyG.

Losses and gradients of both models are compared first, under the same random choices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _step_data, baselines
from benchmarks._harness import Row, check_close, finish, interleave, parser, quantile, start, table
from kgrec_fast.data import KGDataset, PairLoader
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec, StepMasks
from kgrec_fast.models.reference import ReferenceKGRec, StepChoice

LEARNING_RATE = 1e-3


def make_models(
    data: KGDataset, baseline: baselines.Baseline, **hyper: Any
) -> tuple[KGRec, ReferenceKGRec]:
    """Ours and the reference, with equal weights."""
    sizes = (data.n_users, data.n_items, data.n_entities, data.n_relations)
    kg = RelGraph.from_edges(
        data.edge_index,
        data.edge_type,
        num_nodes=data.n_entities,
        num_relations=data.n_relations - 1,
    )
    interactions = InteractionGraph.from_edges(
        data.train, num_users=data.n_users, num_items=data.n_items
    )
    torch.manual_seed(0)
    model = KGRec(*sizes, kg, interactions, **hyper)
    edges = (data.edge_index, data.edge_type, data.train)
    reference = ReferenceKGRec(*sizes, *edges, functions=baseline.functions, **hyper)
    reference.load_state_dict(model.state_dict())
    return model, reference


def choice_of(model: KGRec, masks: StepMasks) -> StepChoice:
    """The masks of a step as the edge ids that the reference takes."""

    def ids(graph: RelGraph | InteractionGraph, mask: Tensor | None) -> Tensor:
        return graph.perm.long() if mask is None else graph.perm[mask].long()

    return StepChoice(
        sampled_edges=ids(model.kg, masks.sampled),
        kept_interactions=ids(model.interactions, masks.kept),
        masked_edges=ids(model.kg, masks.masked),
        contrast_edges=ids(model.kg, masks.contrast_edges),
        contrast_interactions=ids(model.interactions, masks.contrast_interactions),
        permutation=masks.permutation,
    )


def check(
    data: KGDataset, baseline: baselines.Baseline, batch: dict[str, Tensor], **hyper: Any
) -> str:
    """Loss and gradients of both without message dropout, whose random numbers differ."""
    model, reference = make_models(data, baseline, mess_dropout_rate=0.0, **hyper)
    masks = model.draw_masks()
    losses = (
        model.calculate_loss(batch, masks),
        reference.calculate_loss(batch, choice_of(model, masks)),
    )
    worst = check_close("loss", *losses)
    for loss in losses:
        loss.backward()
    others = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        other = others[name]
        if parameter.grad is None or other.grad is None:
            raise RuntimeError(f"{name} has no gradient")
        worst = max(worst, check_close(f"gradient of {name}", parameter.grad, other.grad))
    return f"loss {losses[0].item():.6f}; largest difference: {worst:.1e} of the largest value"


def stepper(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Callable[[], float]:
    """A function that makes one training step, with the next of the batches; returns the loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    model.train()
    made = 0

    def step() -> float:
        nonlocal made
        optimizer.zero_grad(set_to_none=True)
        loss = model.calculate_loss(batches[made % len(batches)])  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        made += 1
        return loss.item()

    return step


class Parts:
    """Seconds by part of a step; each call that is watched adds to its part.

    Times of backward are those of the autograd engine as a whole.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Replaces ``owner.method`` by itself with a clock."""
        function = getattr(owner, method)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = self.steps[-1]
                seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - begin

        setattr(owner, method, timed)

    def median(self) -> dict[str, float]:
        names = dict.fromkeys(name for step in self.steps for name in step)
        return {n: quantile([step.get(n, 0.0) for step in self.steps], 0.5) for n in names}


def breakdown(
    model: KGRec, batches: Sequence[dict[str, Tensor]], steps: int
) -> tuple[dict[str, float], str]:
    """Median seconds of the parts of our step, and the operators that take most."""
    parts = Parts()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    watched = (
        (model, "draw_masks", "draw masks (scores included)"),
        (model.gcn, "messages", "recommendation: attention hops, users"),
        (model.gcn, "forward_ui", "user-item view"),
        (model.gcn, "kg_messages", "KG view"),
        (model.contrast_fn, "forward", "contrast"),
        (optimizer, "step", "Adam"),
    )
    model.train()
    originals = [(owner, method, owner.__dict__.get(method)) for owner, method, _ in watched]
    for owner, method, part in watched:
        parts.watch(owner, method, part)
    try:
        for number in range(steps + 1):
            parts.steps.append({})
            begin = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = model.calculate_loss(batches[number % len(batches)])
            forward = time.perf_counter()
            loss.backward()
            backward = time.perf_counter()
            optimizer.step()
            seconds = parts.steps[-1]
            listed = sum(seconds.values()) - seconds["Adam"]
            seconds["projection, losses and the rest"] = forward - begin - listed
            seconds["backward"] = backward - forward
            seconds["whole step"] = time.perf_counter() - begin
    finally:
        for owner, method, original in originals:
            if original is None:
                delattr(owner, method)
            else:
                setattr(owner, method, original)
    del parts.steps[0]

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for batch in batches[:5]:
            optimizer.zero_grad(set_to_none=True)
            model.calculate_loss(batch).backward()
            optimizer.step()
    averages = profile.key_averages()
    hot = averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
    return parts.median(), hot


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument(
        "--data",
        default="ml-100k",
        help="alibaba-fashion, news, or a name or folder of `kgrec-fast train` (default ml-100k)",
    )
    names = ", ".join(baselines.BASELINES)
    result.add_argument("--baseline", default="auto", help=f"auto, {names}")
    result.add_argument("--batch-size", type=int, default=2048)
    result.add_argument("--rounds", type=int, default=40, help="steps of each side")
    result.add_argument("--budget", type=float, default=120.0, help="seconds")
    result.add_argument("--hot", action="store_true", help="print the profiler's table as well")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = _arguments().parse_args(arguments)
    start(options)
    baseline = baselines.find_baseline(options.baseline)
    data = _step_data.load(options.data, options.quick)
    print(
        f"{data.name}: {data.n_users:,} users, {data.n_items:,} items, {data.n_entities:,} nodes, "
        f"{data.n_edges:,} triples, {data.train.shape[1]:,} training pairs"
    )
    hyper = {"mae_msize": 8} if options.quick else {}
    batches = list(PairLoader(data, options.batch_size))
    if len(batches) > 1:
        del batches[-1]  # the last one is smaller
    print(f"  {check(data, baseline, batches[0], **hyper)}")

    model, reference = make_models(data, baseline, **hyper)
    ours, theirs = interleave(
        [stepper(model, batches), stepper(reference, batches)],
        rounds=3 if options.quick else options.rounds,
        budget=options.budget,
        warmup=2,
    )
    parts, hot = breakdown(model, batches, 3 if options.quick else 20)
    row = Row.of(
        ours,
        theirs,
        op="train_step",
        graph=data.name,
        direction="step",
        baseline=f"reference on {baseline.name}",
        extra={"batch_size": options.batch_size, "parts": parts},
    )
    finish(options, [row])
    print()
    print(table(("part of our step", "ms"), [(k, f"{v * 1e3:.2f}") for k, v in parts.items()]))
    if options.hot:
        print(hot)


if __name__ == "__main__":
    main()
