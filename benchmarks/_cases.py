"""Which cases the kernel suite measures: every op at one base, and some along one axis at a time.

The whole product of shapes, widths, heads, types, sizes and threads is too much. So every op is
measured at the base against everything there is, forward, backward and both; the ops of `VARIED`
also with one setting changed, forward and both, against what does not take the reference's time.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks._graphs import ALIBABA, GRAPHS

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
DIRECTIONS = (FORWARD, BACKWARD, BOTH)
OURS = "ours"  # the side that is no peer
BASE_AXIS = "op"


@dataclass(frozen=True)
class Case:
    """An op under given circumstances; `threads` of the CPU.

    Cases are equal whose circumstances are, whatever is measured of them.
    """

    op: str
    graph: str = ALIBABA
    width: int = 64
    heads: int = 2
    dtype: str = "float32"
    threads: int = 2
    directions: tuple[str, ...] = field(default=DIRECTIONS, compare=False)
    # Against the reference and torch.compile too.
    thorough: bool = field(default=True, compare=False)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Case:
        """From `dataclasses.asdict`, also by way of JSON."""
        return cls(**{**content, "directions": tuple(content["directions"])})

    def __str__(self) -> str:
        return (
            f"{self.op}, {self.graph}, {self.dtype}, D={self.width}, H={self.heads}, "
            f"{self.threads} threads"
        )


# The field of a case that an axis changes, and to what. Sizes span three orders of magnitude.
AXES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "graph": ("graph", GRAPHS),
    "edges": ("graph", tuple(f"{ALIBABA}:{share}" for share in ("0.001", "0.01", "0.1"))),
    "width": ("width", (32, 64, 128, 256)),
    "heads": ("heads", (1, 2, 4, 8)),
    "dtype": ("dtype", ("float32", "float64", "bfloat16", "float16")),
    "threads": ("threads", tuple(sorted({1, 2, os.cpu_count() or 1}))),
}
VARIED = {
    "projected_attention": ("graph", "edges", "width", "heads", "dtype", "threads"),
    "relation_mean": ("graph", "edges", "width", "dtype", "threads"),
    "weighted_aggregate": ("graph", "edges", "width", "dtype", "threads"),
    "scatter_sum": ("edges", "width"),
    "segment_softmax": ("edges", "heads"),
    "dropout_normalize_add": ("edges", "width", "dtype"),
}
# On CUDA half types are what is trained in: every op is measured in one of them as well.
BASE_TYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}


def chosen_ops(known: Sequence[str], only: Collection[str]) -> list[str]:
    """The ops that ``only`` names, by their whole names or by what stands before a comma.

    Raises:
        SystemExit: A name is that of no op.
    """
    named = {name: {name, name.partition(",")[0]} for name in known}
    for name in only:
        if not any(name in names for names in named.values()):
            raise SystemExit(f"--only names {name!r}, expected some of {'; '.join(known)}")
    return [name for name in known if not only or named[name] & set(only)]


def cases(
    ops: Sequence[str],
    axes: Collection[str] = (),
    device: str = "cpu",
    threads: int = 2,
    quick: bool = False,
) -> list[Case]:
    """The cases of some ops, each once, those on one graph together.

    Args:
        ops: Names of `_ops.measured_ops`.
        axes: Only these of `AXES`, and "op" for the base; all where none is named.
        device: "cpu" or "cuda"; the number of CPU threads is no axis on the latter.
        threads: At the base.
        quick: The first value of each axis alone.
    """
    wanted = set(axes) or {BASE_AXIS, *AXES}
    found = dict.fromkeys(_all(ops, wanted, device, threads, quick))  # keeps the first of equals
    graphs = list(dict.fromkeys(case.graph for case in found))
    return sorted(found, key=lambda case: graphs.index(case.graph))


def _all(
    ops: Sequence[str], wanted: Collection[str], device: str, threads: int, quick: bool
) -> Iterator[Case]:
    bases = {op: Case(op, threads=threads) for op in ops}
    if BASE_AXIS in wanted:
        for dtype in BASE_TYPES[device]:
            yield from (replace(base, dtype=dtype) for base in bases.values())
    for op in ops:
        for axis in VARIED.get(op, ()):
            if axis not in wanted or (axis == "threads" and device == "cuda"):
                continue
            name, values = AXES[axis]
            others = [v for v in values if v != getattr(bases[op], name)]
            for value in others[:1] if quick else others:
                yield replace(
                    bases[op], **{name: value}, directions=(FORWARD, BOTH), thorough=False
                )


def as_json(some: Sequence[Case]) -> list[dict[str, Any]]:
    return [asdict(case) for case in some]
