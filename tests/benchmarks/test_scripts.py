"""Every benchmark runs to its end on tiny inputs, and says what it is expected to say."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from scipy.stats import mannwhitneyu

from benchmarks import (
    baselines,
    floor,
    large_draws,
    layer_swap,
    quality,
    rationale_auc,
    train_step,
    write_hopwise_split,
)
from benchmarks._harness import MismatchError, Row, Timing
from benchmarks._step_parts import BETWEEN, KINDS, OTHERS, Operator, by_name, kinds
from kgrec_fast import ops
from kgrec_fast.data.atomic import load_atomic
from kgrec_fast.training import chosen_step
from kgrec_fast.training.steps import PlainStep


def run(main: Callable[[list[str]], int | None], folder: Path, *arguments: str) -> dict:
    """The record that a quick run with one thread wrote."""
    path = folder / "record.json"
    main(["--quick", "--threads", "1", "--json", str(path), *arguments])
    return json.loads(path.read_text())


def test_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="numpy"):
        baselines.find_baseline("numpy")


def test_floor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(floor.main, tmp_path, "--baseline", "torch")["rows"]
    measured = [(r["op"], r["direction"], r["baseline"]) for r in rows[:3]]
    assert measured == [
        ("projected_attention", "forward", None),
        ("projected_attention", "forward+backward", None),
        ("projected_attention", "forward+backward", "torch"),
    ]
    assert {r["op"] for r in rows[3:]} == {"floor"}
    printed = capsys.readouterr().out
    assert "512-byte rows" in printed
    assert "times faster than torch" in printed


def test_a_summary_adds_up() -> None:
    ms = {f"{b}-byte rows, by {o}": v for b, o, v in (
        (512, "rows", 10.0), (512, "columns", 20.0), (256, "rows", 3.0), (256, "columns", 4.0),
    )} | {"projection, forward": 6.0, "projection, backward": 14.0}  # fmt: skip
    timing = Timing(0.1, 0.1, 0.1, 1)
    against = Row.of(timing, Timing(2.5, 2.5, 2.5, 1), op="x", graph="g", direction="d")
    lines = floor.summary(24.0, 120.0, ms, against, "peer").splitlines()
    # 10 + 6; 2 x 10 + 20 + 20; 2 x 3 + 6; 2 x (2 x 3 + 4) + 20
    assert "24.0 ms is 1.50 times its floor of 10.0 ms gathering" in lines[0]
    assert "120.0 ms is 2.00 times its floor of 40.0 ms" in lines[1]
    assert "24.0 ms is 2.00 times its floor of 6.0 ms" in lines[2]
    assert "120.0 ms is 3.00 times its floor of 20.0 ms" in lines[3]
    assert lines[4].startswith("forward+backward: 25.0 times faster than peer")


@pytest.mark.filterwarnings("error:mae_msize")
def test_train_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(train_step.main, tmp_path, "--baseline", "torch")["rows"]
    assert row["op"] == "train_step"
    assert row["baseline"] == "reference on torch"
    parts = row["extra"]["parts"]
    theirs = row["extra"]["baseline_parts"]
    for part in ("draws", "attention hops", "user-item view", "KG view", "contrast", "Adam"):
        (name,) = (name for name in parts if part in name)
        assert 0 < parts[name] < parts["whole step"]
        assert 0 < theirs[name] < theirs["whole step"]
    assert row["memory_ratio"] > 0
    assert row["floor_seconds"] == pytest.approx(sum(row["extra"]["floor"].values()))
    shares = row["extra"]["shares"]
    assert [*shares] == [*KINDS, OTHERS, BETWEEN]
    assert all(share > 0 for share in shares.values())
    assert row["extra"]["rest"] == pytest.approx(shares[OTHERS] + shares[BETWEEN])
    assert row["extra"]["plain_seconds"] > 0
    assert "share of our step" in capsys.readouterr().out


def test_large_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(large_draws.main, tmp_path)["rows"]
    assert [(r["graph"], r["baseline"]) for r in rows] == [
        ("10,000 interactions", "torch.multinomial"),
        ("100,000 weights", None),
    ]
    assert all(r["extra"]["bytes_an_element"] > 0 for r in rows)
    # Too few, and one of them without weight.
    monkeypatch.setattr(ops, "topk_mask", lambda values, *_, **__: torch.arange(values.numel()) < 5)
    with pytest.raises(MismatchError, match="weights: 5 drawn"):
        large_draws.check("weights", 100)


def test_operators_by_kind_and_name() -> None:
    operators = [
        Operator("aten::mm", [3.0, 1.0, 2.0]),
        Operator("kgrec_fast::project", [1.0, 1.0, 8.0]),
        Operator("aten::add.Tensor", [1.0, 1.0, 3.0]),
        Operator("aten::mm", [4.0, 1.0, 3.0]),
    ]
    shares = kinds(operators, [10.0, 5.0, 20.0])
    assert {name: s for name, s in shares.items() if s} == {
        "dense layers": pytest.approx(0.65),  # of 0.8, 0.6, 0.65
        OTHERS: pytest.approx(0.15),  # of 0.1, 0.2, 0.15
        BETWEEN: pytest.approx(0.2),  # of 0.1, 0.2, 0.2
    }
    assert by_name(operators) == [
        ("aten::mm", 2, 5.0),
        ("kgrec_fast::project", 1, 1.0),
        ("aten::add.Tensor", 1, 1.0),
    ]


class Captured(PlainStep):
    """In the place of a captured step: tells what it was made for."""

    WARM_UP = 3
    made: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, model: Any, optimizer: Any, rng: torch.Tensor, batch_size: int) -> None:
        super().__init__(model, optimizer, rng)
        self.made.append((type(model).__name__, batch_size))


@pytest.mark.filterwarnings("error:mae_msize")
def test_train_step_as_if_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    monkeypatch.setattr(chosen_step, "CapturedStep", Captured)
    monkeypatch.setattr(
        chosen_step, "why_not_captured",
        lambda model, device: None if hasattr(model, "training_step") else "as published",
    )  # fmt: skip
    monkeypatch.setattr(train_step.Device, "is_cuda", True)
    monkeypatch.setattr(train_step.Device, "name", "Card 1")
    monkeypatch.setattr(train_step.Device, "peak", lambda on, call: calls.append(call()) or 10)
    (row,) = run(train_step.main, tmp_path, "--baseline", "torch", "--batch-size", "64")["rows"]
    assert Captured.made == [("KGRec", 64)]  # for the times; peaks are those of plain steps
    assert len(calls) == 2
    assert (row["device"], row["memory_bytes"], row["baseline_memory_bytes"]) == ("Card 1", 10, 10)
    assert row["ratio"] == pytest.approx(row["baseline_seconds"] / row["seconds"])
    assert row["extra"].keys() == {"data", "batch_size", "left_out"}
    assert "parts, which a captured step does not have" in row["extra"]["left_out"]
    assert row["floor_seconds"] is None


@pytest.mark.filterwarnings("error:mae_msize")
def test_layer_swap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = run(layer_swap.main, tmp_path, "--baseline", "torch")["rows"]
    assert row["op"] == "layer_swap"
    assert row["baseline"] == "reference on torch"
    assert row["memory_bytes"] > 0
    parts, theirs = row["extra"]["parts"], row["extra"]["baseline_parts"]
    assert 0 < parts[layer_swap.SORTING] < parts["whole step"]
    assert set(parts) - set(theirs) == {layer_swap.SORTING}
    assert "layers swapped, ms" in capsys.readouterr().out


def test_layer_swap_measures_nothing_where_layers_were_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init = layer_swap.ReferenceKGRec.__init__

    def with_another_head(self: torch.nn.Module, *args: object, **named: object) -> None:
        init(self, *args, **named)  # type: ignore[arg-type]
        self.gcn.n_heads = 3  # type: ignore[union-attr]

    monkeypatch.setattr(layer_swap.ReferenceKGRec, "__init__", with_another_head)
    with pytest.raises(RuntimeError, match="left alone, its n_heads is 3"):
        layer_swap.main(["--quick", "--baseline", "torch"])


def test_auc_is_that_of_mann_whitney() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randint(8, (300,), generator=generator).float()  # many ties
    truth = torch.rand(300, generator=generator) < 0.3
    u = mannwhitneyu(score[truth].numpy(), score[~truth].numpy()).statistic
    expected = u / (int(truth.sum()) * int((~truth).sum()))
    assert rationale_auc.auc(score, truth) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="truth"):
        rationale_auc.auc(score, torch.ones(300, dtype=torch.bool))


def test_rationale_auc(tmp_path: Path) -> None:
    content = run(rationale_auc.main, tmp_path, "--seeds", "0", "5")
    assert [f["seed"] for f in content["findings"]] == [0, 5]
    for finding in content["findings"]:
        assert 0 <= finding["trained"] <= 1
        for count in ("head_degree", "tail_degree", "relation_frequency"):
            assert finding[count] == pytest.approx(0.5, abs=0.02)
    assert [len(c["trained"]) for c in content["curves"]] == [2, 2]


@pytest.mark.filterwarnings("error:mae_msize")
def test_frozen_attention_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison trains everything but W_Q, from the same initial values."""
    models = []
    make = rationale_auc.make_model

    def recording(*arguments: object, **hyper: object) -> object:
        model = make(*arguments, **hyper)  # type: ignore[arg-type]
        models.append((model, {k: v.clone() for k, v in model.state_dict().items()}))
        return model

    monkeypatch.setattr(rationale_auc, "make_model", recording)
    rationale_auc.find(3, 1, 64, 1e-3, verbose=False, quick=True)
    (trained, first), (frozen, second) = models
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert torch.equal(frozen.gcn.W_Q, second["gcn.W_Q"])
    assert not torch.equal(trained.gcn.W_Q, first["gcn.W_Q"])
    relation = "gcn.relation_embedding.weight"
    assert not torch.equal(frozen.state_dict()[relation], second[relation])


def test_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(quality.main, tmp_path, "--seeds", "1", "2")
    assert [r["seed"] for r in content["runs"]] == [1, 2]
    for each in content["runs"]:
        best = max(each["valid_curve"])
        assert each["valid"]["ndcg@10"] == best == each["valid_curve"][each["best_epoch"] - 1]
        assert set(each["test"]) == set(quality.METRICS)
    printed = capsys.readouterr().out
    assert "+-" in printed
    assert "hopwise" in printed


def test_splits_are_read_back(tmp_path: Path) -> None:
    pairs = {
        "train": [("u1", "i1"), ("u1", "i2"), ("u2", "i1")],
        "valid": [("u1", "i3")],
        "test": [("u2", "i3")],
    }
    for part in write_hopwise_split.PARTS:
        path = tmp_path / f"x.{part}.inter"
        assert write_hopwise_split.write_part(path, pairs[part]) == len(pairs[part])
    (tmp_path / "x.kg").write_text(
        "head_id:token\trelation_id:token\ttail_id:token\na\tr\tb\nb\tr\tc\n"
    )
    (tmp_path / "x.link").write_text("item_id:token\tentity_id:token\ni1\ta\ni2\tb\ni3\tc\n")
    data = load_atomic(tmp_path, recbole_items=True)
    for part in write_hopwise_split.PARTS:
        users, items = data.split(part).tolist()
        read = [
            (data.user_tokens[u], data.item_tokens[i]) for u, i in zip(users, items, strict=True)
        ]
        assert read == pairs[part]


def test_hopwise_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hopwise", None)
    with pytest.raises(SystemExit, match="pip install hopwise"):
        write_hopwise_split.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
