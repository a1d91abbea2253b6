"""Registers, shared memory, stack and spills of every CUDA kernel, as the compiler reports them.

Needs nvcc and no GPU. Every csrc/cuda/*.cu is compiled with the flags of setup.py for each of its
architectures; ptxas says what a kernel takes, its launch bounds stand in the PTX (`.maxntid`). From
both follows the theoretical occupancy: the share of the warps that a multiprocessor can hold.
Shared memory whose size is given at launch is not in these figures.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

from benchmarks._harness import ROOT, finish, parser, start, table

TABLE = ROOT / "docs" / "kernel_resources.csv"
CACHE = ROOT / "build" / "kernel_resources"
QUICK_ARCHITECTURE = "8.0"
WARP = 32


# -- Occupancy ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has; shared memory in bytes.

    Sizes: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability", and
    for the reserved shared memory its sections on each compute capability. How registers and shared
    memory are rounded up: cuda_occupancy.h of the toolkit.
    """

    threads: int
    blocks: int
    shared: int
    shared_reserved: int = 1024  # of every block, for the system
    shared_step: int = 128
    registers: int = 65536
    register_step: int = 256  # of a warp
    partitions: int = 4  # each with its share of the registers and of the warps


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


def blocks_at_once(limits: Limits, threads: int, registers: int, shared: int) -> int:
    """How many blocks of so many threads a multiprocessor holds.

    Args:
        limits: What it has.
        threads: Of a block.
        registers: Of a thread.
        shared: Bytes of a block.
    """
    warps = -(-threads // WARP)
    of_warp = _round_up(max(registers, 1) * WARP, limits.register_step)
    fitting = [
        limits.blocks,
        limits.threads // WARP // warps,
        limits.registers // limits.partitions // of_warp * limits.partitions // warps,
    ]
    of_block = _round_up(shared + limits.shared_reserved, limits.shared_step)
    if of_block > 0:
        fitting.append(limits.shared // of_block)
    return min(fitting)


# -- Kernels --------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Name:
    """A kernel: its function, the type of its elements, and its other template arguments."""

    kernel: str
    element: str
    shape: str

    def __str__(self) -> str:
        return " ".join(part for part in astuple(self) if part)

    @property
    def specialised(self) -> bool:
        """Whether it is made for some shape, not for any."""
        return "any" not in self.shape.split()

    @property
    def order(self) -> tuple[Any, ...]:
        """By number where there is one."""
        parts = re.findall(r"\d+|\D+", self.shape)
        return self.kernel, self.element, [(p.isdigit(), p.zfill(9)) for p in parts]


@dataclass(frozen=True)
class Usage:
    """What a kernel takes on one architecture: registers of a thread, everything else in bytes."""

    threads: int
    registers: int
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads

    def occupancy(self, architecture: str) -> float:
        """Warps at once, of those that a multiprocessor can hold."""
        limits = LIMITS[architecture]
        blocks = blocks_at_once(limits, self.threads, self.registers, self.shared)
        return blocks * -(-self.threads // WARP) / (limits.threads // WARP)


# Of each kernel, by architecture.
Usages = dict[Name, dict[str, Usage]]

ELEMENTS = {"float": "float32", "double": "float64", "Half": "float16", "BFloat16": "bfloat16"}


def name_of(demangled: str) -> Name:
    """`void kgrec::cuda::x_kernel<float, kgrec::cuda::RowShape<float, 64> >(...)`: x, float32, 64.

    RowShape<element, 64> reads 64, AnyShape reads any. Everything else is left as it is.
    """
    text = re.sub(r"(\w+::)+", "", demangled.removeprefix("void ").replace("(anonymous)::", ""))
    text = re.sub(r"RowShape<\w+, (\d+)>", r"\1", text).replace("AnyShape", "any")
    found = re.match(r"(\w+?)(?:_kernel)?(?:<(.*)>)?\(", text)
    if found is None:
        raise ValueError(f"{demangled!r} is no function that returns nothing")
    arguments = [a.strip() for a in (found[2] or "").split(",") if a.strip()]
    element = ELEMENTS.get(arguments[0], "") if arguments else ""
    return Name(found[1], element, " ".join(arguments[1:] if element else arguments))


def parse_report(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """What `ptxas -v` says, by mangled name and architecture."""
    result: dict[tuple[str, str], dict[str, int]] = {}
    current: dict[str, int] | None = None
    for line in text.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)(\d)[a-z]?'", line):
            current = result[entry[1], f"{entry[2]}.{entry[3]}"] = {}
        if current is None:
            continue
        for field, pattern in (
            ("stack", r"(\d+) bytes stack frame"),
            ("spill_stores", r"(\d+) bytes spill stores"),
            ("spill_loads", r"(\d+) bytes spill loads"),
            ("registers", r"Used (\d+) registers"),
            ("shared", r"(\d+) bytes smem"),
        ):
            # The functions that an entry calls are listed behind it; those have no registers line.
            if (found := re.search(pattern, line)) is not None:
                current[field] = max(current.get(field, 0), int(found[1]))
    return result


def parse_threads(ptx: str) -> dict[str, int]:
    """The block size that each kernel is bound to, by mangled name."""
    bound = r"\.entry\s+(\w+)\s*\([^)]*\)\s*((?:\.\w+\s+[\d, ]+\s*)*)"
    result = {}
    for entry, directives in re.findall(bound, ptx):
        sizes = re.search(r"\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", directives)
        if sizes is None:
            raise ValueError(f"{entry} has no launch bounds")
        x, y, z = (int(size or 1) for size in sizes.groups())
        result[entry] = x * y * z
    return result


# -- Compiling ------------------------------------------------------------------------------------


def nvcc() -> str | None:
    """The compiler, None where torch has no CUDA or there is no toolkit."""
    home = cpp_extension.CUDA_HOME or "/usr/local/cuda"
    path = Path(home) / "bin" / "nvcc"
    return str(path) if cpp_extension.torch.version.cuda and path.is_file() else None


def _output(*command: str, given: str | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@lru_cache
def release(compiler: str) -> str:
    """Such as 13.0.88."""
    found = re.search(r"release [\d.]+, V([\d.]+)", _output(compiler, "--version"))
    if found is None:
        raise RuntimeError(f"{compiler} --version names no release")
    return found[1]


@lru_cache
def build_constants() -> dict[str, Any]:
    """The assignments at the top of setup.py that are made of constants alone."""
    wanted = ("WARNINGS", "CUDA_HOST_FLAGS", "NVCC_FLAGS", "CUDA_ARCHITECTURES")
    values: dict[str, Any] = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in wanted:
            exec(compile(ast.Module([node], []), "setup.py", "exec"), values)
    return {name: values[name] for name in wanted}


def architectures() -> list[str]:
    """Those that setup.py builds, such as 8.0."""
    return list(build_constants()["CUDA_ARCHITECTURES"])


def sources() -> list[Path]:
    return sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def included(source: Path) -> list[Path]:
    """The file and those of csrc that it includes, directly or not."""
    found, left = {source}, [source]
    while left:
        for name in re.findall(r'^#include "(.+)"', left.pop().read_text(), re.MULTILINE):
            path = ROOT / "csrc" / name
            if path.is_file() and path not in found:  # the others are those of the emulator
                found.add(path)
                left.append(path)
    return sorted(found)


def _flags() -> list[str]:
    flags = cpp_extension.COMMON_NVCC_FLAGS + build_constants()["NVCC_FLAGS"]
    return [flag for flag in flags if not flag.startswith("--threads")]


def _cached(compiler: str, source: Path, architecture: str) -> Path:
    """Where the figures are kept: by the content of all that they depend on."""
    parts = [release(compiler), *_flags(), architecture, source.name, Path(__file__).read_text()]
    parts += [path.read_text() for path in included(source)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return CACHE / f"{source.stem}-{architecture}-{digest}.json"


def _compile(
    compiler: str, source: Path, wanted: Sequence[str], threads: int
) -> dict[str, dict[str, Usage]]:
    """What the kernels of a file take, by architecture and mangled name."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = [a.replace(".", "") for a in wanted]
        targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
        include = f"-I{ROOT / 'csrc'}"
        keep = ("--keep", f"--keep-dir={folder}")
        # To device code alone: no host compiler runs on what is generated.
        goal = ("-fatbin", str(source), "-o", f"{folder}/all.fatbin")
        report = parse_report(
            _output(
                compiler, *_flags(), f"--threads={threads}", "-Xptxas=-v", include, *targets,
                *keep, *goal,
            )
        )  # fmt: skip
        result: dict[str, dict[str, Usage]] = {architecture: {} for architecture in wanted}
        for path in Path(folder).glob("*.ptx"):
            bounds = parse_threads(path.read_text())
            number = re.search(r"compute_(\d+)", path.name)
            for (name, architecture), figures in report.items():
                if number is None or number[1] == architecture.replace(".", ""):
                    result[architecture][name] = Usage(bounds[name], **figures)
    return result


def measure(compiler: str, wanted: Sequence[str], threads: int = 2) -> Usages:
    """What every kernel takes on these architectures. Nothing is compiled twice."""
    CACHE.mkdir(parents=True, exist_ok=True)
    mangled: dict[tuple[str, str], Usage] = {}
    for source in sources():
        kept = {a: _cached(compiler, source, a) for a in wanted}
        missing = [a for a in wanted if not kept[a].is_file()]
        if missing:
            for old in CACHE.iterdir():
                if any(old.name.startswith(f"{source.stem}-{a}-") for a in missing):
                    old.unlink()
            for architecture, usages in _compile(compiler, source, missing, threads).items():
                content = {name: astuple(usage) for name, usage in sorted(usages.items())}
                kept[architecture].write_text(json.dumps(content))
        for architecture, path in kept.items():
            for name, figures in json.loads(path.read_text()).items():
                mangled[name, architecture] = Usage(*figures)
    names = sorted({name for name, _ in mangled})
    demangled = _output("c++filt", given="\n".join(names)).splitlines()
    readable = {name: name_of(text) for name, text in zip(names, demangled, strict=True)}
    result: Usages = {}
    for (name, architecture), usage in mangled.items():
        result.setdefault(readable[name], {})[architecture] = usage
    return dict(sorted(result.items(), key=lambda item: item[0].order))


# -- The table ------------------------------------------------------------------------------------


def write_table(path: Path, compiler_release: str, usages: Usages) -> None:
    """A line a kernel, a column an architecture: its registers, and behind them what is not 0."""
    columns = list(next(iter(usages.values())))
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# nvcc {compiler_release}; {', '.join(CELL)} where not 0\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kernel", "element", "shape", "threads", *columns])
        for name, by_architecture in usages.items():
            threads = next(iter(by_architecture.values())).threads
            cells = [_cell(by_architecture[a]) for a in columns]
            writer.writerow([*astuple(name), threads, *cells])


CELL = ("registers", "shared", "stack", "spill_stores", "spill_loads")


def _cell(usage: Usage) -> str:
    extra = [f"{name}={getattr(usage, name)}" for name in CELL[1:] if getattr(usage, name)]
    return " ".join([str(usage.registers), *extra])


def read_table(path: Path) -> tuple[str, Usages]:
    """The release of nvcc, and what it said of every kernel."""
    with path.open(newline="", encoding="utf-8") as file:
        found = re.match(r"# nvcc ([\d.]+)", file.readline())
        if found is None:
            raise ValueError(f"{path} does not begin with the release of nvcc")
        usages: Usages = {}
        for row in csv.DictReader(file):
            name = Name(row.pop("kernel"), row.pop("element"), row.pop("shape"))
            threads = int(row.pop("threads"))
            usages[name] = {a: _usage(threads, cell) for a, cell in row.items()}
    return found[1], usages


def _usage(threads: int, cell: str) -> Usage:
    registers, *extra = cell.split()
    pairs = (item.split("=") for item in extra)
    return Usage(threads, int(registers), **{name: int(value) for name, value in pairs})


def faults(usages: Usages) -> list[str]:
    """Specialised kernels that keep something in local memory."""
    return [
        f"{name} on {architecture}: a specialised kernel has {usage.stack} bytes of stack,"
        f" {usage.spills} of spills"
        for name, by_architecture in usages.items()
        for architecture, usage in by_architecture.items()
        if name.specialised and (usage.stack or usage.spills)
    ]


def changes_for_the_worse(usages: Usages, before: Usages, same_release: bool) -> list[str]:
    """Kernels that take more than the table says, or that it does not have; none with a new nvcc."""
    result = []
    for name, by_architecture in usages.items():
        if name not in before:
            result.append(f"{name}: missing from the table")
            continue
        for architecture, usage in by_architecture.items():
            old = before[name].get(architecture)
            if old is None:
                result.append(f"{name} on {architecture}: missing from the table")
            elif same_release:
                result += [f"{name} on {architecture}: {x}" for x in _worse(usage, old)]
                if usage.occupancy(architecture) < old.occupancy(architecture):
                    result.append(
                        f"{name} on {architecture}: occupancy {usage.occupancy(architecture):.0%},"
                        f" was {old.occupancy(architecture):.0%}"
                    )
    return result


def _worse(usage: Usage, old: Usage) -> list[str]:
    return [
        f"{field} {getattr(usage, field)}, was {getattr(old, field)}"
        for field in CELL
        if getattr(usage, field) > getattr(old, field)
    ]


def gone(usages: Usages, before: Usages) -> list[str]:
    """Kernels of the table that there are no more."""
    return [f"{name}: in the table alone" for name in before if name not in usages]


# -- The command line -----------------------------------------------------------------------------


def print_usages(usages: Usages) -> None:
    """Registers and occupancy of every kernel, then what is in local memory, then the lowest."""
    columns = list(next(iter(usages.values())))
    lines = [
        [str(n), *(f"{u[a].registers} {u[a].occupancy(a):4.0%}" for a in columns)]
        for n, u in usages.items()
    ]
    print(table(["registers, occupancy", *columns], lines))
    local = [(n, a, u) for n, by in usages.items() for a, u in by.items() if u.stack or u.spills]
    print(f"\nwith a stack frame or spills: {len(local)}")
    for name, architecture, usage in local:
        print(f"  {name} on {architecture}: {_cell(usage)}")
    print("\nlowest occupancy of a specialised kernel")
    for architecture in columns:
        ours = [n for n in usages if n.specialised]
        least = min(usages[n][architecture].occupancy(architecture) for n in ours)
        which = [
            str(n) for n in ours if usages[n][architecture].occupancy(architecture) == least
        ]
        print(f"  {architecture}: {least:.0%} ({which[0]}, {len(which)} in all)")


def as_record(usages: Usages) -> Iterable[Mapping[str, Any]]:
    """A line a kernel and architecture."""
    for name, by_architecture in usages.items():
        for architecture, usage in by_architecture.items():
            yield {
                "kernel": name.kernel,
                "element": name.element,
                "shape": name.shape,
                "architecture": architecture,
                **{field: getattr(usage, field) for field in ("threads", *CELL)},
                "occupancy": usage.occupancy(architecture),
            }


def main(arguments: Sequence[str] | None = None) -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--arch", nargs="+", choices=architectures(), help="only these")
    options_parser.add_argument("--check", action="store_true", help=f"against {TABLE.name}")
    options_parser.add_argument("--write", action="store_true", help=f"anew {TABLE.name}")
    options = options_parser.parse_args(arguments)
    start(options)
    wanted = options.arch or ([QUICK_ARCHITECTURE] if options.quick else architectures())
    if options.write and wanted != architectures():
        raise SystemExit("--write takes all architectures: leave out --arch and --quick")
    compiler = nvcc()
    if compiler is None:
        raise SystemExit("nvcc of a CUDA toolkit and a torch with CUDA are needed")
    usages = measure(compiler, wanted, options.threads)
    print_usages(usages)
    finish(options, [], nvcc=release(compiler), kernels=list(as_record(usages)))
    if options.write:
        write_table(TABLE, release(compiler), usages)
    problems = faults(usages)
    if options.check:
        before_release, before = read_table(TABLE)
        same = before_release == release(compiler)
        if not same:
            print(f"the table is of nvcc {before_release}: registers are not compared")
        problems += changes_for_the_worse(usages, before, same) + gone(usages, before)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
