"""Registers, shared memory, stack, spills and occupancy of every CUDA kernel: needs nvcc, no GPU.

The figures are those that ptxas reports. What follows from them is the theoretical occupancy: the
share of the warps that a multiprocessor can hold, launch sizes and caches left aside.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from benchmarks._harness import ROOT, finish, parser, start, table
from benchmarks._ptxas import Name, Usage, Usages, architectures, measure, release, why_no_compiler

TABLE = ROOT / "docs" / "kernel_resources.csv"
QUICK_ARCHITECTURE = "8.0"
WARP = 32


# -- Occupancy ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has, shared memory in bytes.

    From the CUDA C++ Programming Guide, "Compute Capabilities": the table of technical
    specifications, and the shared memory that the system takes of every block since 8.0. Steps,
    partitions and blocks: cuda_occupancy.h of the CUDA toolkit 13.0.
    """

    threads: int
    blocks: int
    shared: int
    shared_reserved: int = 1024  # of each block
    shared_step: int = 128
    registers: int = 65536
    registers_step: int = 256  # of a warp
    partitions: int = 4  # each with its share of registers and warps


LIMITS = {
    "7.5": Limits(1024, 16, 64 * 1024, shared_reserved=0, shared_step=256),
    "8.0": Limits(2048, 32, 164 * 1024),
    "8.6": Limits(1536, 16, 100 * 1024),
    "8.9": Limits(1536, 24, 100 * 1024),
    "9.0": Limits(2048, 32, 228 * 1024),
    "10.0": Limits(2048, 32, 228 * 1024),
    "12.0": Limits(1536, 24, 100 * 1024),
}


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def blocks_at_once(limits: Limits, usage: Usage) -> int:
    """How many blocks of a kernel a multiprocessor holds."""
    warps = -(-usage.threads // WARP)
    of_warp = _round_up(max(usage.registers, 1) * WARP, limits.registers_step)
    warps_of_partition = limits.registers // limits.partitions // of_warp
    by_limit = [
        limits.blocks,
        limits.threads // WARP // warps,
        warps_of_partition * limits.partitions // warps,
    ]
    of_block = _round_up(usage.shared + limits.shared_reserved, limits.shared_step)
    if of_block > 0:
        by_limit.append(limits.shared // of_block)
    return min(by_limit)


def occupancy(architecture: str, usage: Usage) -> float:
    """The share of the warps that a multiprocessor can hold."""
    limits = LIMITS[architecture]
    warps = blocks_at_once(limits, usage) * -(-usage.threads // WARP)
    return warps / (limits.threads // WARP)


# -- The table ------------------------------------------------------------------------------------

FIGURES = ("registers", "shared", "stack", "spill_stores", "spill_loads")


def _cell(usage: Usage) -> str:
    """The registers, and whatever else is not 0."""
    others = [f"{name}={getattr(usage, name)}" for name in FIGURES[1:] if getattr(usage, name)]
    return " ".join([str(usage.registers), *others])


def _usage(threads: int, cell: str) -> Usage:
    registers, *others = cell.split()
    named = (other.split("=") for other in others)
    return Usage(threads, int(registers), **{name: int(value) for name, value in named})


def write_table(path: Path, nvcc: str, usages: Usages) -> None:
    """A line a kernel, a column an architecture; the first line names the release of nvcc."""
    columns = list(next(iter(usages.values())))
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# nvcc {nvcc}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kernel", "element", "shape", "threads", *columns])
        for name, of_kernel in usages.items():
            threads = next(iter(of_kernel.values())).threads
            writer.writerow([*astuple(name), threads, *(_cell(of_kernel[a]) for a in columns)])


def read_table(path: Path) -> tuple[str, Usages]:
    """The release of nvcc, and what its kernels took."""
    usages: Usages = {}
    with path.open(newline="", encoding="utf-8") as file:
        nvcc = re.fullmatch(r"# nvcc ([\d.]+)\n", file.readline())
        if nvcc is None:
            raise ValueError(f"the first line of {path} names no release of nvcc")
        for row in csv.DictReader(file):
            name = Name(row.pop("kernel"), row.pop("element"), row.pop("shape"))
            threads = int(row.pop("threads"))
            usages[name] = {a: _usage(threads, cell) for a, cell in row.items()}
    return nvcc[1], usages


def spilling(usages: Usages) -> list[str]:
    """Kernels made for some shape that keep something in local memory nevertheless."""
    return [
        f"{name} on {architecture}: specialised, but {_cell(usage)}"
        for name, of_kernel in usages.items()
        for architecture, usage in of_kernel.items()
        if name.specialised and usage.is_local
    ]


def compare(usages: Usages, before: Usages, same_release: bool) -> list[str]:
    """Kernels that take more than the table says, or that are not in both.

    Another release of nvcc shares registers out anew: figures are not compared then.
    """
    result = [f"{name}: in the table only" for name in before if name not in usages]
    for name, of_kernel in usages.items():
        for architecture, usage in of_kernel.items():
            old = before.get(name, {}).get(architecture)
            if old is None:
                result.append(f"{name} on {architecture}: missing from the table")
            elif same_release:
                result += [
                    f"{name} on {architecture}: {x}" for x in _worse(architecture, usage, old)
                ]
    return result


def _worse(architecture: str, usage: Usage, old: Usage) -> Iterator[str]:
    for figure in FIGURES:
        now, then = getattr(usage, figure), getattr(old, figure)
        if now > then:
            yield f"{figure} {now}, in the table {then}"
    share, old_share = occupancy(architecture, usage), occupancy(architecture, old)
    if share < old_share:
        yield f"occupancy {share:.0%}, in the table {old_share:.0%}"


def check(usages: Usages, path: Path) -> list[str]:
    """All that is wrong with these kernels, seen beside the table."""
    nvcc, before = read_table(path)
    return spilling(usages) + compare(usages, before, nvcc == release())


# -- The command line -----------------------------------------------------------------------------


def show(usages: Usages) -> None:
    """Prints registers and occupancy of all kernels, those with local memory, the lowest."""
    columns = list(next(iter(usages.values())))
    lines = [
        [str(name), *(f"{_cell(of[a])} {occupancy(a, of[a]):4.0%}" for a in columns)]
        for name, of in usages.items()
    ]
    print(table(["registers, occupancy", *columns], lines))
    local = sum(usage.is_local for of in usages.values() for usage in of.values())
    print(f"\n{len(usages)} kernels; with a stack frame or spills: {local}; lowest occupancy:")
    for a in columns:
        shares = {name: occupancy(a, of[a]) for name, of in usages.items()}
        lowest = min(shares.values())
        names = [str(name) for name, share in shares.items() if share == lowest]
        print(
            f"  {a}: {lowest:.0%}, {names[0]}" + (f" and {len(names) - 1} more" * bool(names[1:]))
        )


def as_record(usages: Usages) -> list[dict[str, Any]]:
    """An item a kernel and architecture."""
    return [
        {
            "kernel": name.kernel,
            "element": name.element,
            "shape": name.shape,
            "architecture": architecture,
            "threads": usage.threads,
            **{figure: getattr(usage, figure) for figure in FIGURES},
            "occupancy": occupancy(architecture, usage),
        }
        for name, of_kernel in usages.items()
        for architecture, usage in of_kernel.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument(
        "--arch", nargs="+", choices=architectures(), help="only these (default: all of setup.py)"
    )
    options_parser.add_argument(
        "--check", action="store_true", help=f"fail where a kernel got worse than in {TABLE.name}"
    )
    options_parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} anew")
    options = options_parser.parse_args(arguments)
    start(options)
    wanted = options.arch or ([QUICK_ARCHITECTURE] if options.quick else architectures())
    if options.write and set(wanted) != set(architectures()):
        raise SystemExit("--write is for all architectures: leave out --arch and --quick")
    missing = why_no_compiler()
    if missing is not None:
        raise SystemExit(f"the kernels cannot be compiled: {missing}")
    usages = measure(wanted, options.threads)
    show(usages)
    finish(options, [], nvcc=release(), kernels=as_record(usages))
    if options.write:
        write_table(TABLE, release(), usages)
    problems = check(usages, TABLE) if options.check else spilling(usages)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
