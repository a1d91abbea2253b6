"""Files of results: reading, adding to, and telling which rows are of the same case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks._cases import Case

# What a measurement is of; with the baseline, a row's key.
SETTINGS = ("op", "graph", "device", "dtype", "direction", "width", "heads", "threads")


def settings(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """All that tells a row's case from others, but for the baseline."""
    return tuple(row.get(name) for name in SETTINGS)


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return *settings(row), row.get("baseline")


def read(path: Path) -> dict[str, Any]:
    """A record as benchmarks write it.

    Raises:
        SystemExit: There is no such file, or it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise SystemExit(f"{path} is no record of a benchmark, expected an object with rows")
    return content


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a record, a line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**content, "rows": []}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in content["rows"])
    text = text.replace('"rows": []', f'"rows": [\n{rows}\n ]')
    path.write_text(text + "\n", encoding="utf-8")


def added(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A new record with those rows of one before that it does not have itself.

    Raises:
        SystemExit: They are of different machines, versions or commits.
    """
    for name, old, now in (
        ("machine", _machine(before), _machine(new)),
        ("versions", before.get("versions"), new.get("versions")),
        ("commit", before.get("commit"), new.get("commit")),
    ):
        if old != now:
            raise SystemExit(f"--update: {name} was {old}, now is {now}, expected the same")
    fresh = {key(row) for row in new["rows"]}
    rows = [row for row in before["rows"] if key(row) not in fresh]
    merged = {**new, "rows": [*rows, *new["rows"]]}
    for name in ("graphs", "failures", "copy_bytes_per_second"):
        merged[name] = {**before.get(name, {}), **new.get(name, {})}
    for row in new["rows"]:  # what failed before and was measured now: a case, or a training step
        for what in (str(case_of(row)), f"{row['op']}, {row['graph']}"):
            merged["failures"].pop(what, None)
    return merged


def case_of(row: Mapping[str, Any]) -> Case:
    """The case that a row of the kernel suite is of."""
    given: list[Any] = [row.get(f.name) for f in fields(Case) if f.name in SETTINGS]
    return Case(*given)


def _machine(content: Mapping[str, Any]) -> tuple[Any, ...]:
    facts = content.get("machine", {})
    return facts.get("cpu"), facts.get("cores")
