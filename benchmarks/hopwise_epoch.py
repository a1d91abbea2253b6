"""An epoch of KGRec in hopwise, against the published method on torch_scatter + PyG in hopwise.

Both are trained by hopwise, on hopwise's own split, with the same seeds, and timed by hopwise's own
log. Each training is a fresh process, and the sides take turns. Before that, loss and gradients of
both are compared under the same random choices. Run it where hopwise, torch_scatter and
torch_geometric are installed, on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import baselines
from benchmarks._harness import ROOT, Row, Timing, check_close, finish, parser, start, table
from benchmarks.train_step import choice_of
from kgrec_fast.training.memory import keep_freed_memory

SIDES = ("ours", "published")
METRIC = "ndcg@10"
# The published method masks more edges than a tiny graph has.
TINY = {"embedding_size": 16, "context_hops": 1, "mae_msize": 16}


@dataclass(frozen=True)
class Run:
    """One training: seconds of each epoch by hopwise's log, results of the best checkpoint."""

    side: str
    seed: int
    epoch_seconds: list[float]
    valid: float
    test: float


class EpochTimes(logging.Handler):
    """Collects the seconds of the epochs that hopwise logs."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = re.sub(r"\x1b\[[\d;]*m", "", record.getMessage())
        found = re.match(r"epoch \d+ training \[time: ([\d.]+)s", line)
        if found:
            self.seconds.append(float(found[1]))


def model_class(side: str, baseline: str) -> type:
    """The class that hopwise is to train."""
    if side == "ours":
        from kgrec_fast.integrations.hopwise import KGRec

        return KGRec
    from benchmarks._hopwise_baseline import PublishedKGRec

    PublishedKGRec.functions = baselines.find_baseline(baseline).functions
    return PublishedKGRec


def settings_of(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The configuration of both sides, what it does not name being hopwise's."""
    settings: dict[str, Any] = {
        "seed": seed,
        "epochs": options.epochs,
        "eval_step": options.every,
        "metrics": ["NDCG"],
        "valid_metric": "NDCG@10",
        "use_gpu": False,
        "show_progress": False,
    }
    if options.data_path is not None:
        settings["data_path"] = str(options.data_path.resolve())
    return settings | (TINY if options.quick else {})


def build(model: type, dataset: str, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Configuration, model, and hopwise's split, as `run_hopwise` makes them."""
    from hopwise.config import Config
    from hopwise.data import create_dataset, data_preparation
    from hopwise.utils import init_logger, init_seed

    sys.argv = sys.argv[:1]  # hopwise reads the command line as well
    config = Config(model=model, dataset=dataset, config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    data = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    return config, model(config, data[0].dataset), *data


def train(side: str, options: argparse.Namespace, seed: int) -> Run:
    """Trains one side in this process."""
    from hopwise.utils import get_trainer

    keep_freed_memory()  # for either side, as `kgrec-fast hopwise` does
    kind = model_class(side, options.baseline)
    settings = settings_of(options, seed)
    config, model, train_data, valid, test = build(kind, options.dataset, settings)
    times = EpochTimes()
    logging.getLogger().addHandler(times)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train_data, valid, show_progress=False)
    result = trainer.evaluate(test, show_progress=False)
    best = float(trainer.best_valid_score)
    return Run(side, seed, times.seconds, best, float(result[METRIC]))


def check(options: argparse.Namespace) -> str:
    """Loss and gradients of both without message dropout, whose random numbers differ."""
    from hopwise.utils import KGDataLoaderState

    settings = settings_of(options, options.seeds[0]) | {"mess_dropout_rate": 0.0}
    model_of = {side: model_class(side, options.baseline) for side in SIDES}
    config, model, data, *_ = build(model_of["ours"], options.dataset, settings)
    published = model_of["published"](config, data.dataset)
    published.method.load_state_dict(model.state_dict())
    data.set_mode(KGDataLoaderState.RS)
    batch = next(iter(data))
    masks = model.draw_masks()
    losses = (
        model.calculate_loss(batch, masks),
        published.method.calculate_loss(batch, choice_of(model, masks)),
    )
    worst = check_close("loss", *losses)
    for loss in losses:
        loss.backward()
    pairs = zip(model.named_parameters(), published.parameters(), strict=True)
    for (name, parameter), other in pairs:
        worst = max(worst, check_close(f"gradient of {name}", parameter.grad, other.grad))
    return f"loss {losses[0].item():.6f}; largest difference: {worst:.1e} of the largest value"


def in_fresh_process(task: str, options: argparse.Namespace, seed: int) -> Any:
    """What a task prints, run in a new interpreter and in a folder that is thrown away.

    Args:
        task: One of the sides, or "check".
        options: The command line.
        seed: The seed to run it with.

    Raises:
        RuntimeError: The process failed; the message holds what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.hopwise_epoch", "--task", task]
    command += ["--seeds", str(seed), "--epochs", str(options.epochs)]
    command += ["--every", str(options.every), "--dataset", options.dataset]
    command += ["--baseline", options.baseline, "--threads", str(options.threads)]
    command += ["--quick"] if options.quick else []
    if options.data_path is not None:
        command += ["--data-path", str(options.data_path.resolve())]
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(pairs: Sequence[tuple[Run, Run]]) -> str:
    """One line a seed, and what the differences of the test results say."""
    lines = []
    for ours, theirs in pairs:
        seconds = [statistics.median(run.epoch_seconds) for run in (ours, theirs)]
        lines.append(
            [
                str(ours.seed),
                f"{seconds[0]:.2f}",
                f"{seconds[1]:.2f}",
                f"{seconds[1] / seconds[0]:.1f}",
                f"{ours.test:.4f}",
                f"{theirs.test:.4f}",
                f"{ours.test - theirs.test:+.4f}",
            ]
        )
    columns = ("seed", "s an epoch", "published", "ratio", METRIC, "published", "difference")
    text = table(columns, lines)
    differences = [ours.test - theirs.test for ours, theirs in pairs]
    if len(differences) < 2:
        return text
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    verdict = "above" if mean > -2 * error else "not above"
    return (
        f"{text}\ntest {METRIC}: mean difference {mean:+.4f}, standard error {error:.4f}: "
        f"{verdict} minus two standard errors"
    )


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--dataset", default="ml-100k", help="hopwise's name (default ml-100k)")
    result.add_argument("--data-path", type=Path, metavar="FOLDER", help="where it lies, if apart")
    result.add_argument("--seeds", type=int, nargs="+", default=[2024, 1, 2, 3, 4])
    result.add_argument("--epochs", type=int, default=30)
    result.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    result.add_argument("--baseline", default="auto", choices=["auto", *baselines.BASELINES])
    result.add_argument("--task", choices=[*SIDES, "check"], help=argparse.SUPPRESS)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, trains, prints and writes."""
    options = _arguments().parse_args(arguments)
    start(options)
    if options.task is not None:  # in a fresh process
        seed = options.seeds[0]
        done = (
            check(options)
            if options.task == "check"
            else asdict(train(options.task, options, seed))
        )
        print(json.dumps(done))
        return
    if options.quick:
        options.seeds, options.epochs, options.every = options.seeds[:1], 1, 1
    baseline = baselines.find_baseline(options.baseline).name
    print(f"{options.dataset}: {in_fresh_process('check', options, options.seeds[0])}", flush=True)
    pairs = []
    for turn, seed in enumerate(options.seeds):
        order = SIDES if turn % 2 == 0 else SIDES[::-1]
        runs = {side: Run(**in_fresh_process(side, options, seed)) for side in order}
        pairs.append((runs["ours"], runs["published"]))
        print(report(pairs[-1:]), flush=True)
    print(f"\n{report(pairs)}\n")
    seconds = [[s for pair in pairs for s in pair[side].epoch_seconds] for side in (0, 1)]
    row = Row.of(
        *map(Timing.of, seconds),
        op="epoch",
        graph=options.dataset,
        direction="training",
        baseline=baseline,
    )
    finish(options, [row], runs=[asdict(run) for pair in pairs for run in pair])


if __name__ == "__main__":
    main()
