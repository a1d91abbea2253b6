"""Builds, tests and measures everything on a machine with an NVIDIA GPU, in ten minutes.

One command, one result: ``python -m benchmarks.gpu_check`` from the root of the repository writes
docs/gpu/<card>.json. Each step is a process of its own with a limit of its own; one that fails or
is cut short is recorded, and the others still run. Exit code: 0, 1 where a step failed, 2 without a
GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script, too

from benchmarks import _card
from benchmarks._harness import ROOT, commit, machine, table

TESTS = "tests/test_on_cuda.py"
ON_DEVICE = "another_stream or capture"  # what exists on a device alone: a step of its own
SMALL = "test_float32 and (bipartite or duplicates or hub)"  # under the sanitizer
TAIL = 4000  # characters of output that are kept of a step that failed
MOST_ERRORS = 10  # lines kept beside them that name an error
LAST_LINES, LONGEST_LINE = 30, 100  # kept of the output of a step that passed
WORKERS = 4  # of pytest-xdist, where that is installed
NO_SANITIZER = (
    "compute-sanitizer is absent: it is part of the CUDA toolkit, "
    "and of the wheel nvidia-cuda-sanitizer-api"
)

# Every op at the base, without what takes long to compile or to run.
KERNELS = shlex.split(
    "--suite kernels --device cuda --axes op --budget 0.3 "
    "--without reference 'torch.compile(reference)'"
)
TRAINING_STEP = shlex.split("--suite step --device cuda --budget 0.5 --data alibaba-fashion")

Reader = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        name: In the record.
        command: What is run in the root of the repository; None where it cannot be.
        share: Of the time budget; what is left over goes to the steps after it.
        environment: What differs from this process.
        read: What else goes into the record, once the process has ended.
        absent: Why there is no command.
    """

    name: str
    command: Sequence[str] | None
    share: float
    environment: Mapping[str, str] = field(default_factory=dict)
    read: Reader | None = None
    absent: str = ""

    @property
    def shown(self) -> str:
        """The command as one would type it."""
        given = [f"{k}={v}" for k, v in self.environment.items() if k != "PYTHONPATH"]
        words = ["python" if w == sys.executable else w for w in self.command or ()]
        return without_folders(shlex.join([*given, *words]))


def steps(folder: Path) -> list[Step]:
    """Everything that is done, in order; results of processes are put into a folder."""
    python = sys.executable
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    here = {"PYTHONPATH": path, "KGREC_FAST_TEST_DEVICE": "cuda"}
    build = {"KGREC_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": _card.capability()}

    def pytest(name: str, selection: str) -> list[str]:
        report = f"--junitxml={folder / name}.xml"
        return [python, "-m", "pytest", TESTS, "-p", "no:cacheprovider", "-k", selection, report]

    side_by_side = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") else []
    threads = str(max(1, (os.cpu_count() or 1) // (WORKERS if side_by_side else 1)))

    def sanitizer(name: str) -> Step:
        found = _card.tool("compute-sanitizer")
        if found is None:
            return Step(name, None, 0.08, absent=NO_SANITIZER)
        # Our kernels alone; every tensor an allocation of its own, so that its ends are known.
        options = ["--tool", name, "--kernel-name", "kns=kgrec", "--error-exitcode", "9"]
        if name == "memcheck":
            options += ["--report-api-errors", "no"]
        command = [found, *options, *pytest(name, SMALL)]
        uncached = {**here, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Step(name, command, 0.08, uncached, lambda: outcomes(folder / f"{name}.xml"))

    def benchmark(name: str, options: Sequence[str], share: float) -> Step:
        path = folder / f"{name}.json"
        command = [python, "-m", "benchmarks.run", *options, "--json", str(path)]
        return Step(name, command, share, here, lambda: measurements(path))

    return [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 0.40, build),
        Step("info", [python, "-m", "kgrec_fast.info"], 0.03, here),
        Step(
            "tests",
            [*pytest("tests", f"not ({ON_DEVICE})"), *side_by_side],
            0.15,
            {**here, "OMP_NUM_THREADS": threads},
            lambda: outcomes(folder / "tests.xml"),
        ),
        Step(
            "streams and capture",
            pytest("streams", ON_DEVICE),
            0.07,
            here,
            lambda: outcomes(folder / "streams.xml", every=True),
        ),
        benchmark("kernels", KERNELS, 0.13),
        benchmark("training step", TRAINING_STEP, 0.06),
        sanitizer("memcheck"),
        sanitizer("racecheck"),
    ]


# -- results of steps -----------------------------------------------------------------------------


def outcomes(report: Path, every: bool = False) -> dict[str, Any]:
    """Counts of a JUnit report, and what each test came to, where it did not pass or `every`."""
    if not report.is_file():
        return {}
    counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    results = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kind, message = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                kind = "failed" if child.tag == "failure" else child.tag
                message = (child.get("message") or "").strip().partition("\n")[0]
        counts[kind] += 1
        if every or kind in ("failed", "error"):
            results[case.get("name") or "?"] = f"{kind}: {message}" if message else kind
    return {"counts": counts, "results": results}


def measurements(path: Path) -> dict[str, Any]:
    """What `run` wrote, as far as it came."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    wanted = ("versions", "kgrec_fast", "copy_bytes_per_second", "graphs", "legend", "notes")
    return {name: content[name] for name in (*wanted, "failures", "rows") if name in content}


# -- running them ---------------------------------------------------------------------------------


def run_step(step: Step, limit: float) -> dict[str, Any]:
    """Runs one step; never raises for what the process does."""
    if step.command is None:
        return {"status": "absent", "seconds": 0.0, "output_tail": step.absent}
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        code = _run(step, limit, output)
        output.seek(0)
        text = without_folders(output.read().decode(errors="replace"))
    result: dict[str, Any] = {
        "status": {0: "passed", None: "timed out"}.get(code, "failed"),
        "exit_code": code,
        "seconds": round(time.perf_counter() - begin, 2),
        "limit_seconds": round(limit, 1),
        "command": step.shown,
        "output_tail": end_of(text, code == 0),
    }
    if code != 0:  # a build says why long before its end
        named = [line[:TAIL] for line in text.splitlines() if re.search(r"\berror\b", line, re.I)]
        result["errors"] = named[:MOST_ERRORS]
    try:
        return result | dict(step.read() if step.read else {})
    except Exception as error:  # what a process left behind may be anything
        return result | {"unreadable": repr(error)}


def without_folders(text: str) -> str:
    """The text with names in place of the folders of this machine."""
    packages = sysconfig.get_path("purelib")
    for folder, name in (
        (str(ROOT), "."),
        (packages, "site-packages"),
        (sys.prefix, "PREFIX"),
        (tempfile.gettempdir(), "TMP"),
    ):
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", name, text)
    return text


def end_of(text: str, passed: bool) -> str:
    """What is kept of an output: little where all went well."""
    if not passed:
        return text[-TAIL:]
    lines = text.splitlines(keepends=True)[-LAST_LINES:]
    return "".join(x if len(x) <= LONGEST_LINE else f"{x[:LONGEST_LINE]} ...\n" for x in lines)


def _run(step: Step, limit: float, output: Any) -> int | None:
    """The exit code; None where the limit was met: then the process and its children are killed."""
    assert step.command is not None
    try:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, **step.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        output.write(str(error).encode())
        return 127
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_steps(
    chosen: Sequence[Step], budget: float, save: Callable[[Mapping[str, Any]], None]
) -> dict[str, dict[str, Any]]:
    """Runs steps in order, whatever becomes of each.

    Args:
        chosen: The steps.
        budget: Seconds for all of them: each may take until its share, and those before, are over.
        save: Called with the results so far after each step.
    """
    begin, whole = time.perf_counter(), sum(step.share for step in chosen)
    results: dict[str, dict[str, Any]] = {}
    passed = 0.0
    for step in chosen:
        passed += step.share
        limit = budget * passed / whole - (time.perf_counter() - begin)
        print(f"{step.name} (at most {limit:.0f} s) ...", flush=True)
        results[step.name] = run_step(step, max(limit, 1.0))
        print(
            f"  {results[step.name]['status']}, {results[step.name]['seconds']:.1f} s", flush=True
        )
        save(results)
    return results


def _arguments() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    result.add_argument("--out", type=Path, help="the result (default docs/gpu/<card>.json)")
    result.add_argument("--budget", type=float, default=540.0, help="seconds for all steps")
    result.add_argument("--skip", nargs="+", default=[], metavar="STEP", help="leave these out")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything and writes one file."""
    options = _arguments().parse_args(arguments)
    if options.budget <= 0:
        raise SystemExit(f"--budget is {options.budget:g}, expected a positive number of seconds")
    if reason := _card.why_no_gpu():
        print(reason)
        return _card.NO_GPU
    card = _card.describe()
    out = options.out or ROOT / "docs" / "gpu" / f"{_card.file_name(str(card['name']))}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "card": card,
        "torch": torch.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.gpu_check", *sys.argv[1:]]),
        "budget_seconds": options.budget,
        "machine": machine(),
    }

    def save(results: Mapping[str, Any]) -> None:
        out.write_text(json.dumps({**facts, "steps": results}, indent=2) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as folder:
        every = steps(Path(folder))
        if unknown := set(options.skip) - {step.name for step in every}:
            names = ", ".join(step.name for step in every)
            raise SystemExit(f"--skip names {', '.join(sorted(unknown))}, expected some of {names}")
        chosen = [step for step in every if step.name not in options.skip]
        results = run_steps(chosen, options.budget, save)
    rows = [[name, r["status"], f"{r['seconds']:.1f}"] for name, r in results.items()]
    print(table(("step", "status", "seconds"), rows))
    print(f"written to {out}")
    return 0 if all(r["status"] in ("passed", "absent") for r in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
