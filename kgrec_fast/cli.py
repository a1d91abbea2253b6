"""The command ``kgrec-fast``: train, evaluate, recommend, info."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

try:
    import click
    from rich.console import Console
except ImportError as error:
    raise ImportError(
        f"the command kgrec-fast needs {error.name}: pip install 'kgrec_fast[train]'"
    ) from error

import torch

import kgrec_fast
from kgrec_fast._console import mistakes, new_console, warnings_as_notes
from kgrec_fast.data.load import find_dataset
from kgrec_fast.integrations.paper.checkpoint import model_state, read_checkpoint
from kgrec_fast.integrations.paper.presets import PRESETS, run_settings
from kgrec_fast.training import (
    CheckpointError,
    Config,
    Results,
    RunFolder,
    Trainer,
    TrainingError,
    TrainingInterrupted,
    build_model,
    evaluate,
    load_config,
    read_dataset,
)
from kgrec_fast.training.checkpoint import WriteError
from kgrec_fast.training.config import MAX_THREADS
from kgrec_fast.training.imported import import_run
from kgrec_fast.training.memory import keep_freed_memory
from kgrec_fast.training.protocol import PROTOCOLS
from kgrec_fast.training.recommend import find_users, load_run, rationale_edges, recommend
from kgrec_fast.training.report import ConsoleReporter, dataset_table, metrics_table, plain_table

_COMMON = {
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "seed": "training.seed",
    "eval_every": "training.eval_every",
    "patience": "training.patience",
    "device": "training.device",
    "threads": "training.threads",
    "recbole_items": "dataset.recbole_items",
    "min_rating": "dataset.min_rating",
    "layout": "dataset.format",
    "protocol": "evaluation.protocol",
    "dataset": "dataset.name",
}


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


# Options of more than one command.
_run_dir = click.option(
    "--run-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the run.  [default: runs/DATASET-TIMESTAMP]",
)
_assignments = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set any field, such as model.context_hops=3.  May be repeated.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(kgrec_fast.__version__, prog_name="kgrec-fast")
def main() -> None:
    """Train KGRec, a recommender on a knowledge graph, on fused native ops."""


@main.command()
@click.argument("dataset", required=False)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="YAML file with the sections dataset, model, training, evaluation.",
)
@click.option("--epochs", type=int, help="Epochs at most.  [default: 30]")
@click.option("--batch-size", type=int, help="Training pairs a step.  [default: 2048]")
@click.option("--lr", type=float, help="Learning rate of Adam.  [default: 0.001]")
@click.option("--seed", type=int, help="Seed of weights, order and sampling.  [default: 2024]")
@click.option("--eval-every", type=int, metavar="EPOCHS", help="Evaluate so often.  [default: 5]")
@click.option(
    "--patience",
    type=int,
    metavar="N",
    help="Stop after N evaluations without gain.  [default: 10]",
)
@click.option(
    "--recbole-items",
    is_flag=True,
    default=None,
    help="Choose the items as RecBole does: rated and linked ones only.",
)
@click.option(
    "--min-rating",
    type=float,
    metavar="X",
    help="Only ratings of X and more are positives.  [default: all are]",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["auto", "atomic", "kgat"]),
    help="Layout of the files: RecBole's atomic files or KGAT's.  [default: auto]",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Hyper-parameters of the paper's code for that data set; other options come after.",
)
@click.option(
    "--protocol",
    type=click.Choice(["default", "paper"]),
    help="paper: evaluate as the paper's code does, which chooses the epoch on test.",
)
@click.option("--device", help="Where to train: auto, cpu or cuda.  [default: auto]")
@click.option("--threads", type=int, help="CPU threads.  [default: torch's choice]")
@_run_dir
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN_DIR",
    help="Continue that run exactly where it stopped; --epochs may lengthen it.",
)
@_assignments
def train(
    config_file: Path | None,
    run_dir: Path | None,
    resume: Path | None,
    assignments: tuple[str, ...],
    **options: Any,
) -> None:
    """Train on DATASET: a known name such as ml-100k, or a folder of data files.

    The run folder holds the configuration, metrics.json, the learning curves as a picture and as
    numbers, and the checkpoints. Ctrl-C saves before it stops.
    """
    console = new_console()
    with mistakes(ValueError, OSError):
        folder: RunFolder | None = None
        if resume is not None:
            _only_with_resume(options, config_file, run_dir, assignments)
            folder = RunFolder.open(resume)
            config = _lengthened(folder.read_config(), options["epochs"])
        else:
            config = _configure(config_file, options, assignments)
        _set_threads(config.training.threads)
        keep_freed_memory()
        with warnings_as_notes(console):
            data = read_dataset(config)
        console.print(dataset_table(data))
        for note in data.notes:
            console.print(f"note: {note}", soft_wrap=True)
        with warnings_as_notes(console):
            model = build_model(data, config)
            if folder is not None:
                folder.write_config(config)
            # A new folder is made by the trainer, once the data are known to be fit for training.
            trainer = Trainer(model, data, config, folder or run_dir, ConsoleReporter(console))
    keep_freed_memory()  # again: the data may have taken what the first call asked for
    device = trainer.device.type
    console.print(f"run folder: {trainer.folder.path}, device: {device}", soft_wrap=True)
    # Here only errors made for users are theirs; anything else deserves its traceback.
    with mistakes(CheckpointError), mistakes(TrainingError, WriteError, exit_code=1):
        try:
            results = trainer.fit(resume=resume is not None)
        except TrainingInterrupted as stop:
            click.echo(
                f"\nStopped by {stop.signal.name} {stop.where}; everything is saved.\n"
                f"Continue with: kgrec-fast train --resume {shlex.quote(str(stop.run_dir))}",
                err=True,
            )
            sys.exit(128 + stop.signal)
    _show_results(console, results, config)


def _configure(
    config_file: Path | None, options: dict[str, Any], assignments: tuple[str, ...]
) -> Config:
    overrides = {name: options.get(option) for option, name in _COMMON.items()}
    preset = {} if options["preset"] is None else run_settings(options["preset"])
    config = load_config(config_file, preset=preset, overrides=overrides, assignments=assignments)
    name = config.dataset.name
    if name is None:
        raise ValueError("DATASET: got nothing, expected a known name such as ml-100k, or a folder")
    try:
        folder = find_dataset(name)
    except FileNotFoundError:  # the reader will say so
        return config
    if folder.is_absolute() and folder != Path(name):  # of an installed package, or a home
        return config
    # Absolute, so that the run can be continued or evaluated from another folder.
    dataset = config.dataset.model_copy(update={"name": str(folder.resolve())})
    return config.model_copy(update={"dataset": dataset})


def _only_with_resume(
    options: dict[str, Any], config_file: Path | None, run_dir: Path | None, assignments: Any
) -> None:
    """A resumed run keeps its configuration: refuses whatever would change it."""
    values = {**options, "config": config_file, "run_dir": run_dir, "set": assignments or None}
    names = {"dataset": "DATASET", "layout": "--format"}
    given = [
        names.get(name, f"--{name.replace('_', '-')}")
        for name, value in sorted(values.items())
        if value is not None and name != "epochs"
    ]
    if given:
        raise ValueError(
            f"--resume: got {', '.join(given)} too, expected at most --epochs, for the run "
            "continues with its own configuration"
        )


def _lengthened(config: Config, epochs: int | None) -> Config:
    if epochs is None:
        return config
    if epochs < config.training.epochs:
        raise ValueError(
            f"--epochs: got {epochs}, expected at least the run's {config.training.epochs}"
        )
    training = config.training.model_copy(update={"epochs": epochs})
    return config.model_copy(update={"training": training})


def _show_results(console: Console, results: Results, config: Config) -> None:
    how = "stopped early" if results.stopped_early else "finished"
    console.print(
        f"{how} after {len(results.history)} epochs; best by "
        f"{PROTOCOLS[config.evaluation.protocol].split} {config.evaluation.best_by}: "
        f"epoch {results.best_epoch}",
        soft_wrap=True,
    )
    for split, metrics in (("valid", results.valid), ("test", results.test)):
        if metrics is not None:
            console.print(metrics_table(f"{split}, epoch {results.best_epoch}", metrics))
    console.print(f"results in {results.run_dir}", soft_wrap=True)


@main.command(name="evaluate")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["valid", "test"]),
    default="test",
    show_default=True,
    help="Which interactions to predict.",
)
@click.option(
    "--checkpoint",
    "which",
    type=click.Choice(["best", "last"]),
    default="best",
    show_default=True,
    help="Which state of the model.",
)
@click.option(
    "-k",
    "ks",
    type=int,
    multiple=True,
    metavar="K",
    help="Cutoff; may be repeated.  [default: the run's]",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the metrics, unrounded, to this file.",
)
@click.option("--threads", type=int, help="CPU threads.  [default: the run's]")
def evaluate_command(
    run_dir: Path,
    split: str,
    which: str,
    ks: tuple[int, ...],
    json_file: Path | None,
    threads: int | None,
) -> None:
    """Evaluate the run in RUN_DIR: rank all items for every user, known ones left out."""
    console = new_console()
    with mistakes(ValueError, OSError):
        run = _load(console, run_dir, which, threads)
        metrics = evaluate(run.model, run.dataset, split, ks=ks or run.config.evaluation.ks)
        console.print(metrics_table(f"{split}, epoch {run.epoch}", metrics))
        if json_file is not None:
            json_file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


@main.command(name="import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("dataset")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Hyper-parameters of the paper's code for that data set.",
)
@_run_dir
@_assignments
def import_command(
    checkpoint: Path,
    dataset: str,
    preset: str | None,
    run_dir: Path | None,
    assignments: tuple[str, ...],
) -> None:
    """Make a run of a CHECKPOINT that the paper's code has saved, trained on DATASET.

    The run can be evaluated and recommended with, not resumed.
    """
    console = new_console()
    with mistakes(ValueError, OSError):
        state = read_checkpoint(checkpoint)
        options = {"dataset": dataset, "preset": preset, "protocol": "paper"}
        size = f"model.embedding_size={state['all_embed'].shape[1]}"
        config = _configure(None, options, (size, *assignments))
        with warnings_as_notes(console):
            folder = import_run(lambda users: model_state(state, users), config, run_dir)
        console.print(f"run folder: {folder.path}", soft_wrap=True)


@main.command(name="recommend")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option(
    "--user",
    "users",
    multiple=True,
    required=True,
    metavar="TOKEN",
    help="A user, by the name in the data; may be repeated.",
)
@click.option("-k", default=10, show_default=True, help="How many items.")
@click.option(
    "--why",
    is_flag=True,
    help="Also show the edges with the highest rationale scores of each item.",
)
@click.option("--edges", default=3, show_default=True, help="How many edges an item with --why.")
@click.option("--threads", type=int, help="CPU threads.  [default: the run's]")
def recommend_command(
    run_dir: Path, users: tuple[str, ...], k: int, why: bool, edges: int, threads: int | None
) -> None:
    """Recommend items to users, with the model of the run in RUN_DIR.

    Items that a user is known to have, from any split, are left out.
    """
    console = new_console()
    with mistakes(ValueError, OSError):
        if k < 1:
            raise ValueError(f"-k: got {k}, expected a positive number")
        if edges < 1:
            raise ValueError(f"--edges: got {edges}, expected a positive number")
        run = _load(console, run_dir, "best", threads)
        data = run.dataset
        lists = recommend(run.model, data, find_users(users, data.user_tokens), k)
        for user, ranked in zip(users, lists, strict=True):
            rows = [
                (rank, data.item_tokens[item], score)
                for rank, (item, score) in enumerate(ranked, start=1)
            ]
            console.print(plain_table(f"user {user}", ("rank", "item", "score"), rows))
            if why:
                _show_rationales(console, run, [item for item, _ in ranked], edges)


def _show_rationales(console: Console, run: Any, items: list[int], count: int) -> None:
    data = run.dataset
    with torch.no_grad():
        scores = run.model.rationales()
    rows = []
    for item, edges in rationale_edges(scores, data.edge_index, items, count).items():
        for edge, score in edges:
            head, tail = data.edge_index[:, edge].tolist()
            relation = data.relation_tokens[int(data.edge_type[edge])]
            names = (data.entity_tokens[head], relation, data.entity_tokens[tail])
            rows.append((data.item_tokens[item], *names, score))
    if rows:
        columns = ("item", "head", "relation", "tail", "score")
        console.print(plain_table("rationales", columns, rows))
    else:
        console.print("no rationales: these items have no edge in the knowledge graph")


def _load(console: Console, run_dir: Path, which: str, threads: int | None) -> Any:
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"--threads: got {threads}, expected 1 to {MAX_THREADS}")
    folder = RunFolder.open(run_dir)
    _set_threads(threads or folder.read_config().training.threads)
    with warnings_as_notes(console):
        warnings.simplefilter("ignore", UserWarning)  # `train` has shown those of data and model
        return load_run(folder, which)


@main.command(
    name="hopwise",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def hopwise_command(arguments: tuple[str, ...]) -> None:
    """Run hopwise's own command, which then knows this KGRec: hopwise train --model KGRec ..."""
    with mistakes(ImportError):
        from kgrec_fast.integrations import hopwise

        keep_freed_memory()
        hopwise.main(arguments)


@main.command()
def info() -> None:
    """Print versions, the native libraries loaded or why not, the instruction set, threads."""
    from kgrec_fast.info import main as print_info

    print_info()


if __name__ == "__main__":
    main()
