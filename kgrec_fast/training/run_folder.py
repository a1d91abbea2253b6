"""The folder of a run: configuration, metrics, learning curves, checkpoints."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kgrec_fast.training.checkpoint import write_atomically, write_text
from kgrec_fast.training.config import Config, ConfigError, parse_config, read_yaml
from kgrec_fast.training.metrics import METRICS
from kgrec_fast.training.protocol import metrics_of, split_of


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of a run, and the ones that are plain text or a picture written.

    Every file is replaced atomically and derives from the run's state, so a resumed run leaves
    the same files as one that was never interrupted.
    """

    path: Path

    @classmethod
    def create(cls, path: Path | None, config: Config) -> RunFolder:
        """A new folder, ``runs/<dataset>-<timestamp>`` where no path is given.

        Raises:
            ConfigError: if the folder already holds a run, or cannot be made.
        """
        try:
            if path is None:
                name = Path(config.dataset.name or "run").name or "run"
                path = _make_first_free(Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
            else:
                Path(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run folder: {path or 'runs'} cannot be made ({error})") from None
        folder = cls(Path(path))
        if folder.config_file.exists() or folder.last.exists():
            raise ConfigError(
                f"run folder: {path} already holds a run, expected a new folder "
                f"(continue that run with --resume {path})"
            )
        folder.write_config(config)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
            ConfigError: if it is not one.
        """
        folder = cls(Path(path))
        if not folder.config_file.is_file():
            raise ConfigError(f"run folder: {path} is no folder of a run, it has no config.yaml")
        return folder

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """The checkpoint of the best evaluated epoch, without optimizer state."""
        return self.path / "best.safetensors"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.json"

    @property
    def loss_file(self) -> Path:
        return self.path / "loss.csv"

    @property
    def curves_file(self) -> Path:
        return self.path / "curves.png"

    def read_config(self) -> Config:
        return parse_config(read_yaml(self.config_file))

    def write_config(self, config: Config) -> None:
        write_text(self.config_file, config.to_yaml())

    def read_metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds, empty where it is not there yet."""
        if not self.metrics_file.is_file():
            return {}
        metrics: dict[str, Any] = json.loads(self.metrics_file.read_text(encoding="utf-8"))
        return metrics

    def write_metrics(self, content: Mapping[str, Any]) -> None:
        write_text(self.metrics_file, json.dumps(content, indent=2) + "\n")

    def write_loss(self, history: Sequence[Mapping[str, Any]]) -> None:
        """One line an epoch: number, mean loss, seconds, pairs a second."""
        fields = ["epoch", "loss", "seconds", "pairs_per_second"]
        text = io.StringIO()
        writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self.loss_file, text.getvalue())

    def write_curves(
        self, history: Sequence[Mapping[str, Any]], best_by: str, best_epoch: int
    ) -> None:
        """The picture of the learning curves: loss, and each metric at the cutoff of `best_by`."""
        # The object interface draws off screen and keeps no global state, unlike pyplot.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        left.plot([r["epoch"] for r in history], [r["loss"] for r in history], color="tab:gray")
        left.set(title="training loss", xlabel="epoch", ylabel="mean loss of a step")
        evaluated = [record for record in history if metrics_of(record)]
        k = best_by.partition("@")[2]
        for metric in METRICS:
            name = f"{metric}@{k}"
            points = [metrics_of(record)[name] for record in evaluated]
            style = {"linewidth": 2.2} if name == best_by else {"linewidth": 1.0, "alpha": 0.7}
            right.plot([r["epoch"] for r in evaluated], points, marker="o", label=name, **style)
        if evaluated:
            label = f"best: epoch {best_epoch}"
            right.axvline(best_epoch, color="black", linestyle=":", label=label)
            figure.legend(loc="outside right upper", fontsize="small")
        else:
            right.text(0.5, 0.5, "no evaluation yet", ha="center", transform=right.transAxes)
        on_test = any(split_of(record) == "test" for record in evaluated)
        right.set(title="test" if on_test else "validation", xlabel="epoch")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
        write_atomically(self.curves_file, lambda path: figure.savefig(path, format="png", dpi=110))


def _make_first_free(stem: Path) -> Path:
    """Makes ``stem``, or else ``stem-2`` and so on: runs of one second get a folder each."""
    path = stem
    for count in itertools.count(2):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = stem.with_name(f"{stem.name}-{count}")
    return path
