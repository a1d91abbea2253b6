"""A training step of KGRec, Adam included, against the published method on torch_scatter + PyG.

That is `ReferenceKGRec`: it works on edge lists and draws on the host, relation by relation. Losses
and gradients of both models are compared first, under the same random choices. Peak memory is that
of one step, in a fresh process a side, above what is resident once Adam has its state.
Both sides make some steps in turn; the median is that of all steps. Beside them stands what no
implementation of these passes can leave out on the machine (`_step_floor`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _step_data, _step_floor, baselines
from benchmarks._harness import Row, check_close, finish, interleave, parser, quantile, start, table
from benchmarks._memory import peaks_of_sides
from kgrec_fast.data import KGDataset, PairLoader
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec, StepMasks
from kgrec_fast.models.reference import ReferenceKGRec, StepChoice
from kgrec_fast.training.memory import keep_freed_memory

LEARNING_RATE = 1e-3
BATCH_SIZE = 2048
MOST_BATCHES = 40
PROFILED = 5  # turns of the profiler
IN_A_ROW = 5  # steps of a side at its turn: caches hold what its last step left, as in training


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


def make_step(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Callable[[], float]:
    """A function that makes one training step, with the next of the batches; returns the loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    rng, one = torch.tensor([0, 0]), torch.tensor([0, 1])
    model.train()
    made = 0

    def step() -> float:
        nonlocal made
        batch = batches[made % len(batches)]
        optimizer.zero_grad(set_to_none=True)
        if isinstance(model, KGRec):
            loss = model.training_step(batch, rng)
        else:
            loss = model.calculate_loss(batch)  # type: ignore[operator]
        loss.backward()
        optimizer.step()
        rng.add_(one)
        made += 1
        return loss.item()

    return step


# -- parts -----------------------------------------------------------------------------------------

BACKWARD, WHOLE = "backward of everything", "whole step"


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
    model: KGRec | ReferenceKGRec, batches: Sequence[dict[str, Tensor]], steps: int
) -> dict[str, float]:
    """Median seconds of the parts of a step."""
    parts = Parts()
    step = make_step(model, batches)
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
    ),
    "dense layers": ("aten::mm", "aten::addmm", "aten::relu", "aten::threshold", "aten::clamp_min"),
    "optimizer": ("aten::_fused_adam", "Optimizer."),
}


def kinds(model: KGRec, batches: Sequence[dict[str, Tensor]]) -> tuple[dict[str, float], str]:
    """The share of a step that operators of each of the kinds take by themselves, and of the rest;
    and a table of all operators.

    The profiler slows down what is between the operators more than these. So steps are clocked
    without it, in turns with those that it sees, and the medians of both are what is divided.
    """
    step = make_step(model, batches)
    for _ in range(2):
        step()
    whole: list[float] = []
    seen: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(PROFILED):
        for _ in range(IN_A_ROW):
            begin = time.perf_counter()
            step()
            whole.append(time.perf_counter() - begin)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(IN_A_ROW):
                step()
        averages = profile.key_averages()
        for kind, names in KINDS.items():
            operators = (o for o in averages if o.key.startswith(names))
            seen[kind].append(sum(o.self_cpu_time_total for o in operators) * 1e-6 / IN_A_ROW)
    share = {k: quantile(seconds, 0.5) / quantile(whole, 0.5) for k, seconds in seen.items()}
    share["the rest"] = 1 - sum(share.values())
    hot = averages.table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60)
    return share, hot


# -- memory ----------------------------------------------------------------------------------------


def prepare_step(side: str, name: str, baseline: str, size: str) -> Callable[[], float]:
    """For `peak_in_fresh_process`: a step of one side, after one that makes Adam's state."""
    torch.set_num_threads(2)
    data = _step_data.load(name, size == "quick")
    hyper = {"mae_msize": 8} if size == "quick" else {}
    models = make_models(data, baselines.find_baseline(baseline), **hyper)
    step = make_step(models[side == "theirs"], batches_of(data, BATCH_SIZE))
    step()
    del models
    return step


def batches_of(data: KGDataset, batch_size: int) -> list[dict[str, Tensor]]:
    """Some batches, all of one size where there are several."""
    batches = list(islice(PairLoader(data, batch_size), MOST_BATCHES))
    return batches[:-1] or batches


def arguments_parser() -> argparse.ArgumentParser:
    """The options, which `measure` takes."""
    result = parser(__doc__)
    result.add_argument(
        "--data",
        nargs="+",
        default=["ml-100k", *_step_data.SIZES],
        help=f"{', '.join(_step_data.SIZES)}, and names or folders of `kgrec-fast train`",
    )
    names = ", ".join(baselines.BASELINES)
    result.add_argument("--baseline", default="auto", help=f"auto, {names}")
    result.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    result.add_argument(
        "--rounds", type=int, default=10, help=f"turns of each side, {IN_A_ROW} steps each"
    )
    result.add_argument("--budget", type=float, default=120.0, help="seconds for each data set")
    result.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    result.add_argument("--hot", action="store_true", help="print the profiler's table as well")
    return result


def measure(name: str, baseline: baselines.Baseline, options: argparse.Namespace) -> Row:
    """One data set: equality, time, parts, memory."""
    quick = options.quick
    data = _step_data.load(name, quick)
    print(
        f"{data.name}: {data.n_users:,} users, {data.n_items:,} items, {data.n_entities:,} nodes, "
        f"{data.n_edges:,} triples, {data.train.shape[1]:,} training pairs"
    )
    hyper = {"mae_msize": 8} if quick else {}
    batches = batches_of(data, options.batch_size)
    print(f"  {check(data, baseline, batches[0], **hyper)}")

    model, reference = make_models(data, baseline, **hyper)
    ours, theirs = interleave(
        [make_step(model, batches), make_step(reference, batches)],
        rounds=3 if quick else options.rounds,
        budget=options.budget,
        warmup=2,
        in_a_row=1 if quick else IN_A_ROW,
    )
    slow = theirs.median > 1
    parts = breakdown(model, batches, 3 if quick else 20)
    their_parts = breakdown(reference, batches, 3 if quick or slow else 10)
    share, hot = kinds(model, batches)
    print(table(("part", "ours, ms", "baseline, ms"), _beside(parts, their_parts)))
    print(table(("share of our step", "%"), [(k, f"{100 * v:.1f}") for k, v in share.items()]))
    least = _step_floor.floor(model, batches[0], 3 if quick else 20)
    print(
        "at least, on this machine: "
        + ", ".join(f"{what} {seconds * 1e3:.1f} ms" for what, seconds in least.items())
        + f"; the baseline takes {theirs.median / sum(least.values()):.1f} times as long"
    )
    if options.hot:
        print(hot)
    del model, reference
    peaks: tuple[int | None, int | None] = (None, None)
    if not options.no_memory:
        size = "quick" if quick else "full"
        peaks = peaks_of_sides("benchmarks.train_step", "prepare_step", name, baseline.name, size)
    row = Row.of(
        ours,
        theirs,
        op="train_step",
        graph=name,
        direction="step",
        baseline=f"reference on {baseline.name}",
        memory=peaks,
        extra={
            "data": data.name,
            "batch_size": options.batch_size,
            "parts": parts,
            "baseline_parts": their_parts,
            "shares": share,
            "floor": least,
        },
    )
    floor = sum(least.values())
    return replace(row, floor_seconds=floor, floor_share=floor / row.seconds)


def _beside(ours: dict[str, float], theirs: dict[str, float]) -> list[tuple[str, str, str]]:
    order = [n for n in ours if n != WHOLE] + [WHOLE]
    return [(n, f"{ours[n] * 1e3:.2f}", f"{theirs.get(n, 0.0) * 1e3:.1f}") for n in order]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = arguments_parser().parse_args(arguments)
    start(options)
    if keep_freed_memory():
        print("glibc keeps freed memory, for both sides, as in `kgrec-fast train`")
    baseline = baselines.find_baseline(options.baseline)
    names = options.data[:1] if options.quick else options.data
    finish(options, [measure(name, baseline, options) for name in names])


if __name__ == "__main__":
    main()
