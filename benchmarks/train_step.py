"""A training step of KGRec, Adam included, against the published method on torch_scatter + PyG.

That is `ReferenceKGRec`: it works on edge lists and draws on the host, relation by relation. Losses
and gradients of both models are compared first, under the same random choices. Peak memory is that
of one step, in a fresh process a side, above what is resident once Adam has its state.
Both sides make some steps in turn; the median is that of all steps. Ours are recorded, as
`kgrec_fast.training.Trainer` does, and the same plainly stand beside them. So does what no
implementation of these passes can leave out on the machine (`_step_floor`).

With ``--device cuda`` our step is captured in a CUDA graph, as `kgrec_fast.training.Trainer` does;
the baseline draws on the host as before. A step ends when its loss is read. Peak memory is torch's
own count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import _step_data, _step_floor, baselines
from benchmarks._device import Device, why_not
from benchmarks._harness import Row, Timing, check_close, finish, interleave, parser, start, table
from benchmarks._memory import peaks_of_sides
from benchmarks._step_parts import (
    BETWEEN,
    IN_A_ROW,
    OTHERS,
    WHOLE,
    ClockedStep,
    breakdown,
    by_name,
    kinds,
)
from kgrec_fast.data import KGDataset, PairLoader
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec, StepMasks
from kgrec_fast.models.reference import ReferenceKGRec, StepChoice
from kgrec_fast.training.chosen_step import ChosenStep
from kgrec_fast.training.memory import keep_freed_memory
from kgrec_fast.training.optimizer import make_adam
from kgrec_fast.training.steps import CapturedStep

LEARNING_RATE = 1e-3
BATCH_SIZE = 2048
MOST_BATCHES = 40
MOST_OPERATORS = 40
WARM_UP = CapturedStep.WARM_UP + 1  # a recorded step needs no more
LEFT_OUT_ON_CUDA = (
    "not on CUDA: parts, which a captured step does not have, and the floor; peaks of memory are "
    "those of steps that are not captured, since a replay allocates next to nothing"
)


def make_models(
    data: KGDataset,
    baseline: baselines.Baseline,
    device: torch.device | str = "cpu",
    **hyper: Any,
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
    return model.to(device), reference.to(device)


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
    device = batch["user_id"].device
    model, reference = make_models(data, baseline, device, mess_dropout_rate=0.0, **hyper)
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


def make_step(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], capture: bool = True
) -> Callable[[], float]:
    """A function that makes one training step, with the next of the batches; returns the loss, for
    which it waits for the device. The step is captured or recorded where it can be, unless
    `capture` is False.
    """
    users = batches[0]["user_id"]
    optimizer = make_adam(model, LEARNING_RATE, 0.0)
    rng = torch.tensor([0, 0], device=users.device)
    step = ChosenStep(
        model,
        optimizer,
        rng,
        len(users),
        cuda_graph=capture,
        record_steps=None if capture else False,
        note=lambda why: None,
    )
    model.train()
    following = cycle(batches)
    return lambda: step(next(following)).item()


# -- memory ----------------------------------------------------------------------------------------


def prepare_step(side: str, name: str, baseline: str, size: str) -> Callable[[], float]:
    """For `peak_in_fresh_process`: a step of one side, after those that make Adam's state and are
    recorded.
    """
    torch.set_num_threads(2)
    data = _step_data.load(name, size == "quick")
    hyper: dict[str, Any] = {"mae_msize": 8} if size == "quick" else {}
    models = make_models(data, baselines.find_baseline(baseline), **hyper)
    step = make_step(models[side == "theirs"], batches_of(data, BATCH_SIZE))
    for _ in range(WARM_UP):
        step()
    del models
    return step


def peaks_on_cuda(
    on: Device, models: Sequence[nn.Module], batches: Sequence[dict[str, Tensor]]
) -> tuple[int | None, int | None]:
    """Peaks of a step of both models by torch's own count, after one that makes Adam's state."""

    def peak(model: nn.Module) -> int | None:
        step = make_step(model, batches, capture=False)
        step()
        return on.peak(step)

    ours, theirs = map(peak, models)
    return ours, theirs


def batches_of(
    data: KGDataset, batch_size: int, device: torch.device | str = "cpu"
) -> list[dict[str, Tensor]]:
    """Some batches, all of one size where there are several."""
    batches = list(islice(PairLoader(data, batch_size, device=device), MOST_BATCHES))
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
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    result.add_argument(
        "--rounds", type=int, default=10, help=f"turns of each side, {IN_A_ROW} steps each"
    )
    result.add_argument("--budget", type=float, default=120.0, help="seconds for each data set")
    result.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    result.add_argument("--hot", action="store_true", help="print our operators as well")
    return result


def measure(name: str, baseline: baselines.Baseline, options: argparse.Namespace) -> Row:
    """One data set: equality, time, parts, memory."""
    quick, on = options.quick, Device(torch.device(options.device), options.rounds, options.budget)
    data = _step_data.load(name, quick)
    print(
        f"{data.name}: {data.n_users:,} users, {data.n_items:,} items, {data.n_entities:,} nodes, "
        f"{data.n_edges:,} triples, {data.train.shape[1]:,} training pairs"
    )
    hyper: dict[str, Any] = {"mae_msize": 8} if quick else {}
    batches = batches_of(data, options.batch_size, on.device)
    print(f"  {check(data, baseline, batches[0], **hyper)}")

    models = make_models(data, baseline, on.device, **hyper)
    steps = [make_step(model, batches) for model in models]
    ours, theirs = interleave(
        steps,
        rounds=3 if quick else options.rounds,
        budget=options.budget,
        warmup=WARM_UP,
        in_a_row=1 if quick else IN_A_ROW,
    )
    found: dict[str, Any]
    peaks: tuple[int | None, int | None] = (None, None)
    if on.is_cuda:
        print(LEFT_OUT_ON_CUDA)
        found = {"left_out": LEFT_OUT_ON_CUDA}
        del steps
        if not options.no_memory:
            peaks = peaks_on_cuda(on, models, batches)
    else:
        plain = make_step(models[0], batches, capture=False)
        found = parts_and_floor(models, (plain, steps[1]), batches[0], theirs, options)
        found.update(operators_of(models[0], (steps[0], plain), batches[0], options))
        del models, steps
        if not options.no_memory:
            size = "quick" if quick else "full"
            where = ("benchmarks.train_step", "prepare_step")
            peaks = peaks_of_sides(*where, name, baseline.name, size)
    row = Row.of(
        ours,
        theirs,
        op="train_step",
        graph=name,
        direction="step",
        baseline=f"reference on {baseline.name}",
        device=on.name,
        memory=peaks,
        extra={"data": data.name, "batch_size": options.batch_size, **found},
    )
    if on.is_cuda:
        return row
    floor = sum(found["floor"].values())
    return replace(row, floor_seconds=floor, floor_share=floor / row.seconds)


def parts_and_floor(
    models: tuple[KGRec, ReferenceKGRec],
    steps: Sequence[Callable[[], object]],
    batch: dict[str, Tensor],
    theirs: Timing,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Parts of a step on either side, and the floor; printed as well."""
    quick, slow = options.quick, theirs.median > 1
    parts = breakdown(models[0], steps[0], 3 if quick else 20)
    their_parts = breakdown(models[1], steps[1], 3 if quick or slow else 10)
    print(table(("part", "ours, ms", "baseline, ms"), _beside(parts, their_parts)))
    least = _step_floor.floor(models[0], batch, 3 if quick else 20)
    print(
        "at least, on this machine: "
        + ", ".join(f"{what} {seconds * 1e3:.1f} ms" for what, seconds in least.items())
        + f"; the baseline takes {theirs.median / sum(least.values()):.1f} times as long"
    )
    return {"parts": parts, "baseline_parts": their_parts, "floor": least}


def operators_of(
    model: KGRec,
    steps: Sequence[Callable[[], object]],
    batch: dict[str, Tensor],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Where our step goes, by kinds of operators and what is between them; printed as well.

    Args:
        model: Ours.
        steps: That of the measurement, and a plain one.
        batch: What operators are clocked with, one by one, in a step of its own.
        options: Of the command line.
    """
    clocked = ClockedStep(model, make_adam(model, LEARNING_RATE, 0.0), torch.tensor([0, 0]))
    for _ in range(WARM_UP):
        clocked(batch)
    if clocked.reason is not None:
        raise RuntimeError(f"our step was not recorded: {clocked.reason}")
    rounds = 3 if options.quick else options.rounds
    sides = [*steps, lambda: clocked(batch)]
    whole, plain, _ = (t.median for t in interleave(sides, rounds=rounds, in_a_row=IN_A_ROW))
    shares = kinds(clocked.operators, clocked.whole)
    rest = shares[OTHERS] + shares[BETWEEN]
    rows = [(kind, f"{100 * share:.1f}") for kind, share in shares.items()]
    print(table((f"share of our step, {len(clocked.operators)} operators", "%"), rows))
    print(
        f"of {whole * 1e3:.1f} ms ({plain * 1e3:.1f} where steps are plain) what is of no kind and "
        f"what is between operators are {rest:.1%}"
    )
    if options.hot:
        hot = [(name, str(n), f"{s * 1e3:.2f}") for name, n, s in by_name(clocked.operators)]
        print(table(("operator", "calls", "ms"), hot[:MOST_OPERATORS]))
    return {"shares": shares, "rest": rest, "plain_seconds": plain}


def _beside(ours: dict[str, float], theirs: dict[str, float]) -> list[tuple[str, str, str]]:
    order = [n for n in ours if n != WHOLE] + [WHOLE]
    return [(n, f"{ours[n] * 1e3:.2f}", f"{theirs.get(n, 0.0) * 1e3:.1f}") for n in order]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 0, or the code of `why_not`."""
    options = arguments_parser().parse_args(arguments)
    if found := why_not(torch.device(options.device)):
        print(found[0])
        return found[1]
    start(options)
    if keep_freed_memory():
        print("glibc keeps freed memory, for both sides, as in `kgrec-fast train`")
    baseline = baselines.find_baseline(options.baseline)
    names = options.data[:1] if options.quick else options.data
    finish(options, [measure(name, baseline, options) for name in names])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
