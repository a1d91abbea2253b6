"""What a run says on the terminal: tables and a progress bar, or lines where it cannot redraw."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from kgrec_fast.training.metrics import METRICS
from kgrec_fast.training.protocol import metrics_of, split_of

_TITLES = {"ndcg": "NDCG", "mrr": "MRR"}
# Without a terminal: a line for an epoch, but none sooner than this after the last.
_QUIET_SECONDS = 10.0
_MANY_EVALUATIONS = 20


class Reporter:
    """What the trainer tells while it runs. This one keeps silent; subclasses override."""

    def start(self, *, epochs: int, pairs: int, evaluations: int, done: int) -> None:
        """Training begins or goes on: `done` of ``epochs * pairs`` pairs are behind."""

    def epoch(self, number: int) -> None:
        """An epoch begins or goes on."""

    def step(self, loss: float, pairs: int) -> None:
        """A step was made."""

    def epoch_end(self, record: Mapping[str, Any], *, is_best: bool) -> None:
        """An epoch, with its evaluation if it has one, is over."""

    def stop(self) -> None:
        """Training is over, for whatever reason."""

    def note(self, text: str) -> None:
        """Something that whoever runs the training may want to know."""


class ConsoleReporter(Reporter):
    """Reports to a rich console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._epochs = 0
        self._tables = True
        self._last_line = -math.inf

    def note(self, text: str) -> None:
        self.console.print(text, style="yellow", markup=False, highlight=False)

    def start(self, *, epochs: int, pairs: int, evaluations: int, done: int) -> None:
        self._epochs = epochs
        # A log file gets tables too, unless they would flood it.
        self._tables = self.console.is_interactive or evaluations <= _MANY_EVALUATIONS
        if not self.console.is_interactive:
            return
        self._progress = Progress(
            SpinnerColumn("line" if self.console.options.ascii_only else "dots"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "training", total=epochs * pairs, completed=done, loss="-", speed="- pairs/s"
        )
        self._progress.start()

    def epoch(self, number: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=f"epoch {number}/{self._epochs}")

    def step(self, loss: float, pairs: int) -> None:
        if self._progress is None:
            return
        self._progress.update(self._task, advance=pairs, loss=f"{loss:.4f}")
        speed = self._progress.tasks[0].speed
        if speed:
            self._progress.update(self._task, speed=f"{speed:,.0f} pairs/s")

    def epoch_end(self, record: Mapping[str, Any], *, is_best: bool) -> None:
        now = time.monotonic()
        metrics = metrics_of(record)
        evaluated = bool(metrics)
        table = evaluated and self._tables
        waited = not self.console.is_interactive and now - self._last_line >= _QUIET_SECONDS
        if table or waited:
            self._last_line = now
            self.console.print(
                f"epoch {record['epoch']}/{self._epochs}: loss {record['loss']:.4f}, "
                f"{record['seconds']:.1f} s, {record['pairs_per_second']:,.0f} pairs/s"
                + (f", {_line(metrics)}" if evaluated and not table else "")
                + (", best so far" if is_best else ""),
                soft_wrap=True,
            )
        if table:
            title = f"{split_of(record)}, epoch {record['epoch']}"
            self.console.print(metrics_table(title, metrics))

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Metrics as rows, cutoffs as columns."""
    cutoffs = sorted({int(name.partition("@")[2]) for name in metrics})
    table = _table(title)
    _add_column(table, "")
    for k in cutoffs:
        _add_column(table, f"@{k}", justify="right")
    for metric in METRICS:
        label = _TITLES.get(metric, metric.capitalize())
        table.add_row(label, *(f"{metrics[f'{metric}@{k}']:.4f}" for k in cutoffs))
    return table


def dataset_table(dataset: Any) -> Table:
    """The figures of a data set."""
    figures = dict(dataset.summary())
    table = _table(f"data set {figures.pop('name')}", show_header=False)
    _add_column(table, "")
    _add_column(table, "", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    return table


def plain_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A table of texts; numbers are set to the right."""
    table = _table(title)
    filled = [list(row) for row in rows]
    for place, column in enumerate(columns):
        numeric = bool(filled) and isinstance(filled[0][place], int | float)
        _add_column(table, column, justify="right" if numeric else "left")
    for row in filled:
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row))
    return table


def _table(title: str, **options: Any) -> Table:
    # rich breaks a title that is wider than its table.
    return Table(title=title, title_justify="left", min_width=len(title), **options)


def _add_column(table: Table, header: str, justify: JustifyMethod = "left") -> None:
    # Where it is narrow, rich would cut tokens and numbers.
    table.add_column(header, justify=justify, overflow="fold")


def _line(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
