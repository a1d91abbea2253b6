"""A training step of the published model before and after `kgrec_fast.accelerate`.

Only layers are swapped. The model still draws edge lists on the host, relation by relation, and new
lists are sorted at each step: this is no figure of `kgrec_fast.models.KGRec`, which
`benchmarks.train_step` measures. Losses and gradients of both are compared first, under the same
random choices.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import _step_data, baselines, train_step
from benchmarks._harness import Row, check_close, finish, interleave, parser, start, table
from benchmarks._memory import peaks_of_sides
from benchmarks._step_parts import IN_A_ROW, Parts, breakdown
from kgrec_fast import accelerate
from kgrec_fast.data import KGDataset
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models.reference import ReferenceKGRec, StepChoice
from kgrec_fast.training.memory import keep_freed_memory

DATA = ("ml-100k", "alibaba-fashion")
SORTING = "of it, sorting new edge lists"


def swapped_copy(model: ReferenceKGRec) -> ReferenceKGRec:
    """A copy with fast layers.

    Raises:
        RuntimeError: A layer was left alone.
    """
    result = copy.deepcopy(model)
    report = accelerate(result)
    if report.swapped != ("gcn", "contrast_fn"):
        raise RuntimeError(str(report))
    return result


def make_pair(
    data: KGDataset, baseline: baselines.Baseline, **hyper: Any
) -> tuple[ReferenceKGRec, ReferenceKGRec, StepChoice]:
    """The model with fast layers and as it was, and choices for a step of both."""
    ours, original = train_step.make_models(data, baseline, **hyper)
    choice = train_step.choice_of(ours, ours.draw_masks())
    # A permutation that is put in would send the contrast to the layer's own method.
    return swapped_copy(original), original, replace(choice, permutation=None)


def check(
    data: KGDataset, baseline: baselines.Baseline, batch: dict[str, Tensor], **hyper: Any
) -> str:
    """Loss and gradients without message dropout, whose draws differ."""
    *models, choice = make_pair(data, baseline, mess_dropout_rate=0.0, **hyper)
    losses = []
    for model in models:
        torch.manual_seed(0)  # of the permutation
        losses.append(model.calculate_loss(batch, choice))
        losses[-1].backward()
    worst = check_close("loss", losses[0], losses[1])
    pairs = (dict(model.named_parameters()) for model in models)
    ours, theirs = ({name: p.grad for name, p in named.items()} for named in pairs)
    for name, gradient in ours.items():
        other = theirs[name]
        if gradient is None or other is None:
            raise RuntimeError(f"{name} has no gradient")
        worst = max(worst, check_close(f"gradient of {name}", gradient, other))
    return f"loss {losses[0].item():.6f}; largest difference: {worst:.1e} of the largest value"


def sorting(model: ReferenceKGRec, batches: Sequence[dict[str, Tensor]], steps: int) -> float:
    """Median seconds of a step that go into graphs of edge lists which the model drew."""
    parts, step = Parts(), train_step.make_step(model, batches)
    watched: list[tuple[Any, str, str]] = [
        (graph, method, SORTING)
        for graph in (RelGraph, InteractionGraph)
        for method in ("from_edges", "columns")
    ]
    with parts.watch(watched):
        for _ in range(steps + 1):
            parts.steps.append({})
            step()
    return parts.median()[SORTING]


def prepare_step(side: str, name: str, baseline: str, size: str) -> Callable[[], float]:
    """For `peak_in_fresh_process`: a step of one side, after one that makes Adam's state."""
    torch.set_num_threads(2)
    data = _step_data.load(name, size == "quick")
    hyper = {"mae_msize": 8} if size == "quick" else {}
    ours, original, _ = make_pair(data, baselines.find_baseline(baseline), **hyper)
    batches = train_step.batches_of(data, train_step.BATCH_SIZE)
    step = train_step.make_step(original if side == "theirs" else ours, batches)
    step()
    del ours, original
    return step


def measure(name: str, baseline: baselines.Baseline, options: argparse.Namespace) -> Row:
    """One data set: equality, time, parts, memory."""
    quick = options.quick
    data = _step_data.load(name, quick)
    print(
        f"{data.name}: {data.n_users:,} users, {data.n_items:,} items, {data.n_entities:,} nodes, "
        f"{data.n_edges:,} triples, {data.train.shape[1]:,} training pairs"
    )
    hyper = {"mae_msize": 8} if quick else {}
    batches = train_step.batches_of(data, options.batch_size)
    print(f"  {check(data, baseline, batches[0], **hyper)}")

    models = make_pair(data, baseline, **hyper)[:2]
    made = [train_step.make_step(model, batches) for model in models]
    ours, theirs = interleave(
        made,
        rounds=3 if quick else options.rounds,
        budget=options.budget,
        warmup=2,
        in_a_row=1 if quick else IN_A_ROW,
    )
    steps = 3 if quick or theirs.median > 1 else 10
    parts, their_parts = (breakdown(*each, steps) for each in zip(models, made, strict=True))
    parts[SORTING] = sorting(models[0], batches, steps)
    rows = [
        (part, f"{seconds * 1e3:.2f}", f"{their_parts.get(part, 0.0) * 1e3:.1f}")
        for part, seconds in parts.items()
    ]
    print(table(("part", "layers swapped, ms", "as it was, ms"), rows))
    del models, made
    peaks: tuple[int | None, int | None] = (None, None)
    if not options.no_memory:
        size = "quick" if quick else "full"
        peaks = peaks_of_sides("benchmarks.layer_swap", "prepare_step", name, baseline.name, size)
    return Row.of(
        ours,
        theirs,
        op="layer_swap",
        graph=name,
        direction="step",
        baseline=f"reference on {baseline.name}",
        memory=peaks,
        extra={
            "data": data.name,
            "batch_size": options.batch_size,
            "parts": parts,
            "baseline_parts": their_parts,
        },
    )


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument(
        "--data",
        nargs="+",
        default=list(DATA),
        help=f"{', '.join(_step_data.SIZES)}, and names or folders of `kgrec-fast train`",
    )
    names = ", ".join(baselines.BASELINES)
    result.add_argument("--baseline", default="auto", help=f"auto, {names}")
    result.add_argument("--batch-size", type=int, default=train_step.BATCH_SIZE)
    result.add_argument(
        "--rounds",
        type=int,
        default=10,
        help=f"turns of each side, {IN_A_ROW} steps each",
    )
    result.add_argument("--budget", type=float, default=120.0, help="seconds for each data set")
    result.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = _arguments().parse_args(arguments)
    start(options)
    if keep_freed_memory():
        print("glibc keeps freed memory, for both sides, as in `kgrec-fast train`")
    baseline = baselines.find_baseline(options.baseline)
    names = options.data[:1] if options.quick else options.data
    finish(options, [measure(name, baseline, options) for name in names])


if __name__ == "__main__":
    main()
