"""What the benchmarks share: the command line, interleaved timing, the record of a measurement."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
# Packages whose versions decide what a baseline is worth.
PACKAGES = ("torch", "torch_scatter", "torch_geometric", "pyg_lib", "dgl", "numpy")


class MismatchError(RuntimeError):
    """Two sides that should agree do not; nothing is timed then."""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls: the median, and the quantiles at 20 and 80 percent."""

    median: float
    q20: float
    q80: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summary of at least one duration."""
        if not seconds:
            raise ValueError("seconds is empty, expected at least one duration")
        return cls(
            statistics.median(seconds), quantile(seconds, 0.2), quantile(seconds, 0.8), len(seconds)
        )


@dataclass(frozen=True)
class Row:
    """One measurement, beside its baseline where there is one.

    ``ratio`` and ``memory_ratio`` say how many times less we take than the baseline;
    ``floor_share`` how much of our time the floor is; ``note`` why a baseline has no time.
    """

    op: str
    graph: str
    device: str
    dtype: str
    direction: str
    baseline: str | None
    seconds: float
    baseline_seconds: float | None = None
    ratio: float | None = None
    memory_ratio: float | None = None
    seconds_q20: float | None = None
    seconds_q80: float | None = None
    baseline_seconds_q20: float | None = None
    baseline_seconds_q80: float | None = None
    calls: int | None = None
    memory_bytes: int | None = None
    baseline_memory_bytes: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    heads: int | None = None
    threads: int | None = None
    floor_seconds: float | None = None
    floor_share: float | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        ours: Timing,
        theirs: Timing | None = None,
        *,
        op: str,
        graph: str,
        direction: str,
        baseline: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        memory: tuple[int | None, int | None] = (None, None),
        extra: Mapping[str, Any] | None = None,
    ) -> Row:
        """A row from timings and peaks of memory (ours, theirs)."""
        return cls(
            op,
            graph,
            device,
            dtype,
            direction,
            baseline,
            ours.median,
            theirs.median if theirs else None,
            ratio(theirs.median, ours.median) if theirs else None,
            ratio(memory[1], memory[0]),
            ours.q20,
            ours.q80,
            theirs.q20 if theirs else None,
            theirs.q80 if theirs else None,
            ours.calls,
            *memory,
            extra or {},
        )


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile of some values, with linear interpolation between neighbours."""
    if not values or not 0 <= share <= 1:
        raise ValueError(f"share is {share} of {len(values)} values, expected [0, 1] of some")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def ratio(theirs: float | None, ours: float | None) -> float | None:
    """How many times more they take than we; None where one is not known or ours is 0."""
    return theirs / ours if theirs is not None and ours else None


def interleave(
    sides: Sequence[Callable[[], object]],
    *,
    rounds: int = 11,
    budget: float = 60.0,
    least: int = 3,
    warmup: int = 1,
    in_a_row: int = 1,
) -> list[Timing]:
    """Times callables in turn, A B A B ..., so that a noisy moment strikes all of them.

    Args:
        sides: What to time, without arguments.
        rounds: How often it is each one's turn.
        budget: No new round begins after so many seconds...
        least: ...once there were so many.
        warmup: Calls of each before, which are not timed, and do not go on after the budget.
        in_a_row: Calls of one side each time, all of them timed.

    Returns:
        One timing a side.
    """
    begin = time.perf_counter()
    for side in sides:
        for _ in range(warmup):
            if time.perf_counter() - begin <= budget:
                side()
    seconds: list[list[float]] = [[] for _ in sides]
    collected, begin = gc.isenabled(), time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= least and time.perf_counter() - begin > budget:
                break
            for side, durations in zip(sides, seconds, strict=True):
                for _ in range(in_a_row):
                    start = time.perf_counter()
                    side()
                    durations.append(time.perf_counter() - start)
    finally:
        if collected:
            gc.enable()
    return [Timing.of(durations) for durations in seconds]


def check_close(
    what: str,
    ours: Tensor,
    theirs: Tensor,
    oracle: Tensor | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Compares a result before anything is timed.

    With a float64 oracle: our largest error may be twice that of the baseline in the same dtype,
    plus 1e-6 of the largest value. Without: the two may differ by `tolerance` of it.

    Returns:
        Our largest difference from the oracle (or the baseline), relative to the largest value.

    Raises:
        MismatchError: They differ by more, or in shape, or something is not finite.
    """
    if ours.shape != theirs.shape or not bool(torch.isfinite(ours).all()):
        raise MismatchError(f"{what}: shape {list(ours.shape)} or values are not as expected")
    ours, theirs = ours.detach(), theirs.detach()
    exact = (theirs if oracle is None else oracle.detach()).double()
    scale = max(float(exact.abs().max()), 1e-30)
    error = float((ours.double() - exact).abs().max()) / scale
    allowed = tolerance
    if oracle is not None:
        allowed = 2 * float((theirs.double() - exact).abs().max()) / scale + 1e-6
    if not error <= allowed:
        raise MismatchError(f"{what}: differs by {error:.2e} of the largest value, {allowed:.2e}")
    return error


# -- the record -----------------------------------------------------------------------------------


def machine() -> dict[str, str | int | float]:
    """The machine, and how busy it is as the benchmark begins."""
    facts: dict[str, str | int | float] = {
        "cpu": _first_line("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count() or 0,
        "memory": _first_line("/proc/meminfo", "MemTotal") or "unknown",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    return facts


def _first_line(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(found, None)


def commit() -> str:
    """The commit of the repository, with "+" where files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def record(rows: Iterable[Row], **extra: Any) -> dict[str, Any]:
    """Everything a reader of the numbers needs: machine, versions, commit, rows."""
    from kgrec_fast.info import describe

    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions,
        # No path of this machine says anything to a reader of another.
        "kgrec_fast": {k: v.replace(f"{ROOT}/", "") for k, v in describe().items()},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "rows": [asdict(row) for row in rows],
        **extra,
    }


# -- the command line -----------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    result = argparse.ArgumentParser(description=(description or "").strip().partition("\n")[0])
    result.add_argument("--json", type=Path, metavar="FILE", help="write the record here")
    result.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    result.add_argument("--quick", action="store_true", help="tiny inputs, to see that it runs")
    return result


def start(options: argparse.Namespace) -> None:
    """Pins the threads of this process and of those it starts.

    Raises:
        SystemExit: The number is not positive.
    """
    if options.threads < 1:
        raise SystemExit(f"--threads is {options.threads}, expected a positive number")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    torch.set_num_threads(options.threads)


def finish(options: argparse.Namespace, rows: Sequence[Row], **extra: Any) -> None:
    """Prints the rows and writes the record, where a file was given."""
    if rows:
        print(table(COLUMNS, [_cells(row) for row in rows]))
    content = record(rows, **extra)
    print(f"\n{content['machine']}, commit {content['commit']}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"written to {options.json}")


COLUMNS = (
    "op", "graph", "direction", "ms", "20-80 %", "baseline", "ms", "20-80 %", "ratio",
    "peak MB", "baseline MB", "memory ratio",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    def range_of(low: float | None, high: float | None) -> str:
        return "" if low is None or high is None else f"{low * 1e3:.1f}-{high * 1e3:.1f}"

    def number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
        return "" if value is None else f"{value * scale:,.{digits}f}"

    return [
        row.op,
        row.graph,
        row.direction,
        number(row.seconds, 1e3, 2),
        range_of(row.seconds_q20, row.seconds_q80),
        row.baseline or "",
        number(row.baseline_seconds, 1e3),
        range_of(row.baseline_seconds_q20, row.baseline_seconds_q80),
        number(row.ratio),
        number(row.memory_bytes, 1e-6),
        number(row.baseline_memory_bytes, 1e-6),
        number(row.memory_ratio),
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
