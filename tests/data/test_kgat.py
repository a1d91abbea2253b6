"""The reader of the paper's layout, against hand-made arrays and a plain reader."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from data_helpers import KGAT_FILES, real_kg_final, write_kgat

from kgrec_fast.data import DataFormatError, load_dataset, load_kg_final, load_kgat


def test_hand_made(tmp_path: Path) -> None:
    data = load_kgat(write_kgat(tmp_path / "small"), carve_valid=False)
    assert (data.n_users, data.n_items, data.n_entities, data.n_relations) == (4, 5, 8, 7)
    assert data.edge_index.tolist() == [[0, 1, 7, 5, 6, 1], [5, 6, 1, 0, 1, 7]]
    assert data.edge_type.tolist() == [0, 2, 2, 3, 5, 5]
    assert data.train.tolist() == [[0, 0, 0, 1, 3], [3, 1, 0, 2, 1]]
    assert data.valid.shape == (2, 0)
    assert data.test.tolist() == [[0, 1], [4, 0]]  # (1, 2) is known from train
    assert data.name == "small"
    assert data.relation_tokens[1:4] == ["1", "2", "0 (inverse)"]
    assert data.notes == (
        "2 repeated (user, item) pairs are left out",
        "1 duplicate triples are left out",
    )


def test_without_inverse(tmp_path: Path) -> None:
    data = load_kgat(write_kgat(tmp_path), inverse=False)
    assert data.n_relations == 4
    assert data.edge_index.tolist() == [[0, 1, 7], [5, 6, 1]]
    assert data.edge_type.tolist() == [0, 2, 2]


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    plain = load_kgat(write_kgat(tmp_path / "plain"))
    folder = write_kgat(tmp_path / "marked")
    for file in KGAT_FILES:
        raw = (folder / file).read_bytes()
        (folder / file).write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
    marked = load_kgat(folder)
    for name in ("edge_index", "edge_type", "train", "valid", "test"):
        assert torch.equal(getattr(marked, name), getattr(plain, name)), name


def test_valid_is_carved_out_of_train(tmp_path: Path) -> None:
    sizes = [1, 2, 3, 9, 10, 19, 20, 35]
    lines = [" ".join(map(str, [user, *range(size)])) for user, size in enumerate(sizes)]
    folder = write_kgat(tmp_path, train="\n".join(lines))
    data = load_kgat(folder, seed=3)
    assert torch.bincount(data.valid[0]).tolist() == [0, 0, 1, 1, 1, 1, 2, 3]
    before = {(user, item) for user, size in enumerate(sizes) for item in range(size)}
    train, valid = ({(u, i) for u, i in split.t().tolist()} for split in (data.train, data.valid))
    assert train | valid == before
    assert not train & valid
    assert torch.equal(load_kgat(folder, seed=3).valid, data.valid)
    assert not torch.equal(load_kgat(folder, seed=4).valid, data.valid)


def test_published_splits(tmp_path: Path) -> None:
    """Train and test as they stand, whatever test has of train, and no valid at all."""
    folder = write_kgat(tmp_path, test="0 4\n1 2 0 2\n1 0\n")
    (folder / "valid.txt").write_text("9 7\n")
    data = load_kgat(folder, split="published")
    assert data.train.tolist() == [[0, 0, 0, 1, 3], [3, 1, 0, 2, 1]]
    assert data.valid.shape == (2, 0)
    assert data.test.tolist() == [[0, 1, 1], [4, 2, 0]]  # (1, 2) is known from train
    assert (data.n_users, data.n_items) == (4, 5)  # valid.txt does not count
    assert data.notes == (
        "valid.txt is not read: the published splits are train and test",
        "3 repeated (user, item) pairs are left out",
        "1 duplicate triples are left out",
    )
    same = load_dataset(folder, split="published")
    assert (same.test.tolist(), same.edge_type.tolist()) == (
        data.test.tolist(),
        data.edge_type.tolist(),
    )
    with pytest.raises(ValueError, match="split: expected auto or published, got 'given'"):
        load_kgat(folder, split="given")


def test_valid_file_is_read(tmp_path: Path) -> None:
    folder = write_kgat(tmp_path)
    (folder / "valid.txt").write_text("3 0 4\n")
    data = load_kgat(folder)
    assert data.valid.tolist() == [[3, 3], [0, 4]]
    assert data.train.shape == (2, 5)


MALFORMED = [
    ("kg_final", "", 1, "the file is empty"),
    ("kg_final", " \n\n", 1, "the file is empty"),
    ("kg_final", "0 0 1\n0 1\n", 2, "expected 3 fields (head relation tail), found 2"),
    ("kg_final", "0 0 1 4\n0 0 1\n", 1, "found 4"),
    ("kg_final", "0 0 1\n\n0 0 1\n0 0 1 2 3 4\n", 4, "found 6"),
    ("kg_final", "0 0 1\n0 x7 1\n", 2, "'x7' is not an id"),
    ("kg_final", "0 0 1\n-3 0 1", 2, "'-3' is not an id"),
    ("kg_final", "0 0 1\n0 0 1.5\n", 2, "'1.5' is not an id"),
    ("kg_final", "0 0 1\n0 0 \f", 2, "'\\x0c' is not an id"),
    ("kg_final", "0 0 1\n0 0 7é\n", 2, "'7é' is not an id"),
    ("kg_final", "0 0 1\n0 1000000000000000000 1\n", 2, "too large for an id"),
    ("kg_final", "0 0 1\n0 0 1700000000\n", None, "node 1700000000, but only 6 nodes occur"),
    ("kg_final", "0 7000000 1\n", None, "relation 7000000, but only 1 relations occur"),
    ("train", "0 1\n99999999 2\n", None, "user 99999999, but only 3 users occur"),
    ("test", "0 1\n1 2 99999999\n", None, "item 99999999, but only 5 items occur"),
    ("train", "0 1\n1 2,3\n", 2, "'2,3' is not an id"),
    ("train", "0\n1\n", None, "no line has an item"),
    ("test", "\n", 1, "the file is empty"),
]


@pytest.mark.parametrize(("file", "text", "line", "reason"), MALFORMED)
def test_malformed(tmp_path: Path, file: str, text: str, line: int | None, reason: str) -> None:
    with pytest.raises(DataFormatError) as caught:
        load_kgat(write_kgat(tmp_path, **{file: text}))
    assert caught.value.path == tmp_path / f"{file}.txt"
    assert caught.value.line == line
    assert reason in caught.value.reason


def test_not_utf8(tmp_path: Path) -> None:
    folder = write_kgat(tmp_path)
    (folder / "train.txt").write_bytes(b"0 1\n1 2\n\xff 3\n")
    with pytest.raises(DataFormatError, match="line 3: not UTF-8: byte 0xff"):
        load_kgat(folder)


@pytest.mark.parametrize("file", sorted(KGAT_FILES))
def test_missing_file(tmp_path: Path, file: str) -> None:
    (write_kgat(tmp_path) / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        load_kgat(tmp_path)


def _made(path: Path) -> Path:
    draw = random.Random(5)
    rows = [
        f"{draw.randrange(300)}\t{draw.randrange(6)}  {draw.randrange(90)}" for _ in range(4000)
    ]
    path.write_text("\r\n".join(rows + rows[:50]))
    return path


@pytest.mark.parametrize("source", ["made", *(["real"] if real_kg_final() else [])])
def test_graph_against_plain_reader(source: str, tmp_path: Path) -> None:
    path = _made(tmp_path / "kg_final.txt") if source == "made" else real_kg_final()
    triples = {tuple(map(int, line.split())) for line in path.read_text().splitlines()}
    count = max(r for _, r, _ in triples) + 1
    expected = sorted(triples) + sorted((t, r + count, h) for h, r, t in triples)
    edge_index, edge_type = load_kg_final(path)
    found = torch.stack([edge_index[0], edge_type, edge_index[1]]).t()
    assert sorted(map(tuple, found.tolist())) == sorted(expected)
    forward, kinds = load_kg_final(path, inverse=False)
    assert torch.equal(forward, edge_index[:, : len(triples)])
    assert torch.equal(kinds, edge_type[: len(triples)])
    if source == "real":
        runs = {(h, r) for h, r, _ in expected}
        assert (len(expected), int(edge_index.max()) + 1) == (558_310, 89_196)
        assert (len({r for _, r, _ in expected}), len(runs)) == (102, 107_874)
