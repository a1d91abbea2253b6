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


def log_weights(count: int) -> Tensor:
    """Standard normal, but for every tenth element, which has a weight of zero."""
    weights = torch.randn(count, generator=torch.Generator().manual_seed(1))
    weights[::10] = -torch.inf
    return weights


def prepare(side: str, what: str, count: str) -> Callable[[], Tensor]:
    """A draw of a tenth of ``count`` elements, by "ours", "reference" or "multinomial"."""
    n = int(count)
    k, rng = int(SHARE * n), torch.tensor([2024, 1])
    if what == "interactions":
        values, streams = log_weights(NUM_ITEMS), STREAMS
        index = torch.randint(NUM_ITEMS, (n,), dtype=torch.int32)
    else:
        values, streams, index = log_weights(n), STREAMS[:1], None
    if side == "multinomial":
        weights = (values if index is None else values[index.long()]).exp()
        return lambda: torch.multinomial(weights, k)
    draw = ops.topk_mask if side == "ours" else ops.topk_mask_reference
    return lambda: draw(values, k, rng=rng, streams=streams, index=index)


def check(what: str, count: int) -> None:
    """Raises MismatchError unless a draw has the right size, nothing of no weight, and, of a few
    elements, what the reference has.
    """
    torch.manual_seed(3)
    found = prepare("ours", what, str(count))()
    torch.manual_seed(3)
    if what == "interactions":
        index = torch.randint(NUM_ITEMS, (count,), dtype=torch.int32)
        impossible = index % 10 == 0
    else:
        impossible = torch.arange(count, dtype=torch.int32) % 10 == 0
    if int(found.sum()) != int(SHARE * count) or bool((found & impossible).any()):
        raise MismatchError(f"{what}: {int(found.sum())} drawn, or some whose weight is zero")
    few = str(min(count, CHECKED))
    both = []
    for side in ("ours", "reference"):
        torch.manual_seed(3)
        both.append(prepare(side, what, few)())
    if not torch.equal(*both):
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
