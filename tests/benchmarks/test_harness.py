"""The helpers of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import _harness as harness
from benchmarks._memory import peak_in_fresh_process

FIELDS = {
    "op": str,
    "graph": str,
    "device": str,
    "dtype": str,
    "direction": str,
    "baseline": str,
    "seconds": float,
    "baseline_seconds": float,
    "ratio": float,
    "memory_ratio": float,
}


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_quantiles_are_those_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).random(count).tolist()
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert harness.quantile(values, share) == pytest.approx(np.quantile(values, share))
    timing = harness.Timing.of(values)
    assert (timing.q20, timing.median, timing.q80) == pytest.approx(
        np.quantile(values, [0.2, 0.5, 0.8])
    )
    assert timing.calls == count


def test_nothing_has_no_quantile() -> None:
    with pytest.raises(ValueError, match="share"):
        harness.quantile([], 0.5)
    with pytest.raises(ValueError, match="share"):
        harness.quantile([1.0], 1.1)
    with pytest.raises(ValueError, match="seconds"):
        harness.Timing.of([])


def test_ratio() -> None:
    assert harness.ratio(6.0, 2.0) == 3.0
    assert harness.ratio(None, 2.0) is None
    assert harness.ratio(6.0, None) is None
    assert harness.ratio(6.0, 0) is None


def test_sides_alternate() -> None:
    calls: list[str] = []
    sides = [lambda: calls.append("a"), lambda: calls.append("b")]
    timings = harness.interleave(sides, rounds=4, warmup=1)
    assert calls == ["a", "b"] * 5
    assert [t.calls for t in timings] == [4, 4]


def test_budget_ends_the_rounds_but_not_before_the_least() -> None:
    timings = harness.interleave([lambda: None], rounds=100, budget=0.0, least=3)
    assert timings[0].calls == 3


def test_budget_ends_warming_up_too() -> None:
    calls: list[str] = []
    sides = [lambda: calls.append("a"), lambda: calls.append("b")]
    harness.interleave(sides, rounds=1, budget=-1.0, warmup=3)
    assert calls == ["a", "b"]


def test_row_and_record(tmp_path: Path) -> None:
    ours, theirs = harness.Timing(2.0, 1.0, 3.0, 5), harness.Timing(8.0, 7.0, 9.0, 5)
    row = harness.Row.of(
        ours, theirs, op="x", graph="g", direction="d", baseline="b", memory=(10, 45)
    )
    alone = harness.Row.of(ours, op="x", graph="g", direction="d")
    options = harness.parser("X.").parse_args(["--json", str(tmp_path / "new" / "x.json")])
    harness.finish(options, [row, alone], more=1)
    content = json.loads(options.json.read_text())
    first, second = content["rows"]
    assert {name: type(first[name]) for name in FIELDS} == FIELDS
    assert (first["ratio"], first["memory_ratio"]) == (4.0, 4.5)
    assert second["seconds"] == 2.0
    for name in ("baseline", "baseline_seconds", "ratio", "memory_ratio"):
        assert second[name] is None
    assert content["more"] == 1
    assert torch.__version__.startswith(content["versions"]["torch"])
    assert content["kgrec_fast"]["torch"] == torch.__version__
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert "cpu isa" in content["kgrec_fast"]
    assert len(content["commit"]) >= 7


def test_a_mismatch_stops_everything() -> None:
    exact = torch.linspace(-1, 1, 10, dtype=torch.float64)
    single = exact.float()
    assert harness.check_close("x", single, single, exact) < 1e-6
    assert harness.check_close("x", single + 1e-5, single) == pytest.approx(1e-5, rel=0.1)
    for wrong in (single + 1e-3, single[:5], single / 0):
        with pytest.raises(harness.MismatchError, match="x"):
            harness.check_close("x", wrong, single)
    with pytest.raises(harness.MismatchError, match="x"):
        harness.check_close("x", single + 1e-5, single, exact)


@pytest.mark.parametrize("threads", ["0", "-1"])
def test_threads_must_be_positive(threads: str) -> None:
    with pytest.raises(SystemExit, match="--threads"):
        harness.start(harness.parser("X.").parse_args(["--threads", threads]))


def test_table_is_aligned() -> None:
    assert harness.table(("a", "bb"), [("ccc", "1")]) == "a    bb\nccc   1"


def test_peak_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was resident before, and a higher peak before, do not count; what is freed does."""
    source = """
def prepare(kept, passing):
    before = bytearray(b"x" * 120_000_000)
    del before
    resident = bytearray(b"x" * 20_000_000)
    def call():
        result = bytearray(int(kept)) and bytearray(b"x" * int(kept))
        bytearray(b"x" * int(passing))
        return resident, result
    return call
"""
    (tmp_path / "allocating_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    # Both b"x" * n and its copy live for a moment.
    peak = peak_in_fresh_process("allocating_module", "prepare", "10000000", "25000000")
    assert peak is not None
    assert peak == pytest.approx(60e6, rel=0.03)
    with pytest.raises(RuntimeError, match="no_such_function"):
        peak_in_fresh_process("allocating_module", "no_such_function")
