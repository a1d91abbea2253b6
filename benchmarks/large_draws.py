"""Weighted draws without replacement from very many elements: time and memory.

    python -m benchmarks.large_draws

Two draws of a tenth of all elements each, on the CPU: of ten million interactions, whose weights
are looked up by item and get the noise of two streams, as the adaptive drop of a training step has
it; and of a hundred million weights of their own. Beside them stands `torch.multinomial`, which
takes no more than 2^24 weights: for the hundred million there is nothing to compare with. Memory is
the peak above what was resident before, the result included, in a fresh process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks._harness import MismatchError, Row, finish, interleave, parser, start
from benchmarks._memory import peak_in_fresh_process
from kgrec_fast import ops

SIZES = {"interactions": 10_000_000, "weights": 100_000_000}
MOST_OF_MULTINOMIAL = 1 << 24
NUM_ITEMS = 30_000
SHARE = 0.1
STREAMS: tuple[int, ...] = (1, 2)
CHECKED = 100_000  # elements that the reference draws from too


def operands(what: str, count: int) -> tuple[Tensor, Tensor | None, tuple[int, ...]]:
    """Log-weights, of which every tenth is -inf, the item of each element (None where an element
    has a weight of its own), and the streams of noise.
    """
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(NUM_ITEMS if what == "interactions" else count, generator=generator)
    values[::10] = -torch.inf
    if what == "weights":
        return values, None, STREAMS[:1]
    index = torch.randint(NUM_ITEMS, (count,), dtype=torch.int32, generator=generator)
    return values, index, STREAMS


def prepare(side: str, what: str, count: str) -> Callable[[], Tensor]:
    """A draw of a tenth of ``count`` elements, by "ours", "reference" or "multinomial"."""
    values, index, streams = operands(what, int(count))
    k, rng = int(SHARE * int(count)), torch.tensor([2024, 1])
    if side == "multinomial":
        weights = (values if index is None else values[index.long()]).exp()
        return lambda: torch.multinomial(weights, k)
    draw = ops.topk_mask if side == "ours" else ops.topk_mask_reference
    return lambda: draw(values, k, rng=rng, streams=streams, index=index)


def check(what: str, count: int) -> None:
    """Raises MismatchError unless a draw has the right size, nothing of no weight, and, of a few
    elements, what the reference has.
    """
    found = prepare("ours", what, str(count))()
    values, index, _ = operands(what, count)
    impossible = torch.isneginf(values if index is None else values[index.long()])
    if int(found.sum()) != int(SHARE * count) or bool((found & impossible).any()):
        raise MismatchError(f"{what}: {int(found.sum())} drawn, or some whose weight is zero")
    few = str(min(count, CHECKED))
    if not torch.equal(*(prepare(side, what, few)() for side in ("ours", "reference"))):
        raise MismatchError(f"{what}: the reference draws others")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = parser(__doc__).parse_args(arguments)
    start(options)
    rows = []
    for what, size in SIZES.items():
        count = size // 1000 if options.quick else size
        check(what, count)
        names = ["ours", "multinomial"] if size <= MOST_OF_MULTINOMIAL else ["ours"]
        timings = interleave([prepare(x, what, str(count)) for x in names], rounds=5, budget=60)
        peaks = [
            peak_in_fresh_process("benchmarks.large_draws", "prepare", x, what, str(count))
            for x in names
        ]
        theirs = timings[1] if len(names) > 1 else None
        each = None if peaks[0] is None else peaks[0] / count
        rows.append(
            Row.of(
                timings[0],
                theirs,
                op="topk_mask",
                graph=f"{count:,} {what}",
                direction="draw",
                baseline="torch.multinomial" if theirs else None,
                memory=(peaks[0], peaks[1] if theirs else None),
                extra={"bytes_an_element": each},
            )
        )
        found = "unknown" if each is None else f"{each:.1f}"
        print(f"{count:,} {what}: {found} bytes an element (wanted: at most 12)")
    finish(options, rows)


if __name__ == "__main__":
    main()
