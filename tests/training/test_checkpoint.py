"""Checkpoints: exact, atomic, and particular about what they are loaded into."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kgrec_fast.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_model,
    model_tensors,
    save_checkpoint,
    write_text,
)
from kgrec_fast.training.optimizer import load_optimizer, make_adam, optimizer_tensors


def small_model(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


def test_tensors_and_numbers_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).bfloat16(),
        "strided": torch.randn(4, 6).T[::2],
        "bytes": torch.get_rng_state(),
        "scalar": torch.tensor(0.1),
    }
    metadata = {"loss": 0.1 + 0.2, "tiny": 5e-324, "nested": [{"a": None}], "text": "\u00e9\u2028"}
    save_checkpoint(tmp_path / "x.safetensors", tensors, metadata)
    got = load_checkpoint(tmp_path / "x.safetensors")
    assert got.tensors.keys() == tensors.keys()
    assert all(torch.equal(got.tensors[name], tensors[name]) for name in tensors)
    assert {name: got.metadata[name] for name in metadata} == metadata


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)}, {"epoch": 1})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                save_checkpoint(path, {"a": torch.zeros(2)}, {"epoch": 2})
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["x.safetensors"]


def test_the_file_is_complete_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    events: list[str] = []
    real_replace, real_fsync = os.replace, os.fsync

    def replace(source: Path, target: Path) -> None:
        assert Path(source).parent == tmp_path
        assert load_checkpoint(Path(source)).metadata["epoch"] == 3
        events.append("replace")
        real_replace(source, target)

    def fsync(handle: int) -> None:
        events.append("fsync")
        real_fsync(handle)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    save_checkpoint(path, {"a": torch.ones(2)}, {"epoch": 3})
    assert events == ["fsync", "replace", "fsync"]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "written", "x")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_metadata_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        save_checkpoint(tmp_path / "x", {"a": torch.ones(1)}, {"loss": float("nan")})
    assert not (tmp_path / "x").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "absent")
    (tmp_path / "text").write_text("not a tensor in sight")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path / "text")
    save_checkpoint(tmp_path / "cut", {"a": torch.ones(100)}, {})
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path / "cut")
    save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not a checkpoint of kgrec_fast"):
        load_checkpoint(tmp_path / "foreign")
    save_checkpoint(tmp_path / "future", {"a": torch.ones(1)}, {"format_version": 99})
    with pytest.raises(CheckpointError, match="got format version 99, expected 1"):
        load_checkpoint(tmp_path / "future")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "0.bias is missing"),
        ("add", "extra is unknown"),
        ("shape", r"0.weight: got float32\[4, 2\], expected float32\[3, 2\]"),
        ("dtype", r"0.weight: got float64\[3, 2\], expected float32\[3, 2\]"),
    ],
)
def test_another_models_state_is_refused_as_a_whole(
    tmp_path: Path, change: str, message: str
) -> None:
    tensors = model_tensors(small_model())
    if change == "drop":
        del tensors["model.0.bias"]
    elif change == "add":
        tensors["model.extra"] = torch.ones(1)
    elif change == "shape":
        tensors["model.0.weight"] = torch.ones(4, 2)
    else:
        tensors["model.0.weight"] = tensors["model.0.weight"].double()
    save_checkpoint(tmp_path / "x", tensors, {})
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_model(model, load_checkpoint(tmp_path / "x"))
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_the_optimizer_continues_exactly(tmp_path: Path) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Adam, x: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    torch.manual_seed(0)
    data = torch.randn(6, 5, 2)
    model = small_model()
    optimizer = make_adam(model, 0.01, 0.1)
    for x in data[:3]:
        step(model, optimizer, x)
    tensors = model_tensors(model) | optimizer_tensors(optimizer, model)
    save_checkpoint(tmp_path / "x", tensors, {})

    other = small_model()
    other_optimizer = make_adam(other, 0.01, 0.1)
    checkpoint = load_checkpoint(tmp_path / "x")
    load_model(other, checkpoint)
    load_optimizer(other_optimizer, other, checkpoint)
    for x in data[3:]:
        step(model, optimizer, x)
        step(other, other_optimizer, x)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name

    wide = small_model(4)
    with pytest.raises(CheckpointError, match=r"0.bias:exp_avg: got \[3\], expected \[4\]"):
        load_optimizer(make_adam(wide, 0.01, 0.0), wide, checkpoint)
    with pytest.raises(CheckpointError, match=r"optimizer state of unknown '1\.\w+'"):
        load_optimizer(make_adam(wide[:1], 0.01, 0.0), nn.Sequential(nn.Linear(2, 3)), checkpoint)


def test_nothing_to_optimize() -> None:
    with pytest.raises(ValueError, match="no trainable parameters"):
        make_adam(nn.ReLU(), 0.01, 0.0)
