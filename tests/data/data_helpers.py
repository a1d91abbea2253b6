"""Small data sets and slow, plain readers to compare with."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from kgrec_fast.data import KGDataset

INTER = """user_id:token item_id:token rating:float timestamp:float
u1 i1 5 1
u1 i2 3 2
u2 i1 4 3
u2 i3 1 4
u1 i1 2 5
"""
KG = """head_id:token relation_id:token tail_id:token
e1 r1 e2
e3 r2 e1
e2 r1 e4
e1 r1 e2
"""
LINK = """item_id:token entity_id:token
i1 e1
i2 e9
i4 e4
"""

KGAT_FILES = {
    "train.txt": "0 3 1 0\n1 2\n\n3 1 1\n2\n",
    "test.txt": "0 4\n1 2 0\n",
    "kg_final.txt": "0 0 5\n1 2 6\n0 0 5\n7 2 1\n",
}


def write_kgat(folder: Path, **changed: str) -> Path:
    """Writes train.txt, test.txt and kg_final.txt, changed as asked."""
    folder.mkdir(exist_ok=True)
    for name, text in KGAT_FILES.items():
        (folder / name).write_text(changed.get(name.removesuffix(".txt"), text))
    return folder


def write_atomic(folder: Path, name: str = "tiny", **files: str) -> Path:
    """Writes NAME.SUFFIX for each keyword; spaces become tabs, `_` in a keyword a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in files.items():
        path = folder / f"{name}.{suffix.replace('_', '.')}"
        path.write_text(text.replace(" ", "\t"), encoding="utf-8")
    return folder


def make_dataset(
    train: Iterable[tuple[int, int]],
    n_users: int,
    n_items: int,
    valid: Iterable[tuple[int, int]] = (),
    test: Iterable[tuple[int, int]] = (),
) -> KGDataset:
    """A data set of the given pairs with a graph of one edge."""

    def pairs(rows: Iterable[tuple[int, int]]) -> torch.Tensor:
        return torch.tensor(list(rows), dtype=torch.int64).reshape(-1, 2).t().contiguous()

    return KGDataset(
        n_users=n_users,
        n_items=n_items,
        n_entities=n_items,
        n_relations=2,
        edge_index=torch.zeros((2, 1), dtype=torch.int64),
        edge_type=torch.zeros(1, dtype=torch.int64),
        train=pairs(train),
        valid=pairs(valid),
        test=pairs(test),
        user_tokens=[f"u{k}" for k in range(n_users)],
        item_tokens=[f"i{k}" for k in range(n_items)],
        entity_tokens=[f"i{k}" for k in range(n_items)],
        relation_tokens=["r"],
    )


def rows_of(path: Path) -> list[list[str]]:
    """The data lines of an atomic file, split at tabs."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


class PlainAtomic:
    """What the atomic reader should yield, by loops over lines and dictionaries of tokens."""

    def __init__(self, folder: Path, name: str, recbole_items: bool) -> None:
        triples = [tuple(row[:3]) for row in rows_of(folder / f"{name}.kg")]
        entities = {h for h, _, _ in triples} | {t for _, _, t in triples}
        link = {i: e for i, e, *_ in rows_of(folder / f"{name}.link") if e in entities}
        rated = rows_of(folder / f"{name}.inter")
        if recbole_items:
            rated = [row for row in rated if row[1] in link]
        self.pairs = {(row[0], row[1]) for row in rated}
        self.users = {user for user, _ in self.pairs}
        self.items = {item for _, item in self.pairs}
        if not recbole_items:
            self.items |= set(link)
        nodes_of: dict[str, list[tuple[str, str]]] = {}
        for item in self.items & set(link):
            nodes_of.setdefault(link[item], []).append(("item", item))
        self.edges: Counter = Counter()
        for h, r, t in triples:
            for head in nodes_of.get(h, [("entity", h)]):
                for tail in nodes_of.get(t, [("entity", t)]):
                    self.edges[head, r, tail] += 1
        self.n_entities = len(self.items) + len(entities - set(nodes_of))


def edges_by_token(data: KGDataset) -> Counter:
    """The edges of a data set in the terms of `PlainAtomic.edges`."""

    def label(node: int) -> tuple[str, str]:
        if node < data.n_items:
            return "item", data.item_tokens[node]
        return "entity", data.entity_tokens[node]

    heads, tails = data.edge_index.tolist()
    kinds = [data.relation_tokens[kind] for kind in data.edge_type.tolist()]
    return Counter(zip(map(label, heads), kinds, map(label, tails), strict=True))


def pairs_by_token(data: KGDataset, split: str) -> list[tuple[str, str]]:
    users, items = data.split(split).tolist()
    return [(data.user_tokens[u], data.item_tokens[i]) for u, i in zip(users, items, strict=True)]


def real_kg_final() -> Path | None:
    """The alibaba-fashion graph, where KGREC_FAST_DATA leads to it."""
    place = os.environ.get("KGREC_FAST_DATA")
    if not place:
        return None
    found = [Path(place)] if Path(place).is_file() else sorted(Path(place).rglob("kg_final.txt"))
    return found[0] if found else None
