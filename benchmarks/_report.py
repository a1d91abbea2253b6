"""Results as Markdown: a table a question, every row in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks._cases import AXES, Case
from benchmarks._results import settings

Row = Mapping[str, Any]

COLUMNS = (
    "op", "case", "direction", "ours, ms", "against", "its ms", "ratio", "peak, MB", "its MB",
    "floor, ms", "share",
)  # fmt: skip
TITLES = {
    "op": "Every op",
    "graph": "Graph shapes",
    "edges": "Sizes",
    "width": "Widths",
    "heads": "Attention heads",
    "dtype": "Types",
    "threads": "Threads",
    "step": "Training step",
}


def base_of(rows: Sequence[Row]) -> Case:
    """The base of a record: that of the suite, with the number of threads that most rows have."""
    threads = [row["threads"] for row in rows if row.get("threads")]
    return Case("", threads=max(set(threads), key=threads.count)) if threads else Case("")


def axis_of(row: Row, base: Case) -> str:
    """The axis along which a row differs from the base; "op" where it does not."""
    if row.get("width") is None:
        return "step"
    if row["graph"] in AXES["edges"][1]:
        return "edges"
    changed = [
        n for n in ("graph", "width", "heads", "dtype", "threads") if row[n] != getattr(base, n)
    ]
    return changed[0] if changed else "op"


def along(rows: Sequence[Row], axis: str, base: Case) -> list[Row]:
    """The rows of an axis, with those of the base that belong to it."""
    chosen = [row for row in rows if axis_of(row, base) == axis]
    peers = {(row["op"], row["baseline"], row["direction"]) for row in chosen}
    at_base = [
        row
        for row in rows
        if axis_of(row, base) == "op" and (row["op"], row["baseline"], row["direction"]) in peers
    ]
    return at_base + chosen


def is_loss(row: Row) -> bool:
    """Whether the peer is the faster."""
    return row.get("ratio") is not None and row["ratio"] < 1


def within_noise(row: Row) -> bool:
    """Whether the 20 to 80 % ranges of both sides overlap."""
    low, high, their_low, their_high = (
        row.get(f"{side}seconds_q{q}") for side in ("", "baseline_") for q in (20, 80)
    )
    if low is None or high is None or their_low is None or their_high is None:
        return False
    return bool(low <= their_high and their_low <= high)


def cells(row: Row, base: Case) -> list[str]:
    """The row for `COLUMNS`."""
    axis = axis_of(row, base)
    case = {"op": "", "step": row["graph"], "edges": f"{row['extra'].get('edges', 0):,} edges"}.get(
        axis
    )
    if case is None:
        case = {"width": "D = ", "heads": "H = "}.get(axis, "") + str(row[axis])
        case += " threads" if axis == "threads" else ""
    ratio = _number(row.get("ratio"), digits=2)
    if is_loss(row):
        ratio = f"**{ratio}**" + (" (noise)" if within_noise(row) else "")
    return [
        row["op"],
        case,
        row["direction"],
        _timing(row, ""),
        row["baseline"] or "",
        row.get("note") or _timing(row, "baseline_"),
        ratio,
        _number(row.get("memory_bytes"), 1e-6),
        _number(row.get("baseline_memory_bytes"), 1e-6),
        _milliseconds(row.get("floor_seconds")),
        "" if row.get("floor_share") is None else f"{row['floor_share']:.0%}",
    ]


def _number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    return "" if value is None else f"{value * scale:,.{digits}f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:,.{0 if seconds > 0.1 else 1 if seconds > 0.01 else 3}f}"


def _timing(row: Row, side: str) -> str:
    if row.get(f"{side}seconds") is None:
        return ""
    low, high = (_milliseconds(row.get(f"{side}seconds_q{q}")) for q in (20, 80))
    return f"{_milliseconds(row[f'{side}seconds'])} ({low} to {high})"


def markdown(content: Mapping[str, Any]) -> str:
    """The whole record as a page."""
    return "\n".join(_lines(content)) + "\n"


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    rows: list[Row] = content["rows"]
    base = base_of(rows)
    yield "# Results"
    yield ""
    yield from _facts(content)
    compared = [row for row in rows if row.get("ratio") is not None]
    lost = [row for row in compared if is_loss(row)]
    beyond = [row for row in lost if not within_noise(row)]
    yield ""
    yield (
        f"{len(compared)} comparisons; the peer is the faster in {len(lost)} of them (bold), in "
        f"{len(beyond)} beyond noise. Brackets hold the 20 and 80 % quantiles."
    )
    for axis, title in TITLES.items():
        chosen = (
            along(rows, axis, base)
            if axis not in ("op", "step")
            else [row for row in rows if axis_of(row, base) == axis]
        )
        if chosen:
            yield ""
            yield f"## {title}"
            yield ""
            if axis == "op":
                yield (
                    f"{base.graph}, D = {base.width}, {base.heads} attention heads, {base.dtype}, "
                    f"{base.threads} threads; in the tables below one of these is another."
                )
                yield ""
            yield from table_lines(COLUMNS, (cells(row, base) for row in _sorted(chosen, axis)))
    if content.get("failures"):
        yield ""
        yield "## Failures"
        yield ""
        for what, why in content["failures"].items():
            yield f"- {what}: {why}"


def _sorted(rows: Sequence[Row], axis: str) -> list[Row]:
    """By op, then along the axis: numbers by size, names as they came."""

    def place(row: Row) -> Any:
        if axis == "edges":
            return row["extra"].get("edges", 0)
        value = row.get(axis)
        return value if isinstance(value, int) else order.index(settings(row))

    order = list(dict.fromkeys(settings(row) for row in rows))
    ops = list(dict.fromkeys(row["op"] for row in rows))
    return sorted(rows, key=lambda row: (ops.index(row["op"]), place(row)))


def _facts(content: Mapping[str, Any]) -> Iterator[str]:
    machine, versions = content["machine"], content["versions"]
    cards = dict.fromkeys(row["device"] for row in content["rows"] if row["device"] != "cpu")
    facts = {
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}",
        "card": ", ".join(cards),
        "system": machine["system"],
        "instruction set": content["kgrec_fast"]["cpu isa"],
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items() if v),
        "absent": ", ".join(name for name, v in versions.items() if not v),
        "commit": content["commit"],
        "date": content["date"],
        "bandwidth": ", ".join(
            f"{b / 1e9:.1f} GB/s with {n} threads"
            for n, b in content.get("copy_bytes_per_second", {}).items()
        ),
    }
    yield from table_lines(("", ""), ((k, str(v)) for k, v in facts.items() if v))


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
