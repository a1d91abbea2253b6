"""Which changes `benchmarks.compare` calls changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare

SETTINGS = {
    "op": "segment_sum", "graph": "g", "device": "cpu", "dtype": "float32",
    "direction": "forward", "width": 64, "heads": 2, "threads": 2,
}  # fmt: skip


def row(ours: tuple, theirs: tuple | None = None, **others: Any) -> dict[str, Any]:
    """A row with (20 % quantile, median, 80 % quantile) of both sides."""
    found = {**SETTINGS, "baseline": "peer" if theirs else None, "extra": {}, **others}
    for prefix, times in (("", ours), ("baseline_", theirs or (None, None, None))):
        low, middle, high = times
        found |= {f"{prefix}seconds": middle, f"{prefix}seconds_q20": low}
        found[f"{prefix}seconds_q80"] = high
    return found


def changed(before: dict, after: dict, threshold: float = 1.1) -> list[tuple[str, str, float]]:
    sides = (compare.sides({"rows": [r]}) for r in (before, after))
    return [(c.side, c.what, c.ratio) for c in compare.changes(*sides, threshold)]


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        ((9, 10, 11), (4, 5, 6), 2.0),  # apart, twice as fast
        ((4, 5, 6), (9, 10, 11), 0.5),  # apart, twice as slow
        ((4, 5, 9), (8, 10, 12), None),  # twice as slow, but the ranges overlap
        ((9, 10, 11), (11, 20, 30), None),  # they touch
        ((9.9, 10.0, 10.1), (10.4, 10.5, 10.6), None),  # apart, by a twentieth
        ((9.9, 10.0, 10.1), (10.9, 11.0, 11.1), 10 / 11),  # at the threshold
    ],
)
def test_a_time_changed(before: tuple, after: tuple, ratio: float | None) -> None:
    found = changed(row(before), row(after))
    if ratio is None:
        assert found == []
    else:
        assert found == [("ours", "time", pytest.approx(ratio))]


def test_the_threshold_is_the_caller_s() -> None:
    before, after = row((9.9, 10.0, 10.1)), row((14.9, 15.0, 15.1))
    assert changed(before, after, 1.4) != []
    assert changed(before, after, 1.6) == []


def test_memory_changed() -> None:
    same = (9, 10, 11)
    before = row(same, same, memory_bytes=100, baseline_memory_bytes=100)
    after = row(same, same, memory_bytes=50, baseline_memory_bytes=105)
    assert changed(before, after) == [("ours", "memory", 2.0)]
    assert changed(before, {**after, "memory_bytes": None}) == []


def test_baselines_are_compared_with_themselves_and_the_largest_change_comes_first() -> None:
    before = row((9, 10, 11), (90, 100, 110))
    after = row((4, 5, 6), (390, 400, 410))
    assert changed(before, after) == [("peer", "time", 0.25), ("ours", "time", 2.0)]


def test_ours_is_counted_once() -> None:
    rows = [row((9, 10, 11), (1, 2, 3)), row((9, 10, 11), (1, 2, 3), baseline="other")]
    found = compare.sides({"rows": rows})
    assert sorted(side for _, side in found) == ["other", "ours", "peer"]


def write(path: Path, rows: list[dict], **facts: Any) -> str:
    path.write_text(json.dumps({"rows": rows, **facts}))
    return str(path)


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = row((9, 10, 11), op="edge_dot")
    files = [
        write(tmp_path / "a.json", [row((9, 10, 11), (90, 100, 110))], commit="one"),
        write(tmp_path / "b.json", [row((4, 5, 6), (90, 100, 110)), new], commit="two"),
    ]
    assert compare.main(files) == 0
    printed = capsys.readouterr().out
    assert "commit: one -> two" in printed
    assert "2 sides of cases in both records, 0 only in A, 1 only in B" in printed
    assert "ours: 1 changes" in printed
    assert "baselines: nothing beyond noise" in printed
    (line,) = (text for text in printed.splitlines() if text.startswith("segment_sum"))
    for text in ("g, cpu, float32, D=64, H=2, threads=2", "5,000.000 ms", "2.00", "faster"):
        assert text in line
    assert compare.main([files[0], files[0]]) == 0
    assert "ours: nothing beyond noise" in capsys.readouterr().out


def test_files_that_are_none(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", [])
    (tmp_path / "text.json").write_text("text")
    (tmp_path / "list.json").write_text("[]")
    for name, why in (
        ("absent.json", "No such file"),
        ("text.json", "is no JSON"),
        ("list.json", "is no record of a benchmark"),
    ):
        with pytest.raises(SystemExit, match=why):
            compare.main([good, str(tmp_path / name)])
    with pytest.raises(SystemExit, match=r"--threshold is 0.5, expected at least 1"):
        compare.main([good, good, "--threshold", "0.5"])
