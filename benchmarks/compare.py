"""What changed beyond noise between two records of the benchmarks.

    python -m benchmarks.compare A.json B.json

Ours and every baseline are compared with themselves, case by case. A time changed where the 20 to
80 % ranges of both records do not overlap and the medians differ by the threshold or more, a peak
of memory where it differs by the threshold or more. Where baselines changed as well, it may be the
machine that did.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _results
from benchmarks._cases import OURS
from benchmarks._harness import table

THRESHOLD = 1.1
COLUMNS = ("op", "case", "direction", "side", "what", "before", "after", "ratio", "")


@dataclass(frozen=True)
class Measured:
    """A side of a case: seconds with their quantiles, bytes."""

    seconds: float
    q20: float
    q80: float
    memory: int | None


@dataclass(frozen=True)
class Change:
    """A figure of a side of a case that changed; above 1 the ratio is the better."""

    settings: tuple[Any, ...]
    side: str
    what: str
    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.before / self.after if self.after else float("inf")


Key = tuple[tuple[Any, ...], str]  # settings and name
Sides = dict[Key, Measured]


def sides(content: Mapping[str, Any]) -> Sides:
    """Ours and the baselines of a record, by settings and name. Ours stands in a row for each
    baseline: the first counts.
    """
    found: Sides = {}
    for row in content["rows"]:
        for name, prefix in ((OURS, ""), (row.get("baseline"), "baseline_")):
            seconds = row.get(f"{prefix}seconds")
            if name is None or seconds is None:
                continue
            low, high = (row.get(f"{prefix}seconds_q{q}") for q in (20, 80))
            measured = Measured(
                seconds,
                seconds if low is None else low,
                seconds if high is None else high,
                row.get(f"{prefix}memory_bytes"),
            )
            found.setdefault((_results.settings(row), name), measured)
    return found


def changes(before: Sides, after: Sides, threshold: float = THRESHOLD) -> list[Change]:
    """What changed of the sides that are in both, the largest ratio first."""
    found = [
        change
        for key in before.keys() & after.keys()
        for change in _changes(key, before[key], after[key], threshold)
    ]
    return sorted(found, key=lambda c: (-max(c.ratio, 1 / max(c.ratio, 1e-30)), str(c.settings)))


def _changes(key: Key, old: Measured, new: Measured, threshold: float) -> Iterator[Change]:
    apart = new.q20 > old.q80 or new.q80 < old.q20
    if apart and _differs(old.seconds, new.seconds, threshold):
        yield Change(*key, "time", old.seconds, new.seconds)
    if old.memory and new.memory and _differs(old.memory, new.memory, threshold):
        yield Change(*key, "memory", old.memory, new.memory)


def _differs(old: float, new: float, threshold: float) -> bool:
    return max(old, new) >= threshold * min(old, new)


def _cells(change: Change) -> list[str]:
    op, graph, device, dtype, direction, width, heads, threads = change.settings
    given = {"D": width, "H": heads, "threads": threads}
    case = [graph, device, dtype, *(f"{k}={v}" for k, v in given.items() if v is not None)]
    scale, unit = (1e3, "ms") if change.what == "time" else (1e-6, "MB")
    better = "faster" if change.what == "time" else "less"
    worse = "slower" if change.what == "time" else "more"
    return [
        op,
        ", ".join(case),
        direction,
        change.side,
        change.what,
        f"{change.before * scale:,.3f} {unit}",
        f"{change.after * scale:,.3f} {unit}",
        f"{change.ratio:.2f}",
        better if change.ratio > 1 else worse,
    ]


def _circumstances(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What differs but the numbers."""
    for name in ("commit", "date"):
        yield f"{name}: {before.get(name)} -> {after.get(name)}"
    machines = [{**r.get("machine", {}), **r.get("versions", {})} for r in (before, after)]
    for name in sorted(machines[0].keys() | machines[1].keys()):
        old, new = (m.get(name) for m in machines)
        if old != new:
            yield f"{name}: {old} -> {new}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what changed; returns 0 whatever that is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD,
        help=f"the least ratio that is a change (default {THRESHOLD})",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.threshold < 1:
        raise SystemExit(f"--threshold is {options.threshold:g}, expected at least 1")
    records = [_results.read(path) for path in (options.before, options.after)]
    old, new = (sides(content) for content in records)
    found = changes(old, new, options.threshold)
    print("\n".join(_circumstances(*records)))
    both = old.keys() & new.keys()
    print(
        f"{len(both)} sides of cases in both records, {len(old.keys() - both)} only in A, "
        f"{len(new.keys() - both)} only in B"
    )
    for who, chosen in (
        ("ours", [c for c in found if c.side == OURS]),
        ("baselines", [c for c in found if c.side != OURS]),
    ):
        print(f"\n{who}: {len(chosen)} changes" if chosen else f"\n{who}: nothing beyond noise")
        if chosen:
            print(table(COLUMNS, [_cells(change) for change in chosen]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
