"""The benchmark suite: which cases it has, what a quick run writes, what is left out and why."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _cases, _kernels, _report, _results, plots, run
from benchmarks._cases import BOTH, FORWARD, Case
from benchmarks._graphs import build, load
from benchmarks._harness import Row, Timing
from benchmarks._ops import PLAIN, measured_ops
from benchmarks._peers import COMPILED, REFERENCE, SPARSE
from benchmarks._sides import Side, operands
from benchmarks._traffic import floor_seconds
from kgrec_fast import ops

# -- cases ----------------------------------------------------------------------------------------

CIRCUMSTANCES = ("op", "graph", "width", "heads", "dtype", "threads")
NAMES = [op.name for op in measured_ops(build(load("news", quick=True)[0]), None)]


def test_every_op_stands_at_the_base_once() -> None:
    base = _cases.cases(NAMES, ["op"])
    assert [case.op for case in base] == NAMES
    assert {replace(case, op="") for case in base} == {Case("")}
    on_cuda = _cases.cases(NAMES, ["op"], "cuda")
    assert Counter(case.dtype for case in on_cuda) == dict.fromkeys(
        ("float32", "bfloat16"), len(NAMES)
    )


def test_cases_differ_from_the_base_in_one_setting() -> None:
    every = _cases.cases(NAMES)
    assert len(set(every)) == len(every)
    for case in every:
        base = Case(case.op)
        changed = sum(getattr(case, name) != getattr(base, name) for name in CIRCUMSTANCES)
        assert changed <= 1
        assert case.thorough == (changed == 0)
    assert set(_cases.VARIED) <= set(NAMES)
    assert {axis for axes in _cases.VARIED.values() for axis in axes} == set(_cases.AXES)
    graphs = [case.graph for case in every]  # each is built once
    assert sum(a != b for a, b in pairwise(graphs)) == len(set(graphs)) - 1


def test_the_number_of_threads_is_the_base_and_no_axis_on_cuda() -> None:
    four = _cases.cases(["relation_mean"], threads=4)
    assert {case.threads for case in four} == {4} | set(_cases.AXES["threads"][1])
    on_cuda = _cases.cases(["relation_mean"], device="cuda", threads=4)
    assert {case.threads for case in on_cuda} == {4}


def test_ops_are_chosen_by_name() -> None:
    known = ["edge_dot", "relation_mean", "relation_mean, no relations"]
    assert _cases.chosen_ops(known, []) == known
    assert _cases.chosen_ops(known, ["relation_mean"]) == known[1:]
    assert _cases.chosen_ops(known, ["relation_mean, no relations"]) == known[2:]
    with pytest.raises(SystemExit, match="--only names 'edge', expected some of edge_dot; "):
        _cases.chosen_ops(known, ["edge"])


def test_a_case_survives_json() -> None:
    case = Case("x", width=32, directions=(FORWARD, BOTH), thorough=False)
    assert asdict(Case.of(json.loads(json.dumps(_cases.as_json([case])))[0])) == asdict(case)


def test_a_floor_is_bytes_by_bandwidth() -> None:
    assert floor_seconds("2*E*D + N", {"E": 10, "D": 4, "N": 20}, 50.0) == 2.0


# -- a quick run ----------------------------------------------------------------------------------


def quick(folder: Path, *arguments: str) -> dict[str, Any]:
    given = ["--suite", "kernels", "--quick", "--threads", "1", "--without", COMPILED]
    code = run.main([*given, "--out", str(folder), *arguments])
    return {"code": code, **_results.read(folder / "results.json")}


def test_a_quick_run_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_torch_scatter(monkeypatch)
    content = quick(tmp_path, "--only", "weighted_aggregate", "--axes", "op", "edges", "graph")
    assert content["code"] == 0
    assert content["failures"] == {}
    rows = content["rows"]
    peers = {(r["op"], r["baseline"]): r for r in rows if r["graph"] == "alibaba-fashion"}
    found = {name for op, name in peers if op == "weighted_aggregate"}
    assert found == {PLAIN, "torch_scatter+pyg", SPARSE, REFERENCE}
    assert "no torch_scatter here" in peers["weighted_aggregate", "torch_scatter+pyg"]["note"]
    at_base = [r for r in rows if r["op"] == "weighted_aggregate" and r["baseline"] == SPARSE]
    assert [(r["graph"], r["direction"]) for r in at_base][:3] == [
        ("alibaba-fashion", direction) for direction in _cases.DIRECTIONS
    ]
    for r in rows:
        assert 0 < r["seconds_q20"] <= r["seconds"] <= r["seconds_q80"]
        bandwidth = content["copy_bytes_per_second"]["1"]
        assert r["floor_seconds"] == pytest.approx(r["extra"]["least_bytes"] / bandwidth)
        assert r["floor_share"] == pytest.approx(r["floor_seconds"] / r["seconds"])
        assert r["extra"]["error"] < 1e-6
        assert r["memory_bytes"] is not None
        if r["note"]:
            assert r["baseline_seconds"] is r["ratio"] is r["baseline_memory_bytes"] is None
        else:
            assert r["ratio"] == pytest.approx(r["baseline_seconds"] / r["seconds"])
            assert r["baseline_memory_bytes"] is not None
    assert content["graphs"]["alibaba-fashion"]["edges"] == 600
    page = (tmp_path / "results.md").read_text()
    for text in ("## Every op", "## Sizes", "## Graph shapes", "no torch_scatter here"):
        assert text in page
    assert (tmp_path / "speedup_by_shape.svg").read_text().startswith("<?xml")
    assert "written to" in capsys.readouterr().out


def no_torch_scatter(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ImportError("no torch_scatter here")

    monkeypatch.setattr(_kernels.baselines, "torch_scatter_baseline", absent)


def test_rows_are_kept_where_nothing_else_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks._harness.commit", lambda: "one")
    first = quick(tmp_path, "--no-memory", "--axes", "op", "--only", "segment_mean")
    both = quick(tmp_path, "--no-memory", "--axes", "op", "--only", "random_bits", "--update")
    assert [r["op"] for r in both["rows"]] == ["segment_mean"] * len(first["rows"]) + [
        "random_bits"
    ] * (len(both["rows"]) - len(first["rows"]))
    again = quick(tmp_path, "--no-memory", "--axes", "op", "--only", "segment_mean", "--update")
    assert Counter(map(_results.key, again["rows"])) == Counter(map(_results.key, both["rows"]))
    monkeypatch.setattr("benchmarks._harness.commit", lambda: "two")
    with pytest.raises(SystemExit, match="--update: commit was one, now is two"):
        quick(tmp_path, "--only", "segment_mean", "--update")


def test_a_wrong_op_is_not_timed_and_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ops.segment_sum
    monkeypatch.setattr(ops, "segment_sum", lambda *x: right(*x) * 1.1)
    arguments = ("--no-memory", "--axes", "op", "--only", "segment_sum", "segment_mean")
    content = quick(tmp_path, *arguments)
    assert content["code"] == 1
    assert {row["op"] for row in content["rows"]} == {"segment_mean"}
    (what,) = content["failures"]
    assert what.startswith("segment_sum, alibaba-fashion, float32")
    assert "differs by" in content["failures"][what]
    assert f"- {what}: " in (tmp_path / "results.md").read_text()
    monkeypatch.setattr(ops, "segment_sum", right)
    mended = quick(tmp_path, *arguments, "--update")
    assert {row["op"] for row in mended["rows"]} == {"segment_sum", "segment_mean"}
    assert mended["failures"] == {}


def test_a_peer_that_computes_something_else_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = _kernels.peers_of

    def with_wrong(*arguments: Any) -> list:
        found = right(*arguments)
        wrong = replace(found[0], name="wrong", call=lambda x: found[0].call(x) * 1.1)  # type: ignore[misc]
        broken = replace(found[0], name="broken", call=lambda x: x.no_such_method())
        return [*found, wrong, broken]

    monkeypatch.setattr(_kernels, "peers_of", with_wrong)
    rows = quick(tmp_path, "--no-memory", "--axes", "op", "--only", "segment_sum")["rows"]
    notes = {r["baseline"]: r["note"] for r in rows}
    assert notes["wrong"].startswith("other results, not timed: result 0: differs by")
    assert notes["broken"].startswith("AttributeError: ")
    assert notes[REFERENCE] == ""


def test_times_outlive_a_failure_to_measure_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise RuntimeError("it was killed")

    monkeypatch.setattr(run, "peaks_of_cases", killed)
    monkeypatch.setattr(run, "AT_A_TIME", 1)
    content = quick(tmp_path, "--axes", "op", "--only", "random_bits", "gumbel_noise")
    assert content["code"] == 1
    assert set(content["failures"].values()) == {"it was killed"}
    assert len(content["failures"]) == 2
    assert {(row["op"], row["memory_bytes"]) for row in content["rows"]} == {
        ("random_bits", None), ("gumbel_noise", None),
    }  # fmt: skip


def test_backward_of_the_compiled_reference_can_be_repeated() -> None:
    graph = build(load("news", quick=True)[0])
    (op,) = (op for op in measured_ops(graph, None) if op.name == "relation_mean")
    (peer,) = (p for p in _kernels.peers_of(op, graph, 2) if p.name == COMPILED)
    assert peer.call is not None
    side = Side(peer.call, operands(op, torch.device("cpu"), torch.float32))
    side.prepare_backward()
    torch.testing.assert_close(side.pass_back(), side.pass_back())


def test_the_compiled_reference_is_called_as_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict] = []

    def stand_in(call: Any, **options: Any) -> Any:
        made.append(options)
        return call

    monkeypatch.setattr(torch, "compile", stand_in)
    graph = build(load("news", quick=True)[0])
    (op,) = (op for op in measured_ops(graph, None) if op.name == "relation_mean")
    (peer,) = (p for p in _kernels.peers_of(op, graph, 2) if p.name == COMPILED)
    assert made == []
    leaves = [torch.randn(shape) for shape in op.leaves]
    for _ in range(2):
        torch.testing.assert_close(peer.call(*leaves), op.reference(*leaves))
    assert made == [{"dynamic": False}]


def test_a_step_that_fails_is_recorded_and_the_next_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = Timing(1.0, 1.0, 1.0, 1)
    fails = ["large"]

    def measure(name: str, baseline: Any, options: Any) -> Row:
        if name in fails:
            raise RuntimeError("too little memory")
        assert (options.device, options.threads, options.no_memory) == ("cpu", 1, True)
        return Row.of(timing, timing, op="train_step", graph=name, direction="step")

    monkeypatch.setattr(run.train_step, "measure", measure)
    path = tmp_path / "step.json"
    given = ["--suite", "step", "--threads", "1", "--no-memory", "--json", str(path)]
    assert run.main([*given, "--data", "large", "small"]) == 1
    content = _results.read(path)
    assert content["failures"] == {"train_step, large": "too little memory"}
    assert [row["graph"] for row in content["rows"]] == ["small"]
    fails.clear()
    assert run.main([*given, "--data", "large", "--update"]) == 0
    content = _results.read(path)
    assert content["failures"] == {}
    assert [row["graph"] for row in content["rows"]] == ["small", "large"]


# -- tables and pictures --------------------------------------------------------------------------


def made_up(**changes: Any) -> dict[str, Any]:
    row = {
        "op": "projected_attention", "graph": "alibaba-fashion", "device": "cpu",
        "dtype": "float32", "direction": BOTH, "baseline": "torch_scatter+pyg",
        "seconds": 0.01, "seconds_q20": 0.009, "seconds_q80": 0.011,
        "baseline_seconds": 0.2, "baseline_seconds_q20": 0.19, "baseline_seconds_q80": 0.21,
        "ratio": 20.0, "memory_bytes": 10**6, "baseline_memory_bytes": 10**7,
        "width": 64, "heads": 2, "threads": 2, "floor_seconds": 0.004, "floor_share": 0.4,
        "note": "", "extra": {"edges": 558_310},
    }  # fmt: skip
    return row | changes


def sizes() -> list[dict[str, Any]]:
    return [
        made_up(),
        *(
            made_up(graph=graph, extra={"edges": 10 ** (number + 2)})
            for number, graph in enumerate(_cases.AXES["edges"][1])
        ),
    ]


STEP = made_up(
    op="train_step", direction="step", width=None, heads=None, threads=None,
    extra={"parts": {"Adam": 0.1, "whole step": 0.1},
           "baseline_parts": {"Adam": 0.2, "whole step": 0.2}},
)  # fmt: skip


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    rows = [*sizes(), made_up(graph="news"), made_up(graph="music"), STEP]
    paths = plots.draw({"rows": rows}, tmp_path)
    assert [path.name for path in paths] == [f"{name}.svg" for name in plots.PICTURES]
    assert all(path.stat().st_size < 150_000 for path in paths)
    again = plots.draw({"rows": rows}, tmp_path / "again")
    assert [a.read_bytes() for a in paths] == [b.read_bytes() for b in again]
    assert plots.draw({"rows": [made_up()]}, tmp_path / "none") == []


def test_an_axis_takes_the_base_along() -> None:
    rows = [*sizes(), made_up(direction=FORWARD), made_up(op="edge_dot"), made_up(width=32), STEP]
    base = _report.base_of(rows)
    assert base == Case("")
    assert [_report.axis_of(row, base) for row in rows] == [
        "op", *["edges"] * 3, "op", "op", "width", "step",
    ]  # fmt: skip
    assert Counter(map(_results.key, _report.along(rows, "edges", base))) == Counter(
        map(_results.key, sizes())
    )


def test_losses_are_in_bold() -> None:
    slow = {"baseline_seconds": 0.005, "ratio": 0.5}
    apart = {"baseline_seconds_q20": 0.004, "baseline_seconds_q80": 0.006}
    overlapping = {"baseline_seconds_q20": 0.004, "baseline_seconds_q80": 0.0095}
    base = Case("")
    place = _report.COLUMNS.index("ratio")
    for changes, text in (
        ({}, "20.00"), (slow | apart, "**0.50**"), (slow | overlapping, "**0.50** (noise)"),
    ):  # fmt: skip
        assert _report.cells(made_up(**changes), base)[place] == text


def test_absent_peers_say_why() -> None:
    nothing = dict.fromkeys(
        ("ratio", "baseline_seconds", "baseline_seconds_q20", "baseline_seconds_q80")
    )
    row = made_up(note="dgl is not installed", baseline="DGL", **nothing)
    cells = _report.cells(row, Case(""))
    assert "dgl is not installed" in cells
    assert not _report.is_loss(row)
