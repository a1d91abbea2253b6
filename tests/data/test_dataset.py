"""The data set itself, and finding one by name."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_helpers import INTER, KG, LINK, make_dataset, write_atomic, write_kgat

from kgrec_fast.data import AtomicFields, find_dataset, load_dataset


def test_by_user() -> None:
    data = make_dataset([(2, 4), (0, 1), (2, 0)], 4, 5, valid=[(2, 3)], test=[(3, 2)])
    ptr, items = data.by_user("train")
    assert ptr.tolist() == [0, 1, 1, 3, 3]
    assert items.tolist() == [1, 0, 4]
    ptr, items = data.by_user("train", "valid", "test")
    assert ptr.tolist() == [0, 1, 1, 4, 5]
    assert items.tolist() == [1, 0, 3, 4, 2]
    with pytest.raises(ValueError, match="splits: expected at least one"):
        data.by_user()
    with pytest.raises(ValueError, match="split: expected one of train, valid, test, got 'dev'"):
        data.by_user("dev")


def test_summary() -> None:
    data = make_dataset([(2, 4), (0, 1), (2, 0)], 4, 5, valid=[(2, 3)], test=[(3, 2)])
    assert data.summary() == {
        "name": "data",
        "users": 4,
        "items": 5,
        "nodes": 5,
        "relations": 1,
        "triples": 1,
        "interactions": 5,
        "density": 0.25,
        "train": 3,
        "valid": 1,
        "test": 1,
    }


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"train": torch.tensor([[0], [5]])}, ValueError, r"train\[1\]: item ids .* found 5 to 5"),
        ({"valid": torch.tensor([[-1], [0]])}, ValueError, r"valid\[0\]: user ids"),
        ({"test": torch.zeros(3, dtype=torch.int64)}, ValueError, r"test: expected shape \[2, n\]"),
        ({"valid": torch.tensor([[1, 0, 1], [2, 3, 2]])}, ValueError, r"valid: .* \(1, 2\) twice"),
        ({"edge_index": torch.tensor([[0], [9]])}, ValueError, "edge_index: node ids"),
        ({"edge_index": torch.zeros(2, 1)}, TypeError, "edge_index: expected torch.int64"),
        ({"edge_type": torch.tensor([1])}, ValueError, "edge_type: relation ids"),
        ({"edge_type": torch.tensor([0, 0])}, ValueError, r"edge_type: expected shape \[1\]"),
        ({"edge_type": [0]}, TypeError, "edge_type: expected a torch tensor, got list"),
        ({"truth": torch.tensor([True, False])}, ValueError, r"truth: expected shape \[1\]"),
        ({"truth": torch.tensor([1])}, TypeError, "truth: expected torch.bool"),
        ({"n_entities": 3}, ValueError, "n_entities: expected at least n_items = 5, got 3"),
        ({"user_tokens": ["a"]}, ValueError, "user_tokens: expected 4 names, got 1"),
        ({"relation_tokens": []}, ValueError, "relation_tokens: expected 1 names, got 0"),
    ],
)
def test_validation(change: dict, error: type[Exception], reason: str) -> None:
    data = make_dataset([(2, 4)], 4, 5)
    with pytest.raises(error, match=reason):
        replace(data, **change)


def test_formats_are_told_apart(tmp_path: Path) -> None:
    atomic = write_atomic(tmp_path / "tiny", inter=INTER, kg=KG, link=LINK)
    paper = write_kgat(tmp_path / "paper")
    assert load_dataset(atomic).n_relations == 3
    assert load_dataset(str(atomic), inverse=True).n_relations == 5
    assert load_dataset(atomic, recbole_items=True).n_items == 1
    assert load_dataset(paper).n_relations == 7
    assert load_dataset(paper, inverse=False).n_relations == 4
    with pytest.raises(FileNotFoundError, match=r"expected one \.kg file, found none"):
        load_dataset(paper, format="atomic")
    with pytest.raises(FileNotFoundError, match="neither atomic files"):
        load_dataset(tmp_path)
    (atomic / "other.kg").write_text(KG)
    assert load_dataset(atomic).name == "tiny"  # the directory's name decides
    (atomic / "tiny.kg").unlink()
    (atomic / "third.kg").write_text(KG)
    with pytest.raises(FileNotFoundError, match=r"found other\.kg, third\.kg"):
        load_dataset(atomic)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"carve_valid": False}, "carve_valid: has no meaning for the atomic files of"),
        ({"split": "published"}, "split: got 'published'.* expected auto, given or random for"),
    ],
)
def test_options_without_a_meaning_for_atomic_files(
    tmp_path: Path, option: dict[str, object], reason: str
) -> None:
    folder = write_atomic(tmp_path / "tiny", inter=INTER, kg=KG, link=LINK)
    with pytest.raises(ValueError, match=reason):
        load_dataset(folder, **option)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"min_rating": 3.0}, "min_rating: has no meaning"),
        ({"recbole_items": True}, "recbole_items: has no meaning"),
        ({"fields": AtomicFields()}, "fields: has no meaning"),
        ({"split": "given"}, "split: has no meaning"),
        ({"format": "csv"}, "format: expected one of auto, atomic, kgat, got 'csv'"),
        ({"seed": -1}, "seed: expected"),
        ({"min_rating": float("nan")}, "min_rating: expected a number"),
    ],
)
def test_options_without_meaning(tmp_path: Path, option: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_dataset(write_kgat(tmp_path), **option)


def test_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps recbole"):
        find_dataset("no-such-data")
    write_atomic(tmp_path / "dataset" / "mine", "mine", inter=INTER, kg=KG, link=LINK)
    assert find_dataset("mine") == Path("dataset/mine")
    assert load_dataset("mine").n_items == 4


@pytest.mark.parametrize("package", ["recbole", "hopwise"])
def test_found_in_a_package_that_is_not_imported(tmp_path: Path, package: str) -> None:
    root = tmp_path / "site" / package
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    folder = write_atomic(root / "dataset_example" / "toy", "toy", inter=INTER, kg=KG, link=LINK)
    code = (
        "import sys; from kgrec_fast.data import find_dataset, load_dataset;"
        f"print(find_dataset('toy'), load_dataset('toy').n_items, {package!r} in sys.modules)"
    )
    paths = [str(tmp_path / "site"), *filter(None, sys.path)]
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(folder), "4", "False"]
