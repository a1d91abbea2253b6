"""The command line from end to end, on a small data set in atomic files."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kgrec_fast import cli
from kgrec_fast.training import RunFolder, checkpoint, load_checkpoint, read_dataset, run_folder

QUICK = ["--batch-size", "64", "--lr", "0.01", "--eval-every", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    output = succeed(
        "train", data_folder, *QUICK, "--epochs", "3", "--run-dir", folder,
        "--set", "model.mae_msize=8", "--set", "evaluation.ks=[5, 10]",
    )  # fmt: skip
    for text in ("data set tiny", "402", "best so far", "valid, epoch 1", "test, epoch", "NDCG"):
        assert text in output
    return folder


def test_training_leaves_a_run(run_dir: Path, data_folder: Path) -> None:
    config = RunFolder.open(run_dir).read_config()
    assert config.dataset.name == str(data_folder.resolve())
    assert (config.training.epochs, config.training.lr, config.model.mae_msize) == (3, 0.01, 8)
    content = json.loads((run_dir / "metrics.json").read_text())
    assert len(content["history"]) == 3
    names = load_checkpoint(run_dir / "best.safetensors").tensors
    assert {"model.user_embedding.weight", "model.gcn.W_Q"} <= names.keys()


def test_evaluate_gives_the_numbers_of_the_training(run_dir: Path, tmp_path: Path) -> None:
    content = json.loads((run_dir / "metrics.json").read_text())
    for split in ("valid", "test"):
        output = succeed("evaluate", run_dir, "--split", split, "--json", tmp_path / "m.json")
        assert f"{split}, epoch {content['best_epoch']}" in output
        assert json.loads((tmp_path / "m.json").read_text()) == content[split]
    output = succeed("evaluate", run_dir, "-k", "2", "-k", "7", "--checkpoint", "last")
    assert "@2" in output
    assert "@7" in output
    assert "test, epoch 3" in output


def test_the_same_command_gives_the_same_run(
    run_dir: Path, data_folder: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text((run_dir / "config.yaml").read_text())
    succeed("train", "--config", config, "--run-dir", tmp_path / "run")
    one, two = (load_checkpoint(path / "last.safetensors") for path in (run_dir, tmp_path / "run"))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_recommend_leaves_out_what_is_known(run_dir: Path) -> None:
    data = read_dataset(RunFolder.open(run_dir).read_config())
    users = ["u3", "u11"]
    output = succeed("recommend", run_dir, "--user", users[0], "--user", users[1], "-k", "100")
    tables = output.split("user ")[1:]
    for user, table in zip(users, tables, strict=True):
        shown = {cell for cell in table.split() if cell in set(data.item_tokens)}
        ptr, items = data.by_user("train", "valid", "test")
        place = list(data.user_tokens).index(user)
        known = {data.item_tokens[item] for item in items[ptr[place] : ptr[place + 1]].tolist()}
        assert shown == set(data.item_tokens) - known
        assert known


def test_recommend_says_why(run_dir: Path) -> None:
    output = succeed("recommend", run_dir, "--user", "u3", "-k", "2", "--why", "--edges", "1")
    ranks, reasons = output.split("rationales")
    data = read_dataset(RunFolder.open(run_dir).read_config())
    triples = {
        (data.entity_tokens[h], data.relation_tokens[r], data.entity_tokens[t])
        for (h, t), r in zip(data.edge_index.T.tolist(), data.edge_type.tolist(), strict=True)
    }
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in reasons.splitlines()
        if line.startswith("│")
    ]
    assert len(rows) == 2  # the best edge of each item
    for item, head, relation, tail, score in rows:
        assert item in ranks
        assert (head, relation, tail) in triples
        assert head == item.replace("i", "e")
        assert float(score) > 0


def test_resume_of_a_finished_run_may_lengthen_it(
    run_dir: Path, data_folder: Path, tmp_path: Path
) -> None:
    base = ["train", data_folder, *QUICK, "--set", "model.mae_msize=8"]
    succeed(*base, "--epochs", "1", "--run-dir", tmp_path / "a")
    output = succeed("train", "--resume", tmp_path / "a", "--epochs", "3")
    assert "finished after 3 epochs" in output
    assert RunFolder.open(tmp_path / "a").read_config().training.epochs == 3
    one = load_checkpoint(tmp_path / "a" / "last.safetensors")
    two = load_checkpoint(run_dir / "last.safetensors")
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


MISTAKES = {
    "no data": (["train"], "DATASET: got nothing"),
    "unknown data": (["train", "nowhere"], "no data set 'nowhere'"),
    "bad value": (["train", "DATA", "--lr", "0"], "training.lr: got 0.0, expected"),
    "bad field": (["train", "DATA", "--set", "model.hops=3"], "model.hops: unknown field"),
    "no file": (["train", "DATA", "--config", "none.yaml"], "none.yaml: cannot be read"),
    "device": (["train", "DATA", "--device", "abacus"], "training.device: got 'abacus'"),
    "no numbers": (["train", "DATA", "--device", "meta"], "training.device: got 'meta'"),
    "taken folder": (["train", "DATA", "--run-dir", "RUN"], "already holds a run"),
    "no run": (["train", "--resume", "DATA"], "no folder of a run"),
    "resume with more": (["train", "DATA", "--resume", "RUN", "--lr", "1"], "got DATASET, --lr"),
    "resume shorter": (["train", "--resume", "RUN", "--epochs", "2"], "--epochs: got 2, expected"),
    "splits of the other layout": (["train", "DATA", "--protocol", "paper"], "got 'published'"),
    "resume with a preset": (["train", "--resume", "RUN", "--preset", "mind-f"], "got --preset"),
    "import of nothing": (["import", "nowhere.ckpt", "DATA"], "nowhere.ckpt: No such file"),
    "wrong layout": (["train", "DATA", "--format", "kgat"], "train.txt: No such file"),
    "evaluate no run": (["evaluate", "nowhere"], "no folder of a run"),
    "evaluate k": (["evaluate", "RUN", "-k", "0"], "ks: got 0"),
    "unknown user": (["recommend", "RUN", "--user", "u3x"], "did you mean u3"),
    "recommend k": (["recommend", "RUN", "--user", "u3", "-k", "0"], "-k: got 0"),
    "recommend edges": (["recommend", "RUN", "--user", "u3", "--edges", "0"], "--edges: got 0"),
    "threads": (["evaluate", "RUN", "--threads", "0"], "--threads: got 0"),
    "many threads": (["evaluate", "RUN", "--threads", "5000"], "got 5000, expected 1 to"),
    "home of nobody": (["train", "~nosuchuser/data"], "no data set '~nosuchuser/data'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(
    name: str, run_dir: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[name]
    places = {"RUN": run_dir, "DATA": data_folder}
    result = call(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)  # an error told, not one that escaped
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []  # no run folder is left behind


def test_data_that_cannot_be_trained_on_leave_no_run_folder(
    data_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / data_folder.name
    shutil.copytree(data_folder, folder)
    link = (folder / f"{folder.name}.link").read_text().splitlines()
    (folder / f"{folder.name}.link").write_text("\n".join(link[:2]))
    (folder / f"{folder.name}.inter").write_text("user_id:token\titem_id:token\nu0\ti0\n")
    result = call("train", folder, "--run-dir", tmp_path / "run")
    assert result.exit_code == 2
    assert "user 0 (u0) has touched all 1 items" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tiny", "dataset/tiny"])
def test_a_run_is_evaluated_from_another_folder(
    name: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data_folder, tmp_path / "dataset" / "tiny")
    monkeypatch.chdir(tmp_path)
    succeed("train", name, *QUICK, "--epochs", "1", "--run-dir", "run")
    monkeypatch.chdir("run")
    succeed("evaluate", ".")


def test_a_damaged_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    (tmp_path / "best.safetensors").write_bytes(b"\0" * 100)
    result = call("evaluate", tmp_path)
    assert result.exit_code == 2
    assert "not a readable safetensors file" in result.stderr


def test_another_model_in_the_configuration_is_refused(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("context_hops: 2", "context_hops: 1"))
    for arguments in (("evaluate", folder), ("recommend", folder, "--user", "u3")):
        result = call(*arguments)
        assert result.exit_code == 2
        assert "model.context_hops: got 1, expected 2, with which" in result.stderr
    (folder / "config.yaml").write_text(text.replace("patience: 10", "patience: 3"))
    succeed("evaluate", folder)


@pytest.mark.parametrize(
    ("file", "room"), [("last.safetensors", 4096), ("metrics.json", 400), ("curves.png", 2000)]
)
def test_a_file_that_cannot_be_written_is_told_in_one_line(
    file: str, room: int, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, *arguments: Any) -> None:
        """Writes while the system takes no more than so many bytes a file."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if path.name == file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            checkpoint_write(path, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    checkpoint_write = checkpoint.write_atomically
    for module in (checkpoint, run_folder):
        monkeypatch.setattr(module, "write_atomically", write)
    result = call("train", data_folder, *QUICK, "--epochs", "1", "--run-dir", tmp_path / "r")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith(f"Error: {tmp_path / 'r' / file}: cannot be written (")
    assert "File too large" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_with_exit_code_1(data_folder: Path, tmp_path: Path) -> None:
    result = call(
        "train", data_folder, *QUICK, "--lr", "1e30", "--epochs", "2", "--run-dir", tmp_path / "r"
    )
    assert result.exit_code == 1
    assert "epoch 1, step 2 of 7: the loss is nan" in result.stderr


def test_errors_that_are_not_the_users_keep_their_traceback(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(cli.Trainer, "fit", broken)
    result = call("train", data_folder, "--run-dir", tmp_path / "r")
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize("command", ["train", "evaluate", "recommend", "import", "info"])
def test_help(command: str) -> None:
    assert command in succeed("--help")
    assert "Usage:" in succeed(command, "--help")


def test_info_and_version() -> None:
    assert "torch" in succeed("info")
    assert "kgrec-fast, version" in succeed("--version")


@pytest.mark.parametrize("module", ["click", "rich.console"])
def test_a_missing_library_says_what_to_install(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    spec = importlib.util.spec_from_file_location("fresh_cli", cli.__file__)
    assert spec is not None
    assert spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    with pytest.raises(ImportError, match=r"pip install 'kgrec_fast\[train\]'"):
        spec.loader.exec_module(fresh)
