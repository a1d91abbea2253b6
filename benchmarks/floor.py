"""How far relation attention is from what a machine has to do for it.

    python -m benchmarks.floor

On the graph of Alibaba-iFashion, D = 64, two attention heads, float32. The floor of a pass over
the edges reads, for each edge, the 512 bytes that attention needs of its other end (a row of 64
numbers of two matrices, side by side), in the same order, and adds them up, for something has to be
done with them: `embedding_bag`, as in `_step_floor`. To it come the products with the projection.
Forward is one pass by rows and one product; backward another by rows, one by columns, two products.
As a second figure, the same rows read from one matrix after the other, 256 bytes each: where a
cache holds one matrix, but not both, that is what a good kernel does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

from benchmarks import baselines
from benchmarks._cases import BOTH, FORWARD
from benchmarks._graphs import ALIBABA, build, load
from benchmarks._harness import Row, Timing, finish, interleave, parser, start
from benchmarks._ops import WIDTH, measured_ops
from benchmarks._sides import Side, check, check_peer, operands
from benchmarks._step_floor import Gathers, product

TARGETS = {FORWARD: "within 2 times its floor", BOTH: "25 times faster than the baseline"}
ATTENTION = "projected_attention"


def _arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    names = ", ".join(baselines.BASELINES)
    result.add_argument("--baseline", default="auto", help=f"auto, {names}")
    result.add_argument("--rounds", type=int, default=15, help="calls of each side")
    result.add_argument("--budget", type=float, default=30.0, help="seconds for each comparison")
    return result


def measure(
    baseline: baselines.Baseline, quick: bool, rounds: int, budget: float
) -> tuple[list[Row], str]:
    """The rows, and a summary."""
    edges, source = load(ALIBABA, quick)
    graph = build(edges)
    (op,) = (o for o in measured_ops(graph, baseline.functions) if o.name == ATTENTION)
    leaves = operands(op, graph.device, torch.float32)
    mine, errors = check(op, leaves)
    ours, theirs = Side(op.ours, leaves), Side(op.usual, leaves)
    check_peer(theirs, mine, differentiable=True)
    print(f"{ALIBABA} ({source}): {graph.num_edges:,} edges, errors {errors}")

    x, weight = leaves[:2]
    gathers: dict[int, Gathers] = {}
    for width in (2 * WIDTH, WIDTH):
        gathers[width] = Gathers(width)
        gathers[width].add(graph, None, 1, 1)
    forth, back = product(x, weight, torch.randn_like(x))
    parts: dict[str, Callable[[], object]] = {
        "512-byte rows, by rows": gathers[2 * WIDTH].calls[0],
        "512-byte rows, by columns": gathers[2 * WIDTH].calls[1],
        "256-byte rows, by rows": gathers[WIDTH].calls[0],
        "256-byte rows, by columns": gathers[WIDTH].calls[1],
        "projection, forward": forth,
        "projection, backward": back,
    }
    # The baseline is timed apart from the parts: what it leaves in the caches is not theirs.
    times = interleave([ours.forward, ours.both, *parts.values()], rounds=rounds, budget=budget)
    against = interleave([ours.both, theirs.both], rounds=rounds, budget=budget)
    forward, both = times[:2]
    floor = dict(zip(parts, times[2:], strict=True))
    facts = {"edges": graph.num_edges, "source": source, **errors}

    def row(timing: Timing, op: str, direction: str, other: Timing | None = None) -> Row:
        name = baseline.name if other else None
        return Row.of(
            timing, other, op=op, graph=ALIBABA, direction=direction, baseline=name, extra=facts
        )

    rows = [row(forward, ATTENTION, FORWARD), row(both, ATTENTION, BOTH)]
    rows.append(row(against[0], ATTENTION, BOTH, against[1]))
    rows += [row(timing, "floor", name) for name, timing in floor.items()]
    ms = {name: 1e3 * timing.median for name, timing in floor.items()}
    return rows, summary(1e3 * forward.median, 1e3 * both.median, ms, rows[2], baseline.name)


def summary(forward: float, both: float, ms: dict[str, float], against: Row, name: str) -> str:
    """What the times (ms) come to, beside the targets."""
    lines = []
    project, project_back = ms["projection, forward"], ms["projection, backward"]
    for what, times in (("512-byte rows", 1), ("256-byte rows, one matrix after the other", 2)):
        rows, columns = (times * ms[f"{what[:3]}-byte rows, by {by}"] for by in ("rows", "columns"))
        for direction, seen, gathered, products in (
            (FORWARD, forward, rows, project),
            (BOTH, both, 2 * rows + columns, project + project_back),
        ):
            floor = gathered + products
            lines.append(
                f"{direction}: {seen:.1f} ms is {seen / floor:.2f} times its floor of "
                f"{gathered:.1f} ms gathering {what} + {products:.1f} ms projecting"
            )
    lines[0] += f" (wanted: {TARGETS[FORWARD]})"
    lines.append(f"{BOTH}: {against.ratio:.1f} times faster than {name} (wanted: {TARGETS[BOTH]})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = _arguments().parse_args(arguments)
    start(options)
    rounds = 3 if options.quick else options.rounds
    baseline = baselines.find_baseline(options.baseline)
    rows, text = measure(baseline, options.quick, rounds, options.budget)
    finish(options, rows)
    print("\n" + text)


if __name__ == "__main__":
    main()
