"""Measures cases: correctness first, then time and memory of ours and of every peer.

As a module it measures peaks of memory alone: `run` starts it in a fresh process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks import baselines
from benchmarks._cases import BACKWARD, BOTH, FORWARD, OURS, Case, as_json
from benchmarks._device import Device
from benchmarks._graphs import build, load
from benchmarks._harness import MismatchError, Row, Timing
from benchmarks._measured_op import Call, MeasuredOp
from benchmarks._memory import output_of_fresh_process, peak_of
from benchmarks._ops import measured_ops
from benchmarks._peers import COMPILED, REFERENCE, Peer, peers_of, why
from benchmarks._sides import Side, check, check_peer, operands
from benchmarks._traffic import floor_seconds, least_bytes, names_of
from kgrec_fast.graph import RelGraph
from kgrec_fast.models.reference import EdgeFunctions

# The float64 reference of attention takes some 10 kB an edge at D = 64.
MAX_ORACLE_ELEMENTS = 600_000 * 64


@dataclass
class Kernels:
    """What cases are measured with; keeps the last graph.

    Attributes:
        on: The device.
        quick: Tiny graphs.
        without: Peers that are left out, by name.
    """

    on: Device
    quick: bool = False
    without: Collection[str] = ()
    card: str = "cpu"
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    bandwidths: dict[int, float] = field(default_factory=dict)
    _kept: tuple[str, RelGraph] | None = None
    _ops: tuple[tuple[str, int, int], dict[str, MeasuredOp]] | None = None

    def __post_init__(self) -> None:
        self.functions: EdgeFunctions | None = None
        self.no_scatter = ""
        try:
            self.functions = baselines.torch_scatter_baseline().functions
        except (ImportError, OSError) as error:  # absent, or built for another torch
            self.no_scatter = why(error)

    def graph(self, name: str) -> RelGraph:
        if self._kept is None or self._kept[0] != name:
            self._kept = self._ops = None
            edges, source = load(name, self.quick)
            begin = time.perf_counter()
            graph = build(edges, self.on.device)
            self.on.synchronize()
            self.graphs[name] = {
                "source": source,
                "edges": graph.num_edges,
                "nodes": graph.num_rows,
                "relations": graph.num_relations,
                "build_seconds": time.perf_counter() - begin,
            }
            self._kept = name, graph
        return self._kept[1]

    def op(self, case: Case) -> MeasuredOp:
        graph, key = self.graph(case.graph), (case.graph, case.width, case.heads)
        if self._ops is None or self._ops[0] != key:
            found = measured_ops(graph, self.functions, case.width, case.heads)
            self._ops = key, {op.name: op for op in found}
        return self._ops[1][case.op]

    def bandwidth(self, threads: int) -> float:
        """Bytes a second of a copy, by the number of threads."""
        if threads not in self.bandwidths:
            self.bandwidths[threads] = self.on.copy_bandwidth()
        return self.bandwidths[threads]

    def peers(self, case: Case, op: MeasuredOp) -> list[Peer]:
        graph = self.graph(case.graph)
        found = peers_of(op, graph, case.heads, self.no_scatter)
        return [
            peer
            for peer in found
            if peer.name not in self.without
            and (case.thorough or peer.name not in (REFERENCE, COMPILED))
        ]

    def measure(self, case: Case) -> list[Row]:
        """A row for each direction and peer.

        Raises:
            MismatchError: Our results are wrong; nothing was timed.
        """
        torch.set_num_threads(case.threads)
        graph, op, dtype = self.graph(case.graph), self.op(case), getattr(torch, case.dtype)
        leaves = operands(op, self.on.device, dtype)
        with_oracle = graph.num_edges * case.width <= MAX_ORACLE_ELEMENTS
        mine, errors = check(op, leaves, with_oracle)
        sides = {OURS: Side(op.ours, leaves)}
        absent: dict[str, str] = {}
        facts: dict[str, dict[str, Any]] = {}
        for peer in self.peers(case, op):
            side = self._usable(peer, op, leaves, mine, facts)
            if isinstance(side, str):
                absent[peer.name] = side
            else:
                sides[peer.name] = side
        del mine
        rows: list[Row] = []
        names = names_of(graph, dtype, case.width, case.heads)
        for direction in case.directions if op.backward else (FORWARD,):
            timings, peaks = self._times(sides, direction)
            formulas = {FORWARD: op.forward, BACKWARD: op.backward}
            formula = formulas.get(direction) or f"{op.forward} + {op.backward}"
            floor = floor_seconds(formula, names, self.bandwidth(case.threads))
            extra = {"formula": formula, "least_bytes": least_bytes(formula, names), **errors}
            extra["edges"] = graph.num_edges
            for name in [*list(sides)[1:], *absent] or [""]:
                row = Row.of(
                    timings[OURS],
                    timings.get(name),
                    op=op.name,
                    graph=case.graph,
                    device=self.card,
                    dtype=case.dtype,
                    direction=direction,
                    baseline=name or None,
                    memory=(peaks.get(OURS), peaks.get(name)),
                    extra={**extra, **facts.get(name, {})},
                )
                rows.append(
                    replace(
                        row,
                        width=case.width,
                        heads=case.heads,
                        threads=case.threads,
                        floor_seconds=floor,
                        floor_share=floor / row.seconds,
                        note=absent.get(name, ""),
                    )
                )
        return rows

    def _usable(
        self,
        peer: Peer,
        op: MeasuredOp,
        leaves: Sequence[torch.Tensor],
        mine: Sequence[torch.Tensor],
        facts: dict[str, dict[str, Any]],
    ) -> Side | str:
        """The peer with operands of its own, or why it is not measured."""
        if peer.call is None:
            return peer.note
        if peer.name == COMPILED:
            torch._dynamo.reset()
        side, begin = Side(peer.call, leaves), time.perf_counter()
        try:
            if peer.compares:
                check_peer(side, mine, op.backward is not None)
            side.forward()  # compiled by itself, for it wants no gradient
        except MismatchError as error:
            return f"other results, not timed: {error}"
        except Exception as error:  # whatever a library of others raises
            return why(error)
        if peer.name == COMPILED:
            facts[peer.name] = {"first_call_seconds": time.perf_counter() - begin}
        return side

    def _times(
        self, sides: dict[str, Side], direction: str
    ) -> tuple[dict[str, Timing], dict[str, int | None]]:
        calls: list[Call] = [partial(_call, side, direction) for side in sides.values()]
        peaks = dict.fromkeys(sides)
        if self.on.is_cuda:
            held = [s.forward if direction == FORWARD else s.both for s in sides.values()]
            peaks = dict(zip(sides, map(self.on.peak, held), strict=True))
        for side in sides.values():
            if direction == BACKWARD:
                side.prepare_backward()
        timings = self.on.timings(calls)
        for side in sides.values():
            side.forget()
        return dict(zip(sides, timings, strict=True)), peaks


def _call(side: Side, direction: str) -> object:
    return {FORWARD: side.forward, BACKWARD: side.pass_back, BOTH: side.both}[direction]()


# -- peaks of memory on the CPU -------------------------------------------------------------------

Peaks = dict[str, dict[str, int | None]]  # by side and direction


def peaks_of_cases(
    some: Sequence[Case], peers: Sequence[Collection[str]], quick: bool
) -> list[Peaks]:
    """Peaks of cases in one fresh process; in `peers` those that were timed, case by case.

    Raises:
        RuntimeError: The process failed.
    """
    wanted = [[*names] for names in peers]
    argument = json.dumps({"cases": as_json(some), "peers": wanted, "quick": quick})
    found: list[Peaks] = json.loads(output_of_fresh_process("benchmarks._kernels", argument))
    return found


def _peaks(content: dict[str, Any]) -> Iterator[Peaks]:
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    torch.set_num_threads(threads)
    tiny = Kernels(Device(torch.device("cpu"), 1, 0.0), quick=True)
    full = Kernels(tiny.on, quick=content["quick"])
    for each, names in zip(content["cases"], content["peers"], strict=True):
        case = Case.of(each)
        # Thread pools and lazily loaded libraries are nobody's working memory.
        for _ in _sides_of(tiny, case, names):
            pass
        peaks: Peaks = {}
        for name, side in _sides_of(full, case, names):
            peaks[name] = {FORWARD: peak_of(side.forward)}
            if full.op(case).backward:
                peaks[name][BACKWARD] = peaks[name][BOTH] = peak_of(side.both)
        yield peaks


def _sides_of(kernels: Kernels, case: Case, names: Collection[str]) -> Iterator[tuple[str, Side]]:
    """Each side after it has run once, so that tiny graphs load what there is to load."""
    op = kernels.op(case)
    leaves = operands(op, kernels.on.device, getattr(torch, case.dtype))
    calls = {OURS: op.ours} | {p.name: p.call for p in kernels.peers(case, op) if p.call}
    for name, call in calls.items():
        if name == OURS or name in names:
            side = Side(call, leaves)
            if kernels.quick:
                side.both() if op.backward else side.forward()
            yield name, side


if __name__ == "__main__":
    print(json.dumps(list(_peaks(json.loads(sys.argv[1])))))
