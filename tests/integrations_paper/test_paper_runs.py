"""The paper's data layout from the command line: presets, protocol, checkpoints."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from paper_oracle import PaperWorld, PlainModel, arguments

from kgrec_fast import cli
from kgrec_fast.integrations.paper import KGRec
from kgrec_fast.integrations.paper.checkpoint import model_state, published_state, read_checkpoint
from kgrec_fast.training import Config, RunFolder, build_model, load_checkpoint, read_dataset

USERS, ITEMS, NODES, KINDS = 30, 25, 60, 4
QUICK = ("--batch-size", "64", "--lr", "0.01", "--threads", "1", "--set", "model.mae_msize=8")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


class Lines:
    """The files as plain lists, and what the paper's loader makes of them."""

    def __init__(self, seed: int = 4) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(high: int, count: int) -> list[int]:
            return torch.randint(high, (count,), generator=generator).tolist()

        self.train = {user: sorted(set(draw(ITEMS, 9))) for user in range(USERS)}
        # Some test items are known from train; some users have no test item, one none but known.
        self.test = {user: sorted(set(draw(ITEMS, 3))) for user in range(0, USERS, 2)}
        self.test[4] = self.train[4][:1]
        self.train[0] = sorted({*self.train[0], ITEMS - 1})
        heads, kinds, tails = draw(NODES, 200), draw(KINDS, 200), draw(NODES, 200)
        self.triples = list(zip(heads, kinds, tails, strict=True))
        self.triples += [*self.triples[:9], (NODES - 1, KINDS - 1, 0)]  # with duplicates

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, rows in (("train", self.train), ("test", self.test)):
            text = "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in rows.items())
            (folder / f"{name}.txt").write_text(text)
        text = "".join(f"{h} {r} {t}\n" for h, r, t in self.triples)
        (folder / "kg_final.txt").write_text(text)
        return folder

    def world(self) -> PaperWorld:
        triples = sorted(set(self.triples))
        listed = [(h, r + 1, t) for h, r, t in triples]
        listed += [(t, r + 1 + KINDS, h) for h, r, t in triples]
        head, kind, tail = torch.tensor(listed).t()
        pairs = [(user, item) for user, items in self.train.items() for item in items]
        return PaperWorld(
            torch.stack([head, tail]), kind, torch.tensor(pairs).t(),
            n_users=USERS, n_items=ITEMS, n_entities=NODES, n_relations=2 * KINDS + 1,
        )  # fmt: skip

    def metrics(self, users: torch.Tensor, entities: torch.Tensor, k: int) -> dict[str, float]:
        """The published evaluation: all users of test.txt, one by one; items of train left out."""
        sums = dict.fromkeys(("recall", "ndcg", "precision", "hit"), 0.0)
        scores = (users @ entities[:ITEMS].t()).tolist()
        for user, wanted in self.test.items():
            left = [item for item in range(ITEMS) if item not in self.train[user]]
            ranked = sorted(left, key=lambda item: -scores[user][item])[:k]
            hits = [1.0 if item in wanted else 0.0 for item in ranked]
            ideal = sum(1 / math.log2(j + 2) for j in range(min(k, len(wanted))))
            sums["recall"] += sum(hits) / len(wanted)
            sums["precision"] += sum(hits) / k
            sums["hit"] += any(hits)
            sums["ndcg"] += sum(h / math.log2(j + 2) for j, h in enumerate(hits)) / ideal
        return {f"{name}@{k}": total / len(self.test) for name, total in sums.items()}


@pytest.fixture(scope="module")
def lines() -> Lines:
    return Lines()


@pytest.fixture(scope="module")
def folder(lines: Lines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines.write(tmp_path_factory.mktemp("data") / "last-fm")


def test_training_with_a_split_of_ones_own(folder: Path, tmp_path: Path) -> None:
    """Without the paper's protocol a valid split is drawn from train, and test is left alone."""
    output = succeed("train", folder, *QUICK, "--epochs", "2", "--run-dir", tmp_path / "run")
    assert "chosen on the test split" not in output
    assert "duplicate triples are left out" in output
    data = read_dataset(RunFolder.open(tmp_path / "run").read_config())
    assert data.valid.shape[1] > 0
    assert data.n_relations == 2 * KINDS + 1
    output = succeed("evaluate", tmp_path / "run")
    assert "test, epoch 2" in output
    output = succeed("recommend", tmp_path / "run", "--user", "3", "-k", "2", "--why")
    assert "(inverse)" in output


def test_training_without_a_valid_split(lines: Lines, folder: Path, tmp_path: Path) -> None:
    """Nothing to choose an epoch by: the last one is kept, and test is looked at once."""
    options = ("--set", "dataset.carve_valid=false", "--run-dir", tmp_path / "run")
    output = succeed("train", folder, *QUICK, "--epochs", "3", *options)
    assert "valid, epoch" not in output
    assert "test, epoch 3" in output
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["best_epoch"] == 3
    assert content["valid"] is None
    data = read_dataset(RunFolder.open(tmp_path / "run").read_config())
    triples = sorted(set(lines.triples))
    assert sorted(zip(*data.edge_index.tolist(), data.edge_type.tolist(), strict=True)) == sorted(
        [(h, t, r) for h, r, t in triples] + [(t, h, r + KINDS) for h, r, t in triples]
    )


@pytest.fixture(scope="module")
def paper_run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    options = ("--preset", "last-fm", "--protocol", "paper", "--eval-every", "1")
    # ks below the number of items, so that not everything is found
    quick = (*QUICK, "--epochs", "3", "--set", "evaluation.ks=[5, 10]")
    return run_dir, succeed("train", folder, *options, *quick, "--run-dir", run_dir)


def test_the_paper_s_protocol_gives_the_published_metrics(
    lines: Lines, paper_run: tuple[Path, str]
) -> None:
    run_dir, output = paper_run
    assert "evaluation.protocol is 'paper': the epoch is chosen on the test split" in output
    assert "best by test recall@5" in output
    config = RunFolder.open(run_dir).read_config()
    data = read_dataset(config)
    assert data.valid.shape[1] == 0
    assert data.train.shape[1] == sum(map(len, lines.train.values()))
    assert data.test.shape[1] == sum(map(len, lines.test.values()))
    model = build_model(data, config)
    tensors = load_checkpoint(run_dir / "best.safetensors").tensors
    model.load_state_dict({name.removeprefix("model."): x for name, x in tensors.items()})
    content = json.loads((run_dir / "metrics.json").read_text())
    users, entities = (x.detach() for x in model.eval().embeddings())
    for k in (5, 10):
        for name, value in lines.metrics(users, entities, k).items():
            assert content["test"][name] == pytest.approx(value, abs=1e-12), name
    assert 0 < content["test"]["recall@5"] < content["test"]["recall@10"] < 1
    history = content["history"]
    assert [bool(r["test"]) for r in history] == [False, True, True]
    best = max(history[1:][::-1], key=lambda r: r["test"]["recall@5"])
    assert content["best_epoch"] == best["epoch"]
    assert content["valid"] is None


def test_a_run_by_the_paper_s_protocol_is_a_run(
    paper_run: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir, _ = paper_run
    content = json.loads((run_dir / "metrics.json").read_text())
    succeed("evaluate", run_dir, "--json", tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text()) == content["test"]
    assert "user 3" in succeed("recommend", run_dir, "--user", "3")
    result = call("train", "--resume", run_dir, "--protocol", "paper", "--preset", "last-fm")
    assert "--resume: got --preset, --protocol too" in result.stderr
    assert "finished after 3 epochs" in succeed("train", "--resume", run_dir)


# model.reg_weight, training.lr and the like are the defaults of the published command line.
COMMON = {
    "embedding_size": 64, "reg_weight": 1e-5, "context_hops": 2, "node_dropout_rate": 0.5,
    "mess_dropout_rate": 0.1, "mae_coef": 0.1, "mae_msize": 256, "published_quirks": False,
}  # fmt: skip
PUBLISHED = {
    "last-fm": ({"cl_coef": 0.01, "cl_tau": 1.0, "cl_drop": 0.5, "samp_func": "torch"}, 10, 5),
    "mind-f": ({"cl_coef": 0.001, "cl_tau": 0.1, "cl_drop": 0.6, "samp_func": "np"}, 1, 10),
    "alibaba-fashion": (
        {"cl_coef": 0.001, "cl_tau": 0.2, "cl_drop": 0.5, "samp_func": "torch"}, 1, 10,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets(name: str) -> None:
    options = dict.fromkeys(cli._COMMON) | {"dataset": "x", "preset": name}
    config = cli._configure(None, options, ())
    model, every, patience = PUBLISHED[name]
    assert config.model.model_dump() == COMMON | model
    training = config.training
    assert (training.epochs, training.batch_size, training.lr, training.seed) == (
        1000, 1024, 1e-4, 2020,
    )  # fmt: skip
    assert (training.eval_every, training.patience) == (every, patience)
    assert config.evaluation == Config().evaluation
    options |= {"epochs": 4, "lr": 0.5}
    assert cli._configure(None, options, ["model.cl_tau=0.7"]).model.cl_tau == 0.7


# -- checkpoints of the paper's code --------------------------------------------------------------


@pytest.fixture
def checkpoint(lines: Lines, tmp_path: Path) -> tuple[Path, PlainModel]:
    """What the paper's code leaves after ``torch.save(model.state_dict())``."""
    torch.manual_seed(5)
    plain = PlainModel(lines.world(), arguments())
    with torch.no_grad():
        plain.all_embed.mul_(3)
    torch.save(plain.state_dict(), tmp_path / "paper.ckpt")
    return tmp_path / "paper.ckpt", plain


def test_the_commands_of_the_readme_run(
    lines: Lines,
    checkpoint: tuple[Path, PlainModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines.write(tmp_path / "path" / "to" / "last-fm")
    (tmp_path / "weights").mkdir()
    checkpoint[0].rename(tmp_path / "weights" / "last-fm.ckpt")
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^kgrec-fast (.*--preset.*)$", readme, re.MULTILINE)
    assert len(found) == 2
    for line in found:
        assert "run folder: " in succeed(*line.split())


def test_an_imported_checkpoint_gives_the_metrics_of_the_paper_s_code(
    lines: Lines, folder: Path, checkpoint: tuple[Path, PlainModel], tmp_path: Path
) -> None:
    file, plain = checkpoint
    run_dir = tmp_path / "run"
    output = succeed("import", file, folder, "--preset", "last-fm", "--run-dir", run_dir)
    assert f"run folder: {run_dir}" in output
    succeed("evaluate", run_dir, "-k", "5", "-k", "10", "--json", tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())
    entities, users = (x.detach() for x in plain.double().generate())
    for k in (5, 10):
        for name, value in lines.metrics(users, entities, k).items():
            assert found[name] == pytest.approx(value, abs=1e-12), name
    assert "user 3" in succeed("recommend", run_dir, "--user", "3", "--why")
    result = call("train", "--resume", run_dir)
    assert result.exit_code == 2
    assert "last.safetensors: no such checkpoint" in result.stderr


def test_states_are_translated_both_ways(lines: Lines, folder: Path, checkpoint) -> None:
    file, plain = checkpoint
    state = read_checkpoint(file)
    ours = model_state(state, USERS)
    options = {"dataset": str(folder), "preset": None, "protocol": "paper"}
    config = cli._configure(None, options, ["model.embedding_size=8", "model.mae_msize=8"])
    model = build_model(read_dataset(config), config)
    model.load_state_dict(ours, strict=True)
    back = published_state(model.state_dict())
    assert list(back) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(back[name], value), name
    world = lines.world()
    published = KGRec(world.data_config, arguments(), world.triples, world.adj_mat)
    published.load_state_dict(back, strict=True)
    entities, users = published.generate()
    torch.testing.assert_close(model.embeddings(), (users, entities), rtol=1e-5, atol=1e-6)


def test_the_earlier_revision_is_read(checkpoint: tuple[Path, PlainModel], tmp_path: Path) -> None:
    _, plain = checkpoint
    state = {n.replace("contrast_fn", "grace_loss"): x for n, x in plain.state_dict().items()}
    torch.save(state, tmp_path / "old.ckpt")
    assert list(read_checkpoint(tmp_path / "old.ckpt")) == list(plain.state_dict())


def test_files_that_are_no_checkpoints(
    folder: Path, checkpoint: tuple[Path, PlainModel], tmp_path: Path
) -> None:
    _, plain = checkpoint
    bad = tmp_path / "bad.ckpt"
    contents = {
        "expected a state dict of the paper's KGRec": {"other": torch.ones(2)},
        "no checkpoint of tensors": {"all_embed": Path("x")},
    }
    for message, content in contents.items():
        torch.save(content, bad)
        result = call("import", bad, folder, "--run-dir", tmp_path / "run")
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert "weights_only" not in result.stderr
    for content in (b"", b"text", b"PK\x03\x04text"):
        bad.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"no checkpoint of tensors, as torch\.save writes it$"
        ):
            read_checkpoint(bad)
    result = call("import", tmp_path / "none.ckpt", folder)
    assert "No such file" in result.stderr
    torch.save({**plain.state_dict(), "all_embed": torch.ones(50, 8)}, bad)
    result = call(
        "import", bad, folder, "--set", "model.mae_msize=8", "--run-dir", tmp_path / "run"
    )
    assert result.exit_code == 2
    assert "entity_embedding.weight: got float32[20, 8], expected float32[60, 8]" in result.stderr
    assert not (tmp_path / "run").exists()
