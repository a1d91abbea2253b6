"""Reader of RecBole's atomic files: `NAME.inter`, `NAME.kg`, `NAME.link`.

Tab-separated text under a header of `field:type` cells. From them a `KGDataset` is made:

- Items are all items of `.inter`, and the linked items that nobody rated. An item is linked if
  `.link` gives it an entity that occurs in `.kg`; other links say nothing and are passed over.
- A linked item and its entity are one node. Two items on one entity keep a node each, since they
  are rated and recommended apart; a triple of that entity is then repeated for each of its items.
- With `recbole_items`, items are those both rated and linked: what RecBole and hopwise keep.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kgrec_fast.data.atomic_file import import_pandas, read_atomic
from kgrec_fast.data.dataset import SPLITS, KGDataset
from kgrec_fast.data.errors import DataFormatError
from kgrec_fast.data.splits import split_by_user
from kgrec_fast.data.triples import with_inverse

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class AtomicFields:
    """Names of the fields in atomic files, where they differ from RecBole's."""

    user: str = "user_id"
    item: str = "item_id"
    rating: str = "rating"
    head: str = "head_id"
    relation: str = "relation_id"
    tail: str = "tail_id"
    entity: str = "entity_id"


def _read_interactions(
    directory: Path, name: str, fields: AtomicFields, min_rating: float | None, given: bool
) -> pd.DataFrame:
    """Rows of `.inter` (or of its three parts) with columns user, item, part, positive."""
    pd = import_pandas()
    files = [f"{name}.{part}.inter" for part in SPLITS] if given else [f"{name}.inter"]
    frames = []
    for part, file in enumerate(files):
        path = directory / file
        frame = read_atomic(path, [fields.user, fields.item], [fields.rating])
        if min_rating is None:
            positive = np.ones(len(frame), dtype=bool)
        elif fields.rating in frame:
            positive = (frame[fields.rating] >= min_rating).to_numpy()
        else:
            reason = f"min_rating needs a column {fields.rating}:float, and there is none"
            raise DataFormatError(path, 1, reason)
        frames.append(
            pd.DataFrame(
                {
                    "user": frame[fields.user],
                    "item": frame[fields.item],
                    "part": part,
                    "positive": positive,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _read_links(path: Path, fields: AtomicFields, entities: pd.Index, notes: list[str]) -> Any:
    """Items linked to an entity of the graph: a series of entity codes, indexed by item."""
    pd = import_pandas()
    link = read_atomic(path, [fields.item, fields.entity])
    code = entities.get_indexer(pd.Index(link[fields.entity]))
    known = link.assign(code=code)[code >= 0].drop_duplicates([fields.item, fields.entity])
    if known.empty:
        reason = f"none of its {link[fields.entity].nunique()} entities occurs in the .kg file"
        raise DataFormatError(path, None, reason)
    first = known.drop_duplicates(fields.item)
    if len(first) < len(known):
        items = int(known[fields.item].duplicated().sum())
        notes.append(f"{items} further links of items that had one already are left out")
    return first.set_index(fields.item)["code"]


def expand_shared_entities(
    item_entity: NDArray[np.int64],
    heads: NDArray[np.int64],
    relations: NDArray[np.int64],
    tails: NDArray[np.int64],
    n_entities: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Turns triples over entities into edges over nodes, items first.

    Args:
        item_entity: int64 [n_items], the entity of each item, -1 where it has none.
        heads, relations, tails: int64 [T], triples over entities 0 .. n_entities - 1.
        n_entities: number of entities.

    Returns:
        `(edge_index [2, E], edge_type [E], node_entity [n_nodes])`. Entities without an item are
        the nodes from n_items on, in their own order. A triple whose head stands for a items and
        whose tail for b is repeated a * b times, in the place of the original; so E = T where no
        two items share an entity. `node_entity` is -1 for unlinked items.

    Complexity: one sort of the items, otherwise linear in T + E.
    """
    n_items = len(item_entity)
    linked = np.flatnonzero(item_entity >= 0)
    counts = np.bincount(item_entity[linked], minlength=n_entities)
    others = np.flatnonzero(counts == 0)
    node_entity = np.r_[item_entity, others]
    # Nodes grouped by the entity they stand for; each entity has at least one.
    nodes = np.r_[linked, np.arange(n_items, n_items + len(others))]
    nodes = nodes[np.argsort(node_entity[nodes], kind="stable")]
    size = np.maximum(counts, 1)
    start = np.cumsum(size) - size
    copies = size[heads] * size[tails]
    edge = np.repeat(np.arange(len(heads)), copies)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(copies) - copies, copies)
    by_tail = size[tails][edge]
    head = nodes[start[heads[edge]] + within // by_tail]
    tail = nodes[start[tails[edge]] + within % by_tail]
    return np.stack([head, tail]), relations[edge], node_entity


def _given_splits(directory: Path, name: str, split: str) -> bool:
    """Whether the pre-split files are to be read."""
    present = [part for part in SPLITS if (directory / f"{name}.{part}.inter").is_file()]
    if split == "random" or (split == "auto" and not present):
        return False
    absent = [f"{name}.{part}.inter" for part in SPLITS if part not in present]
    if absent:
        raise FileNotFoundError(
            f"{directory}: given splits need all of {name}.{{train,valid,test}}.inter; "
            f"missing: {', '.join(absent)}"
        )
    return True


def load_atomic(
    directory: str | Path,
    name: str | None = None,
    *,
    fields: AtomicFields | None = None,
    min_rating: float | None = None,
    recbole_items: bool = False,
    inverse: bool = False,
    split: str = "auto",
    seed: int = 2024,
) -> KGDataset:
    """Reads a data set of atomic files.

    Every row of `.inter` is a positive, unless `min_rating` asks for more; a repeated (user, item)
    pair counts once, at its first place. Users without a positive are left out. Items rated only
    below `min_rating` stay items that can be recommended (except with `recbole_items`).
    Tokens are numbered in the order in which they first appear.

    Args:
        directory: where the files are.
        name: their common stem; by default the directory's name, or that of its only `.kg`.
        fields: field names, where they differ from RecBole's.
        min_rating: least rating of a positive.
        recbole_items: keep only items that are both rated and linked; linked items that nobody
            rated become plain entities.
        inverse: drop duplicate triples, then add each once more from tail to head, with relation id
            + number of relations. Without it triples are kept as given, duplicates too.
        split: "given" reads `NAME.{train,valid,test}.inter`; "random" splits `NAME.inter` per user;
            "auto" takes the given files where they are.
        seed: of the random split.

    Raises:
        FileNotFoundError: if a file is missing.
        DataFormatError: if one is malformed.
        ValueError: for an unknown `split`, or if no interaction is left.
    """
    pd = import_pandas()
    if split not in ("auto", "given", "random"):
        raise ValueError(f"split: expected auto, given or random, got {split!r}")
    directory = Path(directory)
    name = atomic_name(directory) if name is None else name
    fields = AtomicFields() if fields is None else fields
    given = _given_splits(directory, name, split)
    notes: list[str] = []

    kg = read_atomic(directory / f"{name}.kg", [fields.head, fields.relation, fields.tail])
    codes, entities = pd.factorize(pd.concat([kg[fields.head], kg[fields.tail]]))
    heads, tails = np.split(codes.astype(np.int64), 2)
    relations, relation_tokens = pd.factorize(kg[fields.relation])
    entities = pd.Index(entities)
    links = _read_links(directory / f"{name}.link", fields, entities, notes)

    rows = _read_interactions(directory, name, fields, min_rating, given)
    rated = rows["item"].unique()
    kept = rows[rows["positive"]]
    kept = _drop_repeats(kept, notes)
    if recbole_items:
        linked = kept["item"].isin(links.index)
        notes.append(f"{int((~linked).sum())} interactions with unlinked items are left out")
        kept = kept[linked]
        catalogue = pd.Index(kept["item"].unique())
    else:
        unrated = links.index[~links.index.isin(rated)]
        catalogue = pd.Index(rated).append(unrated)
        alone = int((~pd.Index(rated).isin(links.index)).sum())
        if alone:
            notes.append(f"{alone} of {len(rated)} rated items have no entity in the graph")
    if not len(links.index.intersection(rated)):
        reason = (
            f"none of the {len(rated)} items of the .inter file is linked: "
            f"{rated[0]!r} there, {links.index[0]!r} here"
        )
        raise DataFormatError(directory / f"{name}.link", None, reason)
    if kept.empty:
        raise ValueError(f"{directory / name}: no interaction is left (min_rating={min_rating})")
    users, user_tokens = pd.factorize(kept["user"])
    items = catalogue.get_indexer(kept["item"])

    item_entity = links.reindex(catalogue, fill_value=-1).to_numpy(dtype=np.int64)
    _warn_shared(item_entity, notes)
    edge_index, edge_type, node_entity = expand_shared_entities(
        item_entity, heads, relations.astype(np.int64), tails, len(entities)
    )
    relation_tokens = [str(token) for token in relation_tokens]
    if inverse:
        edge_index, edge_type, dropped = with_inverse(edge_index, edge_type, len(relation_tokens))
        relation_tokens += [f"{token} (inverse)" for token in relation_tokens]
        if dropped:
            notes.append(f"{dropped} duplicate triples are left out")

    part = kept["part"].to_numpy() if given else split_by_user(users.astype(np.int64), seed)
    pairs = np.stack([users, items]).astype(np.int64)
    train, valid, test = (torch.from_numpy(pairs[:, part == k]) for k in range(3))
    item_tokens = [str(token) for token in catalogue]
    names = [str(token) for token in entities]
    return KGDataset(
        n_users=len(user_tokens),
        n_items=len(catalogue),
        n_entities=len(node_entity),
        n_relations=len(relation_tokens) + 1,
        edge_index=torch.from_numpy(edge_index),
        edge_type=torch.from_numpy(edge_type),
        train=train,
        valid=valid,
        test=test,
        user_tokens=[str(token) for token in user_tokens],
        item_tokens=item_tokens,
        entity_tokens=[
            names[entity] if entity >= 0 else item_tokens[node]
            for node, entity in enumerate(node_entity)
        ],
        relation_tokens=relation_tokens,
        name=name,
        notes=tuple(notes),
    )


def _drop_repeats(rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Keeps the first row of each (user, item); train comes before valid before test."""
    repeated = rows.duplicated(["user", "item"])
    if repeated.any():
        notes.append(f"{int(repeated.sum())} repeated (user, item) pairs are left out")
    return rows[~repeated]


def _warn_shared(item_entity: NDArray[np.int64], notes: list[str]) -> None:
    """Says how many items share their entity with another item."""
    entities, counts = np.unique(item_entity[item_entity >= 0], return_counts=True)
    shared = counts > 1
    if shared.any():
        message = (
            f"{int(counts[shared].sum())} items share {int(shared.sum())} of {len(entities)} linked"
            " entities; each keeps a node of its own, with a copy of the entity's triples"
        )
        notes.append(message)
        warnings.warn(message, stacklevel=3)


def atomic_name(directory: Path) -> str:
    """The common stem of the atomic files in a directory.

    Raises:
        FileNotFoundError: if there is no `.kg` file, or several of which none bears the directory's
            name.
    """
    if (directory / f"{directory.resolve().name}.kg").is_file():
        return directory.resolve().name
    stems = sorted(path.stem for path in directory.glob("*.kg"))
    if len(stems) != 1:
        found = ", ".join(f"{stem}.kg" for stem in stems) or "none"
        raise FileNotFoundError(f"{directory}: expected one .kg file, found {found}")
    return stems[0]
