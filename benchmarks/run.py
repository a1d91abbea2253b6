"""Every op, and a training step, against everything it can be measured against.

    python -m benchmarks.run --suite kernels --device cpu --out results

Correctness first: values and gradients may be at most twice as far from the float64 reference as
the reference is in the same type; what is wrong is not timed. Then all implementations are called
in turn. Peaks of memory are measured apart, in a fresh process. The folder gets a record
(results.json), the same as tables (results.md) and plots; docs/benchmarks/README.md explains them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import _report, _results, baselines, plots, train_step
from benchmarks._cases import AXES, BASE_AXIS, OURS, Case, cases, chosen_ops
from benchmarks._device import Device, why_not
from benchmarks._graphs import ALIBABA, build, load
from benchmarks._harness import Row, parser, record, start, table
from benchmarks._kernels import Kernels, peaks_of_cases
from benchmarks._ops import measured_ops
from benchmarks._peers import COMPILED
from benchmarks._traffic import LEGEND
from kgrec_fast.training.memory import keep_freed_memory

KERNELS, STEP, ALL = "kernels", "step", "all"
AT_A_TIME = 8  # cases between measurements of memory
STEP_DATA = ("ml-100k", ALIBABA)
NOTES = {
    "forward": "without gradient",
    "backward": "the pass alone in time; memory is that of forward and backward together",
    "memory": "peak of a call above what was there before, on the CPU in a fresh process; "
    "not measured for torch.compile there",
    "error": "largest difference from the float64 reference, relative to the largest value",
    "floor_seconds": "least_bytes by copy_bytes_per_second, see benchmarks._traffic.floor_seconds",
    "floor_share": "floor_seconds / seconds",
}


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--suite", choices=(KERNELS, STEP, ALL), default=ALL)
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument("--only", nargs="+", metavar="OP", default=[], help="only these ops")
    result.add_argument(
        "--axes", nargs="+", choices=(BASE_AXIS, *AXES), default=[],
        help=f'what is varied; "{BASE_AXIS}" is every op at the base (default: all)',
    )  # fmt: skip
    result.add_argument("--without", nargs="+", metavar="PEER", default=[], help="not these peers")
    result.add_argument("--data", nargs="+", default=list(STEP_DATA), help="of the step suite")
    result.add_argument("--rounds", type=int, default=30, help="calls of each side, at most")
    result.add_argument(
        "--budget", type=float, default=1.0, help="seconds a measurement, but three calls a side"
    )
    result.add_argument("--out", type=Path, metavar="FOLDER", help="write record, tables, plots")
    result.add_argument(
        "--update", action="store_true", help="keep the folder's rows that are not measured again"
    )
    result.add_argument("--no-memory", action="store_true", help="leave out the peaks of memory")
    return result


class Suite:
    """Rows as they come, written after each case: a run that is cut short keeps what it has."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[Row] = []
        self.failures: dict[str, str] = {}
        self.facts: dict[str, Any] = {"legend": LEGEND, "notes": NOTES}
        folder: Path | None = options.out
        self.path: Path | None = options.json or (folder / "results.json" if folder else None)
        self.before: dict[str, Any] | None = None
        if options.update and self.path is not None and self.path.is_file():
            self.before = _results.read(self.path)
            self.content()  # refuses another machine before anything is measured

    def content(self) -> dict[str, Any]:
        new = record(self.rows, failures=self.failures, **self.facts)
        return _results.added(self.before, new) if self.before else new

    def fail(self, what: str, error: Exception) -> None:
        self.failures[what] = str(error)
        print(f"{what}: {error}", flush=True)

    def write(self) -> None:
        if self.path is not None:
            _results.write(self.path, self.content())


def run_kernels(suite: Suite, kernels: Kernels, some: Sequence[Case]) -> None:
    """Some cases at a time: their times, then their peaks of memory."""
    for begin in range(0, len(some), AT_A_TIME):
        chosen = some[begin : begin + AT_A_TIME]
        timed: dict[Case, list[Row]] = {}
        for number, case in enumerate(chosen, begin + 1):
            print(f"[{number}/{len(some)}] {case}", flush=True)
            try:
                timed[case] = kernels.measure(case)
            except RuntimeError as error:  # a mismatch, too little memory, a CUDA error
                suite.fail(str(case), error)
            suite.rows += timed.get(case, [])
            suite.facts["graphs"] = kernels.graphs
            speeds = {str(n): speed for n, speed in kernels.bandwidths.items()}
            suite.facts["copy_bytes_per_second"] = speeds
            suite.write()
        if timed and not suite.options.no_memory and not kernels.on.is_cuda:
            count = sum(map(len, timed.values()))
            suite.rows[len(suite.rows) - count :] = measured_memory(suite, timed, kernels.quick)
            suite.write()


def measured_memory(suite: Suite, timed: dict[Case, list[Row]], quick: bool) -> list[Row]:
    """The rows with peaks of memory; as they are where the process for these fails."""
    names = [
        {r.baseline for r in rows if r.baseline and r.baseline_seconds and r.baseline != COMPILED}
        for rows in timed.values()
    ]
    try:
        found = peaks_of_cases(list(timed), names, quick)
    except RuntimeError as error:
        suite.fail(f"peaks of memory of {next(iter(timed))} and the cases after it", error)
        return [row for rows in timed.values() for row in rows]
    pairs = zip(timed.values(), found, strict=True)
    return [with_memory(row, peaks) for rows, peaks in pairs for row in rows]


def with_memory(row: Row, peaks: dict[str, dict[str, int | None]]) -> Row:
    """The row with the peaks of both sides in its direction."""
    ours, theirs = (peaks.get(name or "", {}).get(row.direction) for name in (OURS, row.baseline))
    ratio = theirs / ours if ours and theirs is not None else None
    return replace(row, memory_bytes=ours, baseline_memory_bytes=theirs, memory_ratio=ratio)


def run_steps(suite: Suite) -> None:
    """A training step on each data set."""
    options, baseline = suite.options, baselines.find_baseline()
    keep_freed_memory()  # for both sides, as `kgrec-fast train`; ops by themselves do without
    # Five steps in a row, three times at least: a step's budget is that of as many measurements.
    arguments = ["--device", options.device, "--threads", str(options.threads)]
    arguments += ["--budget", str(options.budget * 20)]
    arguments += ["--quick"] * options.quick + ["--no-memory"] * options.no_memory
    step_options = train_step.arguments_parser().parse_args(arguments)
    for name in options.data[:1] if options.quick else options.data:
        try:
            suite.rows.append(train_step.measure(name, baseline, step_options))
        except RuntimeError as error:  # a mismatch, too little memory, a step that is not captured
            suite.fail(f"train_step, {name}", error)
        suite.write()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns 0, 1 where an op failed, 2 without a GPU where one is asked for."""
    options = _arguments().parse_args(arguments)
    device = torch.device(options.device)
    if found := why_not(device):
        print(found[0])
        return found[1]
    start(options)
    tiny = build(load(ALIBABA, quick=True)[0])
    ops = chosen_ops([op.name for op in measured_ops(tiny, None)], options.only)
    suite = Suite(options)
    if options.suite in (KERNELS, ALL):
        on = Device(device, options.rounds, options.budget)
        if options.quick:
            on.rounds, on.buffer_bytes = 3, 1 << 20
        kernels = Kernels(on, options.quick, {*options.without}, on.name)
        some = cases(ops, options.axes, device.type, options.threads, options.quick)
        run_kernels(suite, kernels, some)
    if options.suite in (STEP, ALL):
        run_steps(suite)
    finish(suite)
    return 1 if suite.failures else 0


def finish(suite: Suite) -> None:
    """Prints the rows; writes what was asked for."""
    rows = [asdict(row) for row in suite.rows]
    base = _report.base_of(rows)
    lines = [_report.cells(row, base) for row in rows]
    if lines:
        print(table(_report.COLUMNS, [[cell.replace("*", "") for cell in line] for line in lines]))
    suite.write()
    if suite.path is not None:
        print(f"written to {suite.path}")
    if (folder := suite.options.out) is not None:
        for path in plots.write(suite.content(), folder):
            print(f"written to {path}")


if __name__ == "__main__":
    raise SystemExit(main())
