"""Whether rationale scores find planted rationales: their AUC on synthetic data, after training.

Half of the triples explain what users like, the other half are noise of equal sizes and degrees.
The AUC is the probability that a planted triple scores above a noise triple. Beside it stand the
AUC of what anybody could count (degrees, frequency of the relation), and that of the same model
with its attention frozen: ``W_Q`` keeps its initial values, everything else is trained.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import finish, parser, start, table
from kgrec_fast.data import KGDataset, PairLoader, planted_rationales
from kgrec_fast.graph import InteractionGraph, RelGraph
from kgrec_fast.models import KGRec


@dataclass(frozen=True)
class Finding:
    """AUCs of one seed."""

    seed: int
    trained: float
    frozen: float
    untrained: float
    head_degree: float
    tail_degree: float
    relation_frequency: float
    seconds: float


def auc(score: Tensor, truth: Tensor) -> float:
    """Probability that a score [E] where `truth` holds is above one where it does not; ties half.

    Raises:
        ValueError: `truth` (bool [E]) is all True or all False.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise ValueError("truth has one value only, expected some True and some False")
    _, group, count = torch.unique(score.double(), return_inverse=True, return_counts=True)
    rank = count.cumsum(0).double() - (count - 1).double() / 2  # of equal scores the mean rank
    total = float(rank[group][truth].sum())
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def make_model(data: KGDataset, seed: int, **hyper: Any) -> KGRec:
    """KGRec on the training interactions, with its default hyper-parameters or others."""
    kg = RelGraph.from_edges(
        data.edge_index,
        data.edge_type,
        num_nodes=data.n_entities,
        num_relations=data.n_relations - 1,
    )
    interactions = InteractionGraph.from_edges(
        data.train, num_users=data.n_users, num_items=data.n_items
    )
    torch.manual_seed(seed)
    sizes = (data.n_users, data.n_items, data.n_entities, data.n_relations)
    return KGRec(*sizes, kg, interactions, **hyper)


def train(
    model: KGRec, data: KGDataset, seed: int, epochs: int, batch_size: int, lr: float
) -> list[float]:
    """Trains with Adam; the AUC after each epoch."""
    if data.truth is None:
        raise ValueError("data.truth is None, expected synthetic data")
    loader = PairLoader(data, batch_size, seed=seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, fused=True)
    curve = []
    for _ in range(epochs):
        model.train()
        for batch in loader:
            optimizer.zero_grad(set_to_none=True)
            model.calculate_loss(batch).backward()
            optimizer.step()
        model.eval()
        curve.append(auc(model.rationales(), data.truth))
    return curve


def find(
    seed: int, epochs: int, batch_size: int, lr: float, verbose: bool, quick: bool
) -> tuple[Finding, list[float], list[float]]:
    """Data of a seed, the model trained on them with and without attention."""
    small = {"n_users": 60, "n_items": 60, "interactions": (5, 8)} if quick else {}
    data = planted_rationales(seed=seed, **small)  # type: ignore[arg-type]
    if data.truth is None:
        raise ValueError("data.truth is None, expected synthetic data")
    begin = time.perf_counter()
    hyper = {"mae_msize": 8} if quick else {}
    model = make_model(data, seed, **hyper)
    untrained = auc(model.rationales(), data.truth)
    curve = train(model, data, seed, epochs, batch_size, lr)
    model = make_model(data, seed, **hyper)
    model.gcn.W_Q.requires_grad_(False)
    frozen = train(model, data, seed, epochs, batch_size, lr)
    head, tail = data.edge_index
    finding = Finding(
        seed,
        curve[-1],
        frozen[-1],
        untrained,
        auc(torch.bincount(head)[head], data.truth),
        auc(torch.bincount(tail)[tail], data.truth),
        auc(torch.bincount(data.edge_type)[data.edge_type], data.truth),
        time.perf_counter() - begin,
    )
    if verbose:
        every = range(0, epochs, max(1, epochs // 15))
        print(f"seed {seed} trained", [round(curve[i], 3) for i in every])
        print(f"seed {seed} frozen ", [round(frozen[i], 3) for i in every])
    return finding, curve, frozen


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    result.add_argument("--epochs", type=int, default=25)
    result.add_argument("--batch-size", type=int, default=512)
    result.add_argument("--lr", type=float, default=1e-3)
    result.add_argument("--verbose", action="store_true", help="print the AUC along the way")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, prints and writes."""
    options = _arguments().parse_args(arguments)
    start(options)
    epochs = 2 if options.quick else options.epochs
    findings, curves = [], []
    for seed in options.seeds:
        finding, trained, frozen = find(
            seed, epochs, options.batch_size, options.lr, options.verbose, options.quick
        )
        findings.append(asdict(finding))
        curves.append({"seed": seed, "trained": trained, "frozen": frozen})
    names = [name for name in findings[0] if name != "seed"]
    lines = [[str(f["seed"]), *(f"{f[name]:.3f}" for name in names)] for f in findings]
    means = [statistics.fmean(f[name] for f in findings) for name in names]
    print(table(["seed", *names], [*lines, ["mean", *(f"{mean:.3f}" for mean in means)]]))
    finish(options, [], epochs=epochs, lr=options.lr, findings=findings, curves=curves)


if __name__ == "__main__":
    main()
