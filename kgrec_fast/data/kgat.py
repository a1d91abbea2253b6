"""Reader of the layout of KGAT and of KGRec's own code.

`train.txt`, `test.txt` (and `valid.txt`, where there is one): a line a user, `user item item ...`.
`kg_final.txt`: a line a triple, `head relation tail`. Integer ids from 0, blanks between them;
items and entities share their numbers, items come first.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kgrec_fast.data.dataset import SPLITS, KGDataset
from kgrec_fast.data.errors import DataFormatError, decode_utf8
from kgrec_fast.data.splits import split_by_user
from kgrec_fast.data.triples import first_of_each, with_inverse

MAX_DIGITS = 18  # every number of so many digits fits int64
# Ids may have gaps: the largest is below the one, or below the other times those that occur.
_ALWAYS_FINE, _IDS_PER_OCCURRING = 10**6, 100

_BLANKS = (b" ", b"\t", b"\r", b"\n")
_WORD = re.compile(rb"[^ \t\r\n]*")
_BLANK, _DIGIT = 1, 2
_KIND = np.zeros(256, dtype=np.uint8)
_KIND[list(b"".join(_BLANKS))] = _BLANK
_KIND[list(b"0123456789")] = _DIGIT


@dataclass(frozen=True)
class IntLines:
    """The numbers of a text file: `values` [n] and the 1-based `line` [n] each stands on."""

    path: Path
    values: NDArray[np.int64]
    line: NDArray[np.int64]


def read_int_lines(path: str | Path) -> IntLines:
    """Reads a file of blank-separated ids; lines without any are passed over.

    Raises:
        FileNotFoundError: if there is no such file.
        DataFormatError: if the file is empty, not UTF-8, or holds anything but ids.

    Complexity: a few vectorised passes over the bytes, no loop over lines.
    """
    path = Path(path)
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    data = np.frombuffer(raw, dtype=np.uint8)
    kind = _KIND[data]
    other = np.flatnonzero(kind == 0)
    if other.size:
        decode_utf8(path, raw)
        place = int(other[0])
        begin = max(raw.rfind(blank, 0, place) for blank in _BLANKS) + 1
        word = _WORD.match(raw, begin).group().decode("utf-8")  # type: ignore[union-attr]
        reason = f"{word!r} is not an id: expected digits only"
        raise DataFormatError(path, raw.count(b"\n", 0, place) + 1, reason)
    digit = np.r_[False, kind == _DIGIT, False]
    edges = np.flatnonzero(digit[1:] != digit[:-1])
    start, end = edges[::2], edges[1::2]
    if not start.size:
        raise DataFormatError(path, 1, "the file is empty")
    newlines = np.flatnonzero(data == ord("\n"))
    line = np.searchsorted(newlines, start) + 1
    long = np.flatnonzero(end - start > MAX_DIGITS)
    if long.size:
        at = int(long[0])
        reason = f"{raw[start[at] : end[at]].decode()!r} is too large for an id"
        raise DataFormatError(path, int(line[at]), reason)
    return IntLines(path, np.fromstring(raw, dtype=np.int64, sep=" "), line)


def read_interactions(path: str | Path) -> NDArray[np.int64]:
    """Reads `user item item ...` lines: int64 [2, M], in the order of the file.

    A user may stand on several lines, or alone on one. Errors as `read_int_lines`.
    """
    numbers = read_int_lines(path)
    first = np.r_[True, numbers.line[1:] != numbers.line[:-1]]
    user = numbers.values[first][np.cumsum(first) - 1]
    return np.stack([user, numbers.values])[:, ~first]


def read_triples(path: str | Path) -> NDArray[np.int64]:
    """Reads `head relation tail` lines: int64 [3, T], in the order of the file.

    Raises:
        DataFormatError: for a line with another number of fields, and as `read_int_lines`.
    """
    numbers = read_int_lines(path)
    fields = np.bincount(numbers.line)
    wrong = np.flatnonzero((fields != 0) & (fields != 3))
    if wrong.size:
        line = int(wrong[0])
        reason = f"expected 3 fields (head relation tail), found {int(fields[line])}"
        raise DataFormatError(numbers.path, line, reason)
    return np.ascontiguousarray(numbers.values.reshape(-1, 3).T)


def load_kg_final(path: str | Path, inverse: bool = True) -> tuple[Tensor, Tensor]:
    """Reads a knowledge graph alone.

    Duplicate triples are dropped; with `inverse`, each one left is added once more from tail to
    head, with relation id + number of relations (the largest id + 1).

    Returns:
        `(edge_index int64 [2, E], edge_type int64 [E])`, ids as in the file.

    Raises:
        FileNotFoundError, DataFormatError: see `read_triples`.
    """
    edge_index, edge_type, _, _ = _load_graph(Path(path), inverse)
    return torch.from_numpy(edge_index), torch.from_numpy(edge_type)


def _load_graph(path: Path, inverse: bool) -> tuple[NDArray[np.int64], NDArray[np.int64], int, int]:
    """Edges, their relations, the number of relations in the file, and of duplicates dropped."""
    head, relation, tail = read_triples(path)
    relations = int(relation.max()) + 1
    edges = np.stack([head, tail])
    if inverse:
        edges, relation, dropped = with_inverse(edges, relation, relations)
        return edges, relation, relations, dropped
    first = first_of_each(edges, relation)
    return edges[:, first], relation[first], relations, len(relation) - len(first)


def _drop_repeats(
    pairs: NDArray[np.int64], part: NDArray[np.int64], notes: list[str], within: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keeps the first of equal (user, item) pairs; so train wins over valid over test.

    `within` looks for them inside of each split alone.
    """
    key = pairs[0] * (int(pairs[1].max()) + 1) + pairs[1]
    if within:
        key = key * len(SPLITS) + part
    _, first = np.unique(key, return_index=True)
    if len(first) < len(part):
        notes.append(f"{len(part) - len(first)} repeated (user, item) pairs are left out")
    first.sort()
    return pairs[:, first], part[first]


def _check_gaps(what: str, ids: NDArray[np.int64], path: Path) -> None:
    """Refuses an id far beyond the ids that occur, such as a timestamp among them.

    Every id up to the largest gets a name and a row of an embedding: that would fill the memory.
    """
    largest = int(ids.max())
    if largest < _ALWAYS_FINE:
        return
    occur = len(np.unique(ids))
    if largest >= _IDS_PER_OCCURRING * occur:
        reason = f"it holds {what} {largest}, but only {occur} {what}s occur: ids count from 0"
        raise DataFormatError(path, None, reason)


def load_kgat(
    directory: str | Path,
    *,
    inverse: bool = True,
    carve_valid: bool = True,
    seed: int = 2024,
    split: str = "auto",
) -> KGDataset:
    """Reads a data set in the layout of the paper's code.

    Users and items are all ids up to the largest in `train.txt`, `valid.txt` and `test.txt`; nodes
    those up to the largest in `kg_final.txt` or the last item. A pair that stands in several places
    counts once, in train before valid before test.

    Args:
        directory: where the files are.
        inverse: add inverse relations, see `load_kg_final`.
        carve_valid: without a `valid.txt`, move floor(n / 10) of each user's n training items, at
            least one where there are three or more, to the valid split. The published code has
            no valid split, and chooses its epoch on test.
        seed: of that draw.
        split: "auto" for the above, or "published" for the splits of the published code: train and
            test alone, and a test pair that is known from train stays in test too, where it counts
            among the user's positives and is never ranked.

    Raises:
        ValueError: for another `split`.
        FileNotFoundError: if `train.txt`, `test.txt` or `kg_final.txt` is missing.
        DataFormatError: if one is malformed.
    """
    if split not in ("auto", "published"):
        raise ValueError(f"split: expected auto or published, got {split!r}")
    directory = Path(directory)
    notes: list[str] = []
    published = split == "published"
    given = (directory / "valid.txt").is_file()
    if given and published:
        notes.append("valid.txt is not read: the published splits are train and test")
        given = False
    files = {part: f"{name}.txt" for part, name in enumerate(SPLITS) if part != 1 or given}
    read = {part: read_interactions(directory / file) for part, file in files.items()}
    for which, rows in read.items():
        if which != 1 and rows.shape[1] == 0:
            raise DataFormatError(directory / files[which], None, "no line has an item")
    pairs = np.concatenate(list(read.values()), axis=1)
    part = np.repeat(list(read), [rows.shape[1] for rows in read.values()])
    for what, row in zip(("user", "item"), pairs, strict=True):
        _check_gaps(what, row, directory / files[int(part[row.argmax()])])
    n_users, n_items = (int(row.max()) + 1 for row in pairs)
    pairs, part = _drop_repeats(pairs, part, notes, within=published)
    if carve_valid and not given and not published:
        known = np.flatnonzero(part == 0)
        part[known] = split_by_user(pairs[0, known], seed, held_out=1)

    path = directory / "kg_final.txt"
    edge_index, edge_type, relations, dropped = _load_graph(path, inverse)
    _check_gaps("node", np.r_[pairs[1], edge_index.ravel()], path)
    _check_gaps("relation", edge_type % relations, path)
    if dropped:
        notes.append(f"{dropped} duplicate triples are left out")
    n_entities = max(n_items, int(edge_index.max()) + 1)
    relation_tokens = [str(relation) for relation in range(relations)]
    if inverse:
        relation_tokens += [f"{relation} (inverse)" for relation in range(relations)]
    train, valid, test = (torch.from_numpy(pairs[:, part == k]) for k in range(3))
    return KGDataset(
        n_users=n_users,
        n_items=n_items,
        n_entities=n_entities,
        n_relations=len(relation_tokens) + 1,
        edge_index=torch.from_numpy(edge_index),
        edge_type=torch.from_numpy(edge_type),
        train=train,
        valid=valid,
        test=test,
        user_tokens=[str(user) for user in range(n_users)],
        item_tokens=[str(item) for item in range(n_items)],
        entity_tokens=[str(node) for node in range(n_entities)],
        relation_tokens=relation_tokens,
        name=directory.resolve().name,
        notes=tuple(notes),
    )
