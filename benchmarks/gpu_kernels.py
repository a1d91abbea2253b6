"""Every op forward and backward on a GPU, against torch_scatter + PyG or plain PyTorch.

Correctness first: values and gradients may be at most twice as far from the float64 reference as
the reference is in the same type. Then the two sides are called in turn, each time after 1 GiB was
written: caches are cold, and the host has run ahead when the clock starts. CUDA events time the
device. Bandwidths divide the least bytes of an op (see `benchmarks._gpu_ops`) by its median time.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import _card, baselines
from benchmarks._gpu_ops import LEGEND, MeasuredOp, least_bytes, measured_ops, names_of
from benchmarks._harness import (
    Row,
    Timing,
    check_close,
    interleave,
    parser,
    record,
    start,
    table,
)
from benchmarks.relation_attention import build, load
from kgrec_fast import _library
from kgrec_fast.data.shapes import EdgeList
from kgrec_fast.graph import RelGraph

GRAPH = "alibaba-fashion"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUFFER_BYTES = 1 << 30
NOTES = {
    "forward": "without gradient; memory is the peak of the call above what was allocated before",
    "backward": "the pass alone in time; memory is the peak of forward and backward together",
    "error": "largest difference from the float64 reference, relative to the largest value",
    "least_bytes": "no credit for caches: a row is counted for each edge that names it",
    "of_copy": "least_bytes / seconds, as a share of copy_bytes_per_second",
}


@dataclass
class Device:
    """Where ops run, and how they are timed there."""

    device: torch.device
    rounds: int
    budget: float  # seconds for the rounds of one row
    buffer_bytes: int = BUFFER_BYTES
    flush: Tensor | None = field(default=None, repr=False)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def buffer(self) -> Tensor:
        """Large enough for no cache to hold it, small enough for the card."""
        size = self.buffer_bytes
        if self.is_cuda:
            size = min(size, torch.cuda.mem_get_info()[0] // 8)
        return torch.zeros(size, dtype=torch.uint8, device=self.device)

    def timings(self, sides: Sequence[Callable[[], object]]) -> list[Timing]:
        """Times callables in turn: on the device by events, elsewhere by the clock."""
        if not self.is_cuda:
            return interleave(sides, rounds=self.rounds, budget=self.budget)
        if self.flush is None:
            self.flush = self.buffer()
        for side in sides:
            side()
        self.synchronize()
        seconds: list[list[float]] = [[] for _ in sides]
        begin = time.perf_counter()
        for done in range(self.rounds):
            if done >= 3 and time.perf_counter() - begin > self.budget:
                break
            for side, durations in zip(sides, seconds, strict=True):
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self.flush.zero_()
                first.record()
                side()
                last.record()
                last.synchronize()
                durations.append(first.elapsed_time(last) / 1e3)
        return [Timing.of(durations) for durations in seconds]

    def peak(self, call: Callable[[], object]) -> int | None:
        """Bytes that were allocated at once during a call, above what was before; CUDA only."""
        if not self.is_cuda:
            return None
        gc.collect()
        self.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def copy_bandwidth(self) -> float:
        """Bytes a second, read and written, of a copy of a large buffer."""
        source, target = self.buffer(), self.buffer()
        (timing,) = self.timings([lambda: target.copy_(source)])
        return (source.numel() + target.numel()) / timing.median


def as_tuple(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


class Side:
    """One implementation with operands of its own."""

    def __init__(self, call: Callable[..., Any], leaves: Sequence[Tensor]) -> None:
        self.call, self.leaves = call, [x.detach() for x in leaves]
        self.grads: list[Tensor] = []
        self.pass_back: Callable[[], object] = self.forward

    def forward(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return as_tuple(self.call(*self.leaves))

    def both(self) -> list[Tensor]:
        """Outputs and gradients, from scratch."""
        out = self._outputs()
        return [*out, *torch.autograd.grad(out, self.leaves, self.grads)]

    def prepare_backward(self) -> None:
        """Runs forward once, for `pass_back` to be repeated."""
        out = self._outputs()
        self.pass_back = lambda: torch.autograd.grad(
            out, self.leaves, self.grads, retain_graph=True
        )

    def _outputs(self) -> tuple[Tensor, ...]:
        for x in self.leaves:
            x.requires_grad_()
        out = as_tuple(self.call(*self.leaves))
        if not self.grads:
            generator = torch.Generator(out[0].device).manual_seed(1)
            self.grads = [_normal(x.shape, generator) for x in out]
        self.grads = [g.to(x.dtype) for g, x in zip(self.grads, out, strict=True)]
        return out


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


def operands(op: MeasuredOp, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Normal numbers; a square matrix is scaled as a projection, a vector is made of weights."""
    generator = torch.Generator(device).manual_seed(0)
    found = []
    for shape in op.leaves:
        x = _normal(shape, generator)
        if len(shape) == 1:
            x = x.abs()
        elif shape[0] == shape[1]:
            x = x * shape[0] ** -0.5
        found.append(x.to(dtype))
    return found


def differences(op: MeasuredOp, leaves: Sequence[Tensor]) -> dict[str, float]:
    """The largest errors of both sides; raises a MismatchError where ours is too large."""
    ours, plain = Side(op.ours, leaves), Side(op.reference, leaves)
    oracle = Side(op.reference, [x.double() for x in leaves])

    def results(side: Side) -> list[Tensor]:
        side.grads = ours.grads  # rounded already, as the leaves are
        return side.both() if op.backward else list(side.forward())

    mine, theirs, exact = results(ours), results(plain), results(oracle)
    names = [f"{op.name}: result {i}" for i in range(len(exact))]
    worst = max(map(check_close, names, mine, theirs, exact))
    return {"error": worst, "reference_error": max(map(_error, theirs, exact))}


def _error(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach().double(), exact.detach().double()
    return float((found - exact).abs().max()) / max(float(exact.abs().max()), 1e-30)


def measure(
    op: MeasuredOp, graph: RelGraph, dtype: torch.dtype, on: Device, copied: float, card: str
) -> list[Row]:
    """The rows of one op in one type."""
    leaves = operands(op, on.device, dtype)
    errors = differences(op, leaves)
    names = names_of(graph, dtype)
    sides = [Side(call, leaves) for call in (op.ours, op.usual)]
    rows = []
    for direction, formula in (("forward", op.forward), ("backward", op.backward)):
        if formula is None:
            continue
        forward = direction == "forward"
        if not forward:
            for side in sides:
                side.prepare_backward()
        mine, other = (on.peak(side.forward if forward else side.both) for side in sides)
        timings = on.timings([side.forward if forward else side.pass_back for side in sides])
        least = least_bytes(formula, names)
        speed = least / timings[0].median
        rows.append(
            Row.of(
                *timings,
                op=op.name,
                graph=GRAPH,
                device=card,
                dtype=str(dtype).removeprefix("torch."),
                direction=direction,
                baseline=op.baseline,
                memory=(mine, other),
                extra={
                    "formula": formula,
                    "least_bytes": least,
                    "bytes_per_second": speed,
                    "of_copy": speed / copied,
                    **errors,
                },
            )
        )
    return rows


def on_device(edges: EdgeList, device: torch.device) -> RelGraph:
    """The graph with both orders, sorted on the device."""
    index, types = edges.edge_index.to(device), edges.edge_type.to(device)
    return build(EdgeList(index, types, edges.num_nodes, edges.num_relations))


COLUMNS = (
    "op", "dtype", "direction", "ms", "20-80 %", "baseline", "ms", "ratio", "peak MB",
    "baseline MB", "GB/s", "of copy",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    def megabytes(size: int | None) -> str:
        return "" if size is None else f"{size / 1e6:.1f}"

    return [
        row.op,
        row.dtype,
        row.direction,
        f"{row.seconds * 1e3:.3f}",
        f"{(row.seconds_q20 or 0) * 1e3:.3f}-{(row.seconds_q80 or 0) * 1e3:.3f}",
        row.baseline or "",
        f"{(row.baseline_seconds or 0) * 1e3:.3f}",
        f"{row.ratio or 0:.1f}",
        megabytes(row.memory_bytes),
        megabytes(row.baseline_memory_bytes),
        f"{row.extra['bytes_per_second'] / 1e9:.0f}",
        f"{row.extra['of_copy']:.0%}",
    ]


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    result.add_argument("--rounds", type=int, default=30, help="calls of each side")
    result.add_argument("--budget", type=float, default=1.5, help="seconds for each row")
    result.add_argument("--ops", nargs="+", metavar="OP", help="only these")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures; returns 0, 1 where an op failed, 2 without a GPU."""
    options = _arguments().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and (reason := _card.why_no_gpu()):
        print(reason)
        return _card.NO_GPU
    if not _library.is_native(device):
        print(f"ops would run as references on {device}: {_library.CUDA.error or 'not complete'}")
        return 1
    start(options)
    edges, source = load(GRAPH, options.quick)
    graph = on_device(edges, device)
    on = Device(device, options.rounds, options.budget)
    if options.quick:
        on.rounds, on.buffer_bytes = 3, 1 << 20
    card = torch.cuda.get_device_name() if on.is_cuda else "cpu"
    copied = on.copy_bandwidth()
    print(f"{card}: a copy reads and writes {copied / 1e9:.0f} GB/s; {GRAPH} is from {source}")
    try:
        functions = baselines.torch_scatter_baseline().functions
    except (ImportError, OSError) as error:  # absent, or built for another torch
        functions = None
        print(f"torch_scatter + PyG cannot be used, references are the baseline: {error}")
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for op in measured_ops(graph, functions):
        for name, dtype in DTYPES.items():
            if (options.ops and op.name not in options.ops) or (
                not op.leaves and name != "float32"
            ):
                continue
            try:
                rows += measure(op, graph, dtype, on, copied, card)
            except RuntimeError as error:  # a mismatch, too little memory, a CUDA error
                failures[f"{op.name}, {name}"] = str(error)
                print(f"{op.name}, {name}: {error}")
            write(options, rows, copied, source, graph, failures)
    print(table(COLUMNS, [cells(row) for row in rows]))
    return 1 if failures else 0


def write(
    options: argparse.Namespace,
    rows: Sequence[Row],
    copied: float,
    source: str,
    graph: RelGraph,
    failures: dict[str, str],
) -> None:
    """Writes what there is so far: a run that is cut short keeps it."""
    if options.json is None:
        return
    facts = {"name": GRAPH, "source": source, **names_of(graph, torch.float32)}
    content = record(
        rows,
        copy_bytes_per_second=copied,
        graph={k: v for k, v in facts.items() if k not in "sa"},
        legend=LEGEND,
        notes=NOTES,
        failures=failures,
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
