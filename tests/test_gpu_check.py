"""What a GPU check does without one: it says so, counts bytes, and outlives steps that fail."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from kgrec_fast import RelGraph, _library, ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import _card, _ops, _sides, _traffic, gpu_check, run, train_step
from benchmarks.gpu_check import Step
from kgrec_fast.models.reference import EdgeFunctions

# -- without a GPU --------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (gpu_check.main, []),
        (run.main, ["--device", "cuda"]),
        (run.main, ["--suite", "step", "--device", "cuda"]),
        (train_step.main, ["--device", "cuda"]),
    ],
)
@pytest.mark.parametrize(("cuda", "why"), [("13.0", "sees none"), (None, "was built without CUDA")])
def test_one_sentence_and_exit_code_2(main, arguments, cuda, why, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"no NVIDIA GPU can be used here: torch {torch.__version__} {why}"


@pytest.mark.usefixtures("no_gpu")
def test_a_budget_is_positive() -> None:
    with pytest.raises(SystemExit, match="--budget is -1, expected a positive number"):
        gpu_check.main(["--budget", "-1"])


def test_libraries_are_not_loaded_by_the_process_that_has_them_built() -> None:
    code = "import sys, benchmarks.gpu_check; sys.exit('kgrec_fast' in sys.modules)"
    assert gpu_check.run_step(python("imports", code), 60)["status"] == "passed"


def test_tools_are_found_beside_the_toolkit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _card.tool("no-such-tool") is None
    (tmp_path / "bin").mkdir()
    there = tmp_path / "bin" / "some-tool"
    there.write_text("#!/bin/sh\necho it answers\n")
    assert _card.tool("some-tool") is None  # not executable
    there.chmod(0o755)
    assert _card.tool("some-tool") == str(there)
    assert _card.answer_of([str(there)]) == "it answers"
    assert _card.answer_of([str(tmp_path / "absent")]) is None
    assert _card.answer_of(["false"]) is None


def test_files_are_named_after_cards() -> None:
    assert _card.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert _card.file_name("GeForce RTX 4090 (Ti)") == "geforce-rtx-4090-ti"


# -- steps ----------------------------------------------------------------------------------------


def python(name: str, code: str, share: float = 0.25, **named) -> Step:
    return Step(name, [sys.executable, "-c", code], share, **named)


FAILING = [
    python("fails", "import sys; print('last words'); sys.exit(3)"),
    python("is killed", "import os; os.kill(os.getpid(), 9)"),
    Step("is not there", ["/no/such/program"], 0.25),
    Step("absent", None, 0.25, absent="there is no tool"),
    python("cannot be read", "", read=lambda: json.loads("no json")),
    python("works", "import os; print(os.environ['GIVEN'])", environment={"GIVEN": "from here"}),
]


def test_a_failing_step_is_recorded_and_the_others_run(capsys) -> None:
    saved: list[list[str]] = []
    results = gpu_check.run_steps(FAILING, 60, lambda r: saved.append(list(r)))
    assert {name: r["status"] for name, r in results.items()} == {
        "fails": "failed",
        "is killed": "failed",
        "is not there": "failed",
        "absent": "absent",
        "cannot be read": "passed",
        "works": "passed",
    }
    assert results["fails"]["exit_code"] == 3
    assert results["fails"]["output_tail"] == "last words\n"
    assert "No such file" in results["is not there"]["output_tail"]
    assert results["absent"]["output_tail"] == "there is no tool"
    assert "JSONDecodeError" in results["cannot be read"]["unreadable"]
    assert results["works"]["output_tail"] == "from here\n"
    assert results["works"]["command"].startswith("'GIVEN=from here' python -c")
    assert saved[0] == ["fails"]
    assert saved[-1] == [step.name for step in FAILING]


def test_a_step_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(alive)!r}, 'w')"
    slow = f"import subprocess, sys; print('begun', flush=True); \
subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.perf_counter()
    chosen = [python("slow", slow, 0.5), python("next", "print('runs')", 0.5)]
    results = gpu_check.run_steps(chosen, 4.0, lambda _: None)
    assert time.perf_counter() - begin < 4.0
    assert results["slow"]["status"] == "timed out"
    assert results["slow"]["exit_code"] is None
    assert results["slow"]["output_tail"] == "begun\n"
    assert results["next"]["status"] == "passed"
    time.sleep(2.5)
    assert not alive.exists()


def test_what_a_step_leaves_over_goes_to_the_next() -> None:
    chosen = [python("quick", "", 0.25), python("next", "", 0.25), python("last", "", 0.5)]
    results = gpu_check.run_steps(chosen, 100, lambda _: None)
    limits = [r["limit_seconds"] for r in results.values()]
    assert limits[0] == pytest.approx(25, abs=0.2)
    assert 40 < limits[1] <= 50
    assert 85 < limits[2] <= 100


def test_only_the_end_of_long_output_is_kept() -> None:
    talk = "print('an error:', __import__('os').getcwd()); print('x' * 10**6 + 'end')"
    result = gpu_check.run_step(python("talks", f"{talk}; raise SystemExit(1)"), 30)
    assert result["output_tail"].endswith("xend\n")
    assert len(result["output_tail"]) == gpu_check.TAIL
    assert result["errors"] == ["an error: ."]


def test_little_is_kept_of_what_went_well() -> None:
    talk = "print('x' * 1000); [print(i) for i in range(29)]"
    result = gpu_check.run_step(python("talks", f"print('unseen'); {talk}"), 30)
    lines = result["output_tail"].splitlines()
    assert lines == ["x" * gpu_check.LONGEST_LINE + " ...", *map(str, range(29))]
    assert "errors" not in result


REPORT = """<testsuites><testsuite>
<testcase name="test_a[1]"/>
<testcase name="test_b"><failure message="first line&#10;second">long</failure></testcase>
<testcase name="test_c"><error message="no card"/></testcase>
<testcase name="test_d"><skipped message="not here"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_of_tests(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    assert gpu_check.outcomes(path) == {}
    path.write_text(REPORT)
    bad = {"test_b": "failed: first line", "test_c": "error: no card"}
    counts = {"passed": 1, "failed": 1, "error": 1, "skipped": 1}
    assert gpu_check.outcomes(path) == {"counts": counts, "results": bad}
    every = {"test_a[1]": "passed", "test_d": "skipped: not here"} | bad
    assert gpu_check.outcomes(path, every=True)["results"] == every


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one."""
    monkeypatch.setattr(_card, "why_no_gpu", lambda: None)
    monkeypatch.setattr(_card, "describe", lambda: {"name": "Card 1", "driver": "580.1"})
    monkeypatch.setattr(_card, "capability", lambda: "9.0")


@pytest.mark.usefixtures("card")
def test_one_file_with_everything(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "steps", lambda folder: FAILING)
    out = tmp_path / "new" / "card.json"
    assert gpu_check.main(["--out", str(out), "--budget", "60"]) == 1
    content = json.loads(out.read_text())
    assert content["card"] == {"name": "Card 1", "driver": "580.1"}
    assert content["torch"] == torch.__version__
    assert content["budget_seconds"] == 60
    assert content["date"]
    assert content["commit"]
    assert list(content["steps"]) == [step.name for step in FAILING]
    assert f"written to {out}" in capsys.readouterr().out

    left = ["--skip", *(step.name for step in FAILING[:3])]
    assert gpu_check.main(["--out", str(out), *left]) == 0
    assert list(json.loads(out.read_text())["steps"]) == [step.name for step in FAILING[3:]]
    with pytest.raises(SystemExit, match="--skip names nothing, expected some of fails, "):
        gpu_check.main(["--out", str(out), "--skip", "nothing"])


@pytest.mark.usefixtures("card")
def test_steps_are_those_promised(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_card, "tool", lambda name: None)
    found = {step.name: step for step in gpu_check.steps(tmp_path)}
    assert sum(step.share for step in found.values()) == pytest.approx(1)
    assert found["build"].shown == (
        "KGREC_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 python setup.py build_ext --inplace"
    )
    for name in ("memcheck", "racecheck"):
        assert found[name].command is None
        assert "compute-sanitizer is absent" in found[name].absent
    monkeypatch.setattr(_card, "tool", lambda name: f"/tools/{name}")
    found = {step.name: step for step in gpu_check.steps(tmp_path)}
    for name in ("memcheck", "racecheck"):
        assert (
            f"/tools/compute-sanitizer --tool {name} --kernel-name kns=kgrec" in found[name].shown
        )
        assert "PYTORCH_NO_CUDA_MEMORY_CACHING=1" in found[name].shown
    for name in ("tests", "streams and capture", "memcheck"):
        assert found[name].environment["KGREC_FAST_TEST_DEVICE"] == "cuda"


# -- bytes ----------------------------------------------------------------------------------------

# Node 0 has three edges in two runs, node 2 has one; tails 0 and 2 have one edge, tail 1 has two.
TINY = RelGraph.from_edges(
    torch.tensor([[0, 2, 0, 0], [1, 0, 2, 1]]), torch.tensor([0, 0, 0, 1]), num_nodes=3
)
# Relations of rows 0 and 2 are read by run; a row of 64 numbers has 256 or 128 bytes.
BYTES = {
    # 4 edges: rows of Q and X, two ids; 3 runs; Q of 2 rows; 3 outputs, 2 log-sum-exps, pointers
    ("relation_attention", "forward", 4): 4 * (512 + 8) + 3 * 256 + 2 * 256 + 3 * (256 + 8 + 8),
    ("relation_attention", "forward", 2): 4 * (256 + 8) + 3 * 128 + 2 * 128 + 3 * (128 + 8 + 8),
    # Rows: X and Q by edge, Rel by run, Q, dO, O and the log-sum-exp of 2 rows, dQ of 3.
    # Columns: Q and dO by edge, 16 bytes each besides, Rel by run; dX written, dQ added to.
    ("relation_attention", "backward", 4): (
        4 * (512 + 8) + 3 * 256 + 2 * (768 + 8) + 3 * (256 + 8)
        + 4 * (512 + 8 + 16) + 4 * 256 + 3 * (3 * 256 + 8) + 2 * 256
    ),
    # Attention's. dQ and X are read for dW, dQ and dX for dX, which is written; W and dW.
    # The mean's: two rows by edge and 20 bytes besides, Rel by run of a column, dO of 2 rows;
    # dX is read and written. Two gradients of relations are read, their sum is written.
    ("attention_and_mean", "backward", 4): (
        4 * (512 + 8) + 3 * 256 + 2 * (768 + 8) + 3 * (256 + 8)
        + 4 * (512 + 8 + 16) + 4 * 256 + 3 * (3 * 256 + 8) + 2 * 256
        + 3 * 5 * 256 + 2 * 64 * 256
        + 4 * (512 + 4 + 16) + 4 * 256 + 2 * (256 + 4) + 3 * 8 + 3 * (2 * 256 + 8) + 2 * 256
        + 3 * 2 * 256
    ),
    ("rationale_scores", "forward", 4): 4 * (256 + 8 + 8) + 3 * 256 + 2 * 256 + 3 * 8,
    ("edge_score_means", "forward", 4): 4 * (4 + 4) + 3 * (8 + 4),
    ("relation_mean", "forward", 2): 4 * (128 + 8) + 3 * 128 + 3 * (128 + 4 + 8),
    ("weighted_aggregate", "forward", 4): 4 * (256 + 4 + 4) + 3 * (256 + 8),
    ("edge_dot", "forward", 4): 4 * (256 + 4 + 4) + 2 * 256 + 3 * 8,
    # Two sums with a weight for each edge: over rows, and over columns by positions in row order.
    ("edge_dot", "backward", 4): 4 * (264 + 268) + 2 * 3 * (256 + 8),
    ("segment_sum", "forward", 4): 4 * 256 + 3 * 256 + 3 * 8,
    ("scatter_sum", "backward", 4): 4 * (256 + 256 + 8),
    ("segment_softmax", "backward", 2): 3 * 4 * 4 + 3 * 8,
    ("dropout_normalize_add", "forward", 2): 4 * 3 * 128 + 3 * 4,
    # Rows of both views, their negatives' too; the loss, eight numbers that are kept, two indices.
    ("contrast_loss", "forward", 2): 3 * (4 * 128 + 9 * 4 + 12),
    ("bpr_loss", "backward", 4): 3 * (6 * 256 + 4),
    ("reconstruction_loss", "backward", 4): 512 * (7 * 256 + 8 + 16) + 2 * 256,
    # 64 users and 3 items; 3 scores of each user there and back; as if 20 were found
    ("topk_items", "forward", 4): 67 * 256 + 64 * (2 * 3 * 4 + 20 * 12),
    ("random_bits", "forward", 4): 3 * 64 * 8,
    # Relation and rank of an edge, and its flag.
    ("sample_edges_per_relation", "forward", 4): 4 * (4 + 4 + 1),
    ("topk_mask", "forward", 2): 4 * (2 + 1),
    # Two of four flags are set; all edges are hidden, in both halves.
    ("mask_positions", "forward", 4): 4 + 2 * 8,
    ("masked_edges", "forward", 4): 4 * (4 + 1) + 8 * (8 + 4),
}  # fmt: skip


def test_names_of_a_tiny_graph() -> None:
    names = _traffic.names_of(TINY, torch.bfloat16, 64, 2)
    expected = {"E": 4, "N": 3, "n": 2, "M": 3, "K": 3, "L": 4, "R": 2, "D": 64, "H": 2}
    assert names == expected | {"s": 2, "a": 4}
    assert set(names) == set(_traffic.LEGEND)
    nothing = torch.empty(2, 0, dtype=torch.int64)
    empty = RelGraph.from_edges(nothing, nothing[0], num_nodes=2, num_relations=1)
    assert _traffic.names_of(empty, torch.float32, 64, 2)["K"] == 0


@pytest.mark.parametrize(("key", "expected"), BYTES.items(), ids=str)
def test_least_bytes_are_those_counted_by_hand(key: tuple, expected: int) -> None:
    name, direction, size = key
    (op,) = (op for op in _ops.measured_ops(TINY, None) if op.name == name)
    names = _traffic.names_of(TINY, {2: torch.bfloat16, 4: torch.float32}[size], 64, 2)
    assert _traffic.least_bytes(getattr(op, direction), names) == expected


def test_every_public_op_with_a_cuda_kernel_is_measured() -> None:
    public = {name for name in ops.__all__ if f"{name}_reference" in ops.__all__}
    public -= _library.CPU_ONLY
    measured = {op.name.partition(",")[0] for op in _ops.measured_ops(TINY, None)}
    assert measured == public | {"random_bits"}


# -- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [op.name for op in _ops.measured_ops(TINY, None)])
def test_the_usual_way_computes_the_same(name: str) -> None:
    (op,) = (op for op in _ops.measured_ops(TINY, EdgeFunctions()) if op.name == name)
    if op.baseline.startswith("torch:"):
        pytest.skip("random on either side")
    leaves = _sides.operands(op, torch.device("cpu"), torch.float64)
    found, wanted = (_sides.Side(f, leaves) for f in (op.usual, op.reference))
    if op.backward is None:
        torch.testing.assert_close(found.forward(), wanted.forward())
    else:
        torch.testing.assert_close(found.both(), wanted.both())


@pytest.mark.usefixtures("restore_threads")
def test_what_a_run_wrote_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    path = tmp_path / "kernels.json"
    assert gpu_check.measurements(path) == {}
    # The same arguments, but for the device.
    arguments = ["cpu" if word == "cuda" else word for word in gpu_check.KERNELS]
    quick = ["--quick", "--threads", "1", "--json", str(path), "--only", "random_bits"]
    assert run.main([*arguments, *quick]) == 0
    content = gpu_check.measurements(path)
    (row,) = content["rows"]
    assert (row["op"], row["direction"], row["baseline"]) == (
        "random_bits", "forward", "torch: randint",
    )  # fmt: skip
    assert content["failures"] == {}
    assert content["graphs"]["alibaba-fashion"]["edges"] > 100
    # And of the step; what only kernels have is not asked for.
    arguments = ["cpu" if word == "cuda" else word for word in gpu_check.TRAINING_STEP]
    assert run.main([*arguments, *quick[:-2], "--no-memory"]) == 0
    content = gpu_check.measurements(path)
    assert [row["op"] for row in content["rows"]] == ["train_step"]
    assert content["failures"] == {}
    assert "graphs" not in content
