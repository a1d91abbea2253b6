"""Configuration: defaults as published, files, overrides, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kgrec_fast import _library
from kgrec_fast.training.build import resolve_device
from kgrec_fast.training.config import Config, ConfigError, load_config, parse_config


def test_defaults_are_the_published_ones() -> None:
    assert Config().model.model_dump() == {
        "embedding_size": 64,
        "reg_weight": 1e-5,
        "context_hops": 2,
        "node_dropout_rate": 0.5,
        "mess_dropout_rate": 0.1,
        "mae_coef": 0.1,
        "mae_msize": 256,
        "cl_coef": 0.01,
        "cl_tau": 1.0,
        "cl_drop": 0.5,
        "samp_func": "torch",
        "published_quirks": False,
    }
    training = Config().training
    assert (training.batch_size, training.lr) == (2048, 1e-3)
    assert Config().evaluation.best_by == "ndcg@10"


def test_file_then_overrides_then_assignments(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "dataset: {name: music, min_rating: 4}\n"
        "training:\n  lr: 1e-2\n  epochs: 7\n  seed: 1\n"
        "evaluation:\n"
    )
    config = load_config(
        path,
        overrides={"training.epochs": 8, "training.seed": 2, "training.lr": None},
        assignments=["training.seed=3", "evaluation.ks=[10, 50]", "dataset.fields={user: uid}"],
    )
    assert config.training.lr == 0.01  # YAML 1.1 reads 1e-2 as a text
    assert config.training.epochs == 8
    assert config.training.seed == 3
    assert config.dataset.min_rating == 4
    assert config.dataset.fields == {"user": "uid"}
    assert config.evaluation.ks == (10, 50)


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = load_config(
        assignments=["training.lr=0.1234567890123456789", "training.threads=2", "dataset.name='7'"]
    )
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.lr=fast", r"training\.lr: got 'fast', expected: should be a valid number"),
        ("training.lr=0", r"training\.lr: got 0, expected: should be greater than 0"),
        ("training.lr=.nan", r"training\.lr: got nan, expected: should be a finite number"),
        ("training.epochs=2.5", r"training\.epochs: got 2\.5, expected: should be a valid integer"),
        ("training.epochs=yes", r"training\.epochs: got True, expected: should be a number"),
        ("training.lrr=1", r"training\.lrr: unknown field.*did you mean lr\?"),
        ("trainig.lr=1", r"trainig: unknown field.*did you mean training\?"),
        ("model.embedding_size=7", r"model: embedding_size should be even"),
        ("model.cl_drop=1.0", r"model\.cl_drop: got 1\.0, expected: should be less than 1"),
        ("model.samp_func=x", r"model\.samp_func: got 'x', expected: should be 'torch' or 'np'"),
        ("dataset.format=csv", r"dataset\.format: got 'csv', expected: should be 'auto'"),
        ("dataset.fields={usr: x}", r"dataset\.fields\.usr.*: got 'usr', expected: should be 'us"),
        ("evaluation.ks=[]", r"evaluation\.ks: got \[\], expected"),
        ("evaluation.ks=[5, 0]", r"evaluation\.ks\.1: got 0, expected: should be greater than 0"),
        ("evaluation.ks=[5]", r"evaluation: best_by should be one of .*\[5\], got 'ndcg@10'"),
        ("evaluation.best_by=auc@10", r"evaluation: best_by should be one of recall, ndcg"),
        ("evaluation.best_by=ndcg@010", r"evaluation: best_by should be one of .*'ndcg@010'"),
        ("evaluation.best_by=ndcg@\u00b2", r"evaluation: best_by should be one of .*'ndcg@\u00b2'"),
        ("training=3", r"training: got 3, expected: should be a mapping of fields"),
        ("training.lr.x=3", r"training\.lr: got \{'x': 3\}, expected: should be a valid number"),
        ("training.lr", r"--set: got 'training\.lr', expected key=value"),
        ("training.lr=[", r"training\.lr: got '\[', expected a YAML value"),
        ("dataset.name=2024-13-45", r"dataset\.name: got '2024-13-45', expected a YAML value"),
        ("training.threads=100000", r"training\.threads: got 100000, .*than or equal to 1024"),
        ("training.seed=9223372036854775808", r"training\.seed: got 922.*should be less than 922"),
    ],
)
def test_errors_name_field_value_and_expectation(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(assignments=[assignment])
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"training": {"lr": -1, "epochs": 0}})
    assert "training.lr: got -1" in str(caught.value)
    assert "training.epochs: got 0" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", r"c\.yaml:2: "),
        ("a: 2024-13-45\n", r"c\.yaml: .*month must be in 1\.\.12"),
        ("- 1\n", r"c\.yaml: got a list, expected a mapping of sections"),
        ("training: [1]\n", r"training: got \[1\], expected"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read"):
        load_config(tmp_path / "c.yaml")


def test_the_device_is_cuda_only_where_its_kernels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Config().training.device == "auto"
    for available, native, expected in (
        (False, True, "cpu"),
        (True, False, "cpu"),
        (True, True, "cuda"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=available: here)
        monkeypatch.setattr(_library, "is_native", lambda device, here=native: here)
        assert resolve_device("auto").type == expected
    assert resolve_device("cpu").type == "cpu"
