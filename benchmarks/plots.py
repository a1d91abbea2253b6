"""Pictures of a record of `benchmarks.run`: speed-up by shape, time and memory by size, a step.

python -m benchmarks.plots results/results.json --out results
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import _report, _results
from benchmarks._cases import BOTH, OURS
from benchmarks._measured_op import SCATTERED
from benchmarks._ops import PLAIN
from benchmarks._step_parts import WHOLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

USUAL = (SCATTERED, PLAIN)
OURS_COLOR, THEIRS_COLOR, FLOOR_COLOR = "#1b7f5c", "#b5542a", "#777777"
OP_COLORS = ("#1b7f5c", "#3b6fb5", "#c9922e", "#8a4f9e", "#b5542a", "#555555")
# The same file from the same numbers: no date, no random ids.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "kgrec_fast",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "figure.constrained_layout.use": True,
}


def write(content: Mapping[str, Any], folder: Path, suffix: str = "svg") -> list[Path]:
    """Writes the tables as results.md, and every picture; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "results.md"
    page.write_text(_report.markdown(content), encoding="utf-8")
    return [page, *draw(content, folder, suffix)]


def draw(content: Mapping[str, Any], folder: Path, suffix: str = "svg") -> list[Path]:
    """Writes every picture that the record has rows for; returns their paths."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plt.rc_context(STYLE):
        for name, picture in PICTURES.items():
            figure = picture(content["rows"])
            if figure is None:
                continue
            path = folder / f"{name}.{suffix}"
            figure.savefig(path, metadata={"Date": None} if suffix == "svg" else None, dpi=130)
            plt.close(figure)
            paths.append(path)
    return paths


def _varied(rows: Sequence[Row], axis: str) -> dict[str, list[Row]]:
    """Rows of both directions against the usual baseline, along an axis, by op."""
    base = _report.base_of(rows)
    chosen = [
        row
        for row in _report.along(rows, axis, base)
        if row["direction"] == BOTH and row["baseline"] in USUAL and row["ratio"] is not None
    ]
    by_op: dict[str, list[Row]] = {}
    for row in chosen:
        by_op.setdefault(row["op"], []).append(row)
    return {op: found for op, found in by_op.items() if len(found) > 1}


def _both_sides(row: Row) -> tuple[tuple[str, str, str], ...]:
    """What a side's columns begin with, its colour and its name; ours is drawn over the other."""
    return ("baseline_", THEIRS_COLOR, row["baseline"]), ("", OURS_COLOR, OURS)


def speedup_by_shape(rows: Sequence[Row]) -> Figure | None:
    """Bars: how many times faster, by graph and op."""
    by_op = _varied(rows, "graph")
    if not by_op:
        return None
    import matplotlib.pyplot as plt

    graphs = list(dict.fromkeys(row["graph"] for found in by_op.values() for row in found))
    figure, axes = plt.subplots(figsize=(7.2, 0.5 + 0.55 * len(graphs)))
    height = 0.8 / len(by_op)
    for number, (op, found) in enumerate(by_op.items()):
        places = [graphs.index(row["graph"]) + (number + 0.5) * height - 0.4 for row in found]
        bars = axes.barh(
            places, [row["ratio"] for row in found], height * 0.9, label=op, color=OP_COLORS[number]
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks(range(len(graphs)), graphs)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"times faster than {found[0]['baseline']}, forward and backward")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def time_by_size(rows: Sequence[Row]) -> Figure | None:
    """Lines: milliseconds by edges, both sides and the floor."""

    def lines(axes: Axes, found: Sequence[Row], edges: list[int]) -> None:
        for side, color, label in _both_sides(found[0]):
            middle, low, high = (
                [1e3 * row[f"{side}seconds{q}"] for row in found] for q in ("", "_q20", "_q80")
            )
            axes.plot(edges, middle, "o-", color=color, label=label)
            axes.fill_between(edges, low, high, color=color, alpha=0.2, linewidth=0)
        floor = [1e3 * row["floor_seconds"] for row in found]
        axes.plot(edges, floor, "--", color=FLOOR_COLOR, label="traffic floor")
        axes.set_ylabel("ms, forward and backward")

    return _by_size(rows, lines)


def memory_by_size(rows: Sequence[Row]) -> Figure | None:
    """Lines: peak of memory by edges, both sides."""

    def lines(axes: Axes, found: Sequence[Row], edges: list[int]) -> None:
        for side, color, label in _both_sides(found[0]):
            peaks = [(row[f"{side}memory_bytes"] or 0) / 1e6 for row in found]
            # A page is the least that is told: what takes less stands there.
            axes.plot(edges, [max(peak, 4e-3) for peak in peaks], "o-", color=color, label=label)
        axes.set_ylabel("peak of a call, MB")

    measured = [row for row in rows if row.get("memory_bytes") is not None]
    return _by_size(measured, lines)


def _by_size(
    rows: Sequence[Row], lines: Callable[[Axes, Sequence[Row], list[int]], None]
) -> Figure | None:
    """A panel for each op, log-log."""
    by_op = _varied(rows, "edges")
    if not by_op:
        return None
    import matplotlib.pyplot as plt

    columns = min(3, len(by_op))
    height = -(-len(by_op) // columns)
    figure, panels = plt.subplots(
        height, columns, figsize=(3.4 * columns, 3.0 * height), squeeze=False, sharex=True
    )
    for axes in panels.flat[len(by_op) :]:
        axes.set_visible(False)
    for axes, (op, found) in zip(panels.flat, by_op.items(), strict=False):
        found = sorted(found, key=lambda row: row["extra"]["edges"])
        lines(axes, found, [row["extra"]["edges"] for row in found])
        axes.set(xscale="log", yscale="log", title=op)
    for axes in panels[-1]:
        axes.set_xlabel("edges")
    panels.flat[0].legend(fontsize=8, frameon=False)
    for axes in panels.flat[1:]:
        axes.set_ylabel("")
    return figure


def step_by_part(rows: Sequence[Row]) -> Figure | None:
    """Bars: milliseconds of the parts of a training step, ours and the baseline's."""
    steps = [row for row in rows if row["op"] == "train_step" and "parts" in row["extra"]]
    if not steps:
        return None
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(steps), 1, figsize=(7.2, 0.6 + 2.6 * len(steps)), squeeze=False
    )
    for axes, row in zip(panels.flat, steps, strict=True):
        ours, theirs = row["extra"]["parts"], row["extra"]["baseline_parts"]
        names = [name for name in ours if name != WHOLE]
        for shift, parts, color, label in (
            (-0.2, theirs, THEIRS_COLOR, row["baseline"]),
            (0.2, ours, OURS_COLOR, "ours"),
        ):
            places = [number + shift for number in range(len(names))]
            values = [1e3 * parts.get(name, 0.0) for name in names]
            bars = axes.barh(places, values, 0.38, color=color, label=label)
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.grid(axis="y", visible=False)
        whole = [1e3 * row[f"{side}seconds"] for side in ("", "baseline_")]
        axes.set_title(
            f"{row['graph']}: {whole[0]:,.0f} ms in place of {whole[1]:,.0f}", fontsize=10
        )
    figure.legend(
        *panels.flat[0].get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="outside lower center",
        ncols=2,
    )
    panels.flat[-1].set_xlabel("ms of a step (logarithmic)")
    return figure


PICTURES: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
    "speedup_by_shape": speedup_by_shape,
    "time_by_size": time_by_size,
    "memory_by_size": memory_by_size,
    "step_by_part": step_by_part,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes what a record has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("record", type=Path, metavar="FILE", help="that `benchmarks.run` wrote")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: the record's")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args(arguments)
    content = _results.read(options.record)
    for path in write(content, options.out or options.record.parent, options.format):
        print(f"written to {path}")


if __name__ == "__main__":
    main()
