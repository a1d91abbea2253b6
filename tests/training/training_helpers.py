"""A stand-in for KGRec with the same interface, configurations, and data files on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kgrec_fast.data import KGDataset, planted_rationales
from kgrec_fast.training.config import Config, parse_config


class MatrixFactorisation(nn.Module):
    """BPR matrix factorisation with dropout, so that its course depends on torch's generator."""

    def __init__(self, dataset: KGDataset, size: int = 8) -> None:
        super().__init__()
        self.user = nn.Embedding(dataset.n_users, size)
        self.item = nn.Embedding(dataset.n_items, size)
        nn.init.normal_(self.user.weight, std=0.1)
        nn.init.normal_(self.item.weight, std=0.1)
        self.losses_made = 0

    def embeddings(self) -> tuple[Tensor, Tensor]:
        return self.user.weight, self.item.weight

    def calculate_loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.losses_made += 1
        user = nn.functional.dropout(self.user(batch["user_id"]), 0.2, self.training)
        apart = self.item(batch["item_id"]) - self.item(batch["neg_item_id"])
        return -nn.functional.logsigmoid((user * apart).sum(1)).mean()


def small_dataset() -> KGDataset:
    """60 users, 40 items."""
    return planted_rationales(60, 40, 2, attributes=5, interactions=(6, 12), seed=3)


def fresh_model(dataset: KGDataset) -> MatrixFactorisation:
    """The same initial weights, and generator state, each time."""
    torch.manual_seed(7)
    return MatrixFactorisation(dataset)


def make_config(**training: object) -> Config:
    """A short training with cutoffs 3 and 10."""
    settings = {"epochs": 4, "eval_every": 1, "batch_size": 64, "lr": 0.02, "seed": 5, **training}
    return parse_config({"training": settings, "evaluation": {"ks": [3, 10]}})


def write_atomic(folder: Path, dataset: KGDataset) -> Path:
    """Writes a data set as atomic files, to be split by the reader."""
    folder.mkdir(parents=True)
    pairs = torch.cat([dataset.train, dataset.valid, dataset.test], dim=1).T.tolist()
    lines = [f"u{user}\ti{item}" for user, item in pairs]
    _write(folder / f"{folder.name}.inter", "user_id:token\titem_id:token", lines)
    triples = zip(*dataset.edge_index.tolist(), dataset.edge_type.tolist(), strict=True)
    lines = [f"e{head}\tr{relation}\te{tail}" for head, tail, relation in triples]
    _write(folder / f"{folder.name}.kg", "head_id:token\trelation_id:token\ttail_id:token", lines)
    lines = [f"i{item}\te{item}" for item in range(dataset.n_items)]
    _write(folder / f"{folder.name}.link", "item_id:token\tentity_id:token", lines)
    return folder


def _write(path: Path, header: str, lines: list[str]) -> None:
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
