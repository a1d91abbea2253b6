"""The reader of atomic files, against hand-made arrays and a plain reader."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from data_helpers import INTER, KG, LINK, PlainAtomic, edges_by_token, pairs_by_token, write_atomic

from kgrec_fast.data import AtomicFields, DataFormatError, find_dataset, load_atomic


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_atomic(tmp_path / "tiny", inter=INTER, kg=KG, link=LINK)


def test_default_items(tiny: Path) -> None:
    data = load_atomic(tiny)
    assert (data.n_users, data.n_items, data.n_entities, data.n_relations) == (2, 4, 6, 3)
    assert data.user_tokens == ["u1", "u2"]
    assert data.item_tokens == ["i1", "i2", "i3", "i4"]
    assert data.entity_tokens == ["e1", "i2", "i3", "e4", "e3", "e2"]
    assert data.relation_tokens == ["r1", "r2"]
    assert data.edge_index.tolist() == [[0, 4, 5, 0], [5, 0, 3, 5]]
    assert data.edge_type.tolist() == [0, 1, 0, 0]
    assert data.train.tolist() == [[0, 0, 1, 1], [0, 1, 0, 2]]
    assert data.valid.shape == data.test.shape == (2, 0)
    assert data.truth is None
    assert data.name == "tiny"
    assert data.notes == (
        "1 repeated (user, item) pairs are left out",
        "2 of 3 rated items have no entity in the graph",
    )


def test_recbole_items(tiny: Path) -> None:
    data = load_atomic(tiny, recbole_items=True)
    assert (data.n_users, data.n_items, data.n_entities, data.n_relations) == (2, 1, 4, 3)
    assert data.item_tokens == ["i1"]
    assert not any("have no entity" in note for note in data.notes)
    assert data.entity_tokens == ["e1", "e3", "e2", "e4"]
    assert data.edge_index.tolist() == [[0, 1, 2, 0], [2, 0, 3, 2]]
    assert data.train.tolist() == [[0, 1], [0, 0]]


def test_inverse_drops_duplicates(tiny: Path) -> None:
    data = load_atomic(tiny, inverse=True)
    assert data.n_relations == 5
    assert data.edge_index.tolist() == [[0, 4, 5, 5, 0, 3], [5, 0, 3, 0, 4, 5]]
    assert data.edge_type.tolist() == [0, 1, 0, 2, 3, 2]
    assert data.relation_tokens == ["r1", "r2", "r1 (inverse)", "r2 (inverse)"]
    assert "1 duplicate triples are left out" in data.notes


def test_min_rating(tiny: Path) -> None:
    data = load_atomic(tiny, min_rating=3.5)
    assert pairs_by_token(data, "train") == [("u1", "i1"), ("u2", "i1")]
    # Items rated below stay items.
    assert data.item_tokens == ["i1", "i2", "i3", "i4"]
    only = load_atomic(tiny, min_rating=4.5)
    assert only.user_tokens == ["u1"]
    with pytest.raises(ValueError, match=r"no interaction is left \(min_rating=9"):
        load_atomic(tiny, min_rating=9)


def test_repeated_pair_counts_by_its_best_row(tmp_path: Path) -> None:
    inter = "user_id:token item_id:token rating:float\nu i 1\nu i 5\nu j 5\n"
    kg = KG.replace("e1", "i")
    link = "item_id:token entity_id:token\ni i\n"
    data = load_atomic(write_atomic(tmp_path, inter=inter, kg=kg, link=link), "tiny", min_rating=4)
    assert pairs_by_token(data, "train") == [("u", "i"), ("u", "j")]


def test_field_names_column_order_and_line_ends(tmp_path: Path) -> None:
    folder = write_atomic(
        tmp_path / "own",
        "own",
        inter="when:float movie:token stars:float who:token\n1 a 2 x\n2 b 5 x\n",
        kg="t:token h:token r:token weight:float\nn1 a1 r 0.5\n",
        link="e:token movie:token\na1 a\n",
    )
    for path in folder.iterdir():  # a byte order mark and carriage returns
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    fields = AtomicFields("who", "movie", "stars", "h", "r", "t", "e")
    data = load_atomic(folder, fields=fields, min_rating=3)
    assert data.user_tokens == ["x"]
    assert data.item_tokens == ["a", "b"]
    assert data.train.tolist() == [[0], [1]]
    assert data.edge_index.tolist() == [[0], [2]]
    assert data.entity_tokens == ["a1", "b", "n1"]


def test_tokens_are_taken_as_they_stand(tmp_path: Path) -> None:
    """Quotes, NA and leading zeros are tokens like any other."""
    inter = 'user_id:token item_id:token\n"u NA\n007 NA\n7 nan\n'
    link = "item_id:token entity_id:token\nNA null\n"
    kg = "head_id:token relation_id:token tail_id:token\nnull 1 1.0\n1 1 null\n"
    data = load_atomic(write_atomic(tmp_path, inter=inter, kg=kg, link=link), "tiny")
    assert data.user_tokens == ['"u', "007", "7"]
    assert data.item_tokens == ["NA", "nan"]
    assert data.entity_tokens == ["null", "nan", "1", "1.0"]
    assert data.edge_index.tolist() == [[0, 2], [3, 0]]


def test_shared_entity(tmp_path: Path) -> None:
    """Two items on e1: a triple of e1 stands once for each, a self-loop of e1 four times."""
    inter = "user_id:token item_id:token\nu i1\nu i2\n"
    link = "item_id:token entity_id:token\ni1 e1\ni2 e1\ni3 e3\n"
    kg = "head_id:token relation_id:token tail_id:token\ne2 r e1\ne1 r e1\ne1 s e3\ne2 s e3\n"
    folder = write_atomic(tmp_path, inter=inter, kg=kg, link=link)
    with pytest.warns(UserWarning, match="2 items share 1 of 2 linked entities"):
        data = load_atomic(folder, "tiny")
    assert data.item_tokens == ["i1", "i2", "i3"]
    assert data.entity_tokens == ["e1", "e1", "e3", "e2"]
    assert data.edge_index.tolist() == [[3, 3, 0, 0, 1, 1, 0, 1, 3], [0, 1, 0, 1, 0, 1, 2, 2, 2]]
    assert data.edge_type.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert edges_by_token(data) == PlainAtomic(folder, "tiny", False).edges
    with pytest.warns(UserWarning, match="2 items share 1 of 1 linked entities"):
        load_atomic(folder, "tiny", recbole_items=True)


def test_item_with_two_entities_takes_the_first(tmp_path: Path) -> None:
    link = LINK + "i1 e3\ni1 e1\n"
    data = load_atomic(write_atomic(tmp_path, inter=INTER, kg=KG, link=link), "tiny")
    assert data.entity_tokens[0] == "e1"
    assert data.n_entities == 6
    assert "1 further links of items that had one already are left out" in data.notes


def test_given_splits(tmp_path: Path) -> None:
    head = "user_id:token item_id:token\n"
    folder = write_atomic(
        tmp_path,
        inter=INTER,
        kg=KG,
        link=LINK,
        train_inter=head + "u1 i1\nu2 i3\n",
        valid_inter=head + "u1 i2\nu1 i1\n",
        test_inter=head + "u3 i1\nu1 i2\n",
    )
    data = load_atomic(folder, "tiny")
    assert pairs_by_token(data, "train") == [("u1", "i1"), ("u2", "i3")]
    assert pairs_by_token(data, "valid") == [("u1", "i2")]
    assert pairs_by_token(data, "test") == [("u3", "i1")]
    assert "2 repeated (user, item) pairs are left out" in data.notes
    assert load_atomic(folder, "tiny", split="random").n_users == 2
    (folder / "tiny.valid.inter").unlink()
    for split in ("auto", "given"):
        with pytest.raises(FileNotFoundError, match=r"missing: tiny\.valid\.inter"):
            load_atomic(folder, "tiny", split=split)
    assert load_atomic(folder, "tiny", split="random").n_interactions == 4


MALFORMED = [
    # file, its text, line, reason
    ("inter", "", 1, "the file is empty"),
    ("inter", "\n\n", 1, "the file is empty"),
    ("inter", "user_id:token item_id:token\n", 2, "no rows under the header"),
    ("inter", "1 2 3\n4 5 6\n", 1, "header cell '1' is not field:type"),
    ("inter", "user_id:token item_id:text\nu i\n", 1, "header cell 'item_id:text' is not"),
    ("inter", "user_id:token :token\nu i\n", 1, "header cell ':token' is not"),
    ("inter", "user_id:token user_id:token\nu i\n", 1, "'user_id' occurs twice"),
    ("inter", "user_id:token rating:float\nu 1\n", 1, "column 'item_id' is missing"),
    ("inter", INTER.replace("u2 i1 4 3", "u2 i1 4"), 4, "expected 4 fields, found 3"),
    ("inter", INTER.replace("u1 i1 5 1", "u1 i1 5 1 7"), 2, "expected 4 fields, found 5"),
    ("inter", INTER.replace("u1 i1 2 5", "u1 i1 2 5 7 7"), 6, "expected 4 fields, found 6"),
    ("inter", INTER.replace("u2 i1 4 3", ""), 4, "expected 4 fields, found 0"),
    ("inter", INTER.replace("u2 i3 1", "u2  1"), 5, "field 'item_id' is empty"),
    ("inter", INTER.replace("u1 i2 3", "u1 i2 good"), 3, "'rating' is not a finite number: 'good'"),
    ("inter", INTER.replace("u1 i2 3", "u1 i2 nan"), 3, "'rating' is not a finite number: 'nan'"),
    ("inter", INTER.replace("u1 i2 3", "u1 i2 "), 3, "'rating' is not a finite number: ''"),
    ("inter", INTER.replace("i3", "i\0"), 5, "NUL byte"),
    ("kg", KG.replace("e2 r1 e4", "e2 r1"), 4, "expected 3 fields, found 2"),
    ("kg", KG.replace("head_id", "head"), 1, "column 'head_id' is missing"),
    ("kg", KG.replace("e3 r2 e1", " r2 e1"), 3, "field 'head_id' is empty"),
    ("link", LINK.replace("i2 e9", "i2"), 3, "expected 2 fields, found 1"),
    ("link", "item_id:token entity_id:token\ni1 x\n", None, "none of its 1 entities occurs"),
    (
        "link",
        "item_id:token entity_id:token\ni1.0 e1\n",
        None,
        "is linked: 'i1' there, 'i1.0' here",
    ),
]


@pytest.mark.parametrize(("file", "text", "line", "reason"), MALFORMED)
def test_malformed(tiny: Path, file: str, text: str, line: int | None, reason: str) -> None:
    write_atomic(tiny, **{file: text})
    with pytest.raises(DataFormatError) as caught:
        load_atomic(tiny)
    error = caught.value
    assert error.path == tiny / f"tiny.{file}"
    assert error.line == line
    assert reason in error.reason
    where = f"{error.path}, line {line}: " if line else f"{error.path}: "
    assert str(error).startswith(where)


def test_not_utf8(tiny: Path) -> None:
    path = tiny / "tiny.kg"
    path.write_bytes(path.read_bytes().replace(b"e3", b"\xe93"))
    with pytest.raises(DataFormatError, match="line 3: not UTF-8: byte 0xe9"):
        load_atomic(tiny)


def test_min_rating_without_ratings(tiny: Path) -> None:
    write_atomic(tiny, inter="user_id:token item_id:token rating:token\nu i1 4\n")
    with pytest.raises(DataFormatError, match="line 1: min_rating needs a column rating:float"):
        load_atomic(tiny, min_rating=3)


@pytest.mark.parametrize("file", ["inter", "kg", "link"])
def test_missing_file(tiny: Path, file: str) -> None:
    (tiny / f"tiny.{file}").unlink()
    with pytest.raises(FileNotFoundError, match=f"tiny.{file}|expected one .kg file"):
        load_atomic(tiny)


def test_unknown_split(tiny: Path) -> None:
    with pytest.raises(ValueError, match="split: expected auto, given or random, got 'k-fold'"):
        load_atomic(tiny, split="k-fold")


def _made(folder: Path) -> Path:
    """A data set with every kind of item: rated or not, linked or not, on a shared entity."""
    draw = random.Random(7)
    inter = [
        f"u{draw.randrange(60)} i{draw.randrange(80)} {draw.randint(1, 5)}" for _ in range(900)
    ]
    kg = [f"e{draw.randrange(150)} r{draw.randrange(7)} e{draw.randrange(150)}" for _ in range(700)]
    link = [f"i{item} e{draw.randrange(220)}" for item in draw.sample(range(110), 70)]
    heads = (
        "user_id:token item_id:token rating:float",
        "head_id:token relation_id:token tail_id:token",
        "item_id:token entity_id:token",
    )
    texts = ["\n".join([head, *rows]) for head, rows in zip(heads, (inter, kg, link), strict=True)]
    return write_atomic(folder, "made", inter=texts[0], kg=texts[1], link=texts[2])


def _real() -> list[str]:
    try:
        find_dataset("ml-100k")
    except FileNotFoundError:
        return []
    return ["ml-100k"]


@pytest.mark.filterwarnings("ignore:.*items share:UserWarning")
@pytest.mark.parametrize("recbole_items", [False, True])
@pytest.mark.parametrize("name", ["made", *_real()])
def test_against_plain_reader(name: str, recbole_items: bool, tmp_path: Path) -> None:
    folder = _made(tmp_path / "made") if name == "made" else find_dataset(name)
    plain = PlainAtomic(folder, name, recbole_items)
    data = load_atomic(folder, recbole_items=recbole_items)
    assert set(data.user_tokens) == plain.users
    assert set(data.item_tokens) == plain.items
    assert len(data.user_tokens) == len(plain.users)
    assert len(data.item_tokens) == len(plain.items)
    assert data.n_entities == plain.n_entities
    assert edges_by_token(data) == plain.edges
    pairs = [pair for split in ("train", "valid", "test") for pair in pairs_by_token(data, split)]
    assert len(pairs) == len(plain.pairs)
    assert set(pairs) == plain.pairs
    if name == "ml-100k":
        nodes = 34_628 if recbole_items else 34_712
        items = 1_598 if recbole_items else 1_682
        assert (data.n_users, data.n_items, data.n_entities) == (943, items, nodes)
        assert (data.n_relations, data.n_edges) == (25, 91_631)
    if name == "ml-100k" and recbole_items:
        sizes = [data.split(split).shape[1] for split in ("train", "valid", "test")]
        assert sizes == [78_836, 9_359, 9_359]


def test_seed_governs_the_split(tmp_path: Path) -> None:
    folder = _made(tmp_path / "made")
    with pytest.warns(UserWarning, match="items share"):
        one, same, other = (load_atomic(folder, seed=seed) for seed in (1, 1, 2))
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(one.split(split), same.split(split))
        assert one.split(split).shape == other.split(split).shape
    assert not np.array_equal(one.test, other.test)
