"""What CUDA kernels take of a multiprocessor: nothing in local memory, no more than the table says.

Where nvcc is, two architectures are compiled, once for the same content of csrc/cuda.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _ptxas, kernel_resources
from benchmarks._ptxas import Name, Usage
from benchmarks.kernel_resources import LIMITS, blocks_at_once, compare, occupancy

COMPILED = ("8.0", "9.0")
REASON = _ptxas.why_no_compiler()
needs_nvcc = pytest.mark.skipif(REASON is not None, reason=f"kernels cannot be compiled: {REASON}")


# -- The kernels ----------------------------------------------------------------------------------


@needs_nvcc
def test_no_kernel_is_worse_than_the_table() -> None:
    usages = _ptxas.measure(COMPILED)
    problems = kernel_resources.check(usages, kernel_resources.TABLE)
    advice = "python -m benchmarks.kernel_resources --write renews the table"
    assert not problems, "\n".join([*problems, advice])


def test_the_table_is_in_order() -> None:
    _, usages = kernel_resources.read_table(kernel_resources.TABLE)
    assert list(usages) == sorted(usages, key=lambda name: name.order)
    assert kernel_resources.spilling(usages) == []
    assert all(list(of) == _ptxas.architectures() for of in usages.values())
    assert set(_ptxas.architectures()) <= set(LIMITS)


# -- Occupancy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "share"),
    [
        # 16,384 registers a partition: of 2,048 a warp, 8 warps in each of four.
        ("8.0", 256, 64, 0, 4, 32 / 64),
        ("8.0", 256, 65, 0, 3, 24 / 64),  # 2,304 a warp: 7 warps in each of four
        ("8.0", 256, 40, 0, 6, 48 / 64),  # 1,280 a warp: 12 warps in each of four
        ("8.6", 256, 40, 0, 6, 48 / 48),
        ("8.9", 256, 41, 0, 5, 40 / 48),  # 1,536 a warp: 10 warps in each of four
        ("7.5", 256, 64, 0, 4, 32 / 32),
        ("10.0", 256, 32, 0, 8, 64 / 64),
        ("12.0", 256, 255, 0, 1, 8 / 48),
        ("9.0", 1024, 65, 0, 0, 0.0),  # 28 warps of the 32 that the block has
        # By blocks: of one warp each.
        ("7.5", 32, 16, 0, 16, 16 / 32),
        ("8.6", 32, 16, 0, 16, 16 / 48),
        ("8.9", 32, 16, 0, 24, 24 / 48),
        ("9.0", 32, 16, 0, 32, 32 / 64),
        ("9.0", 33, 16, 0, 32, 64 / 64),
        # By shared memory: 48 KiB, and 1 KiB that the system takes since 8.0.
        ("7.5", 256, 32, 49_152, 1, 8 / 32),
        ("8.0", 256, 32, 49_152, 3, 24 / 64),
        ("8.6", 256, 32, 49_152, 2, 16 / 48),
        ("9.0", 256, 32, 49_152, 4, 32 / 64),
        ("8.6", 128, 32, 7_681, 11, 44 / 48),  # 8,832 with the step of 128 bytes
    ],
)
def test_occupancy_by_hand(
    architecture: str, threads: int, registers: int, shared: int, blocks: int, share: float
) -> None:
    usage = Usage(threads, registers, shared)
    assert blocks_at_once(LIMITS[architecture], usage) == blocks
    assert occupancy(architecture, usage) == pytest.approx(share)


ORACLE = r"""
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, threads_of_sm, shared_of_sm, reserved, threads, registers, shared;
  while (scanf("%d.%d %d %d %d %d %d %d", &major, &minor, &threads_of_sm, &shared_of_sm, &reserved,
               &threads, &registers, &shared) == 8) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = threads_of_sm;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = shared_of_sm;
    device.sharedMemPerBlockOptin = shared_of_sm - reserved;
    device.reservedSharedMemPerBlock = reserved;
    device.numSms = 1;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const auto error = cudaOccMaxActiveBlocksPerMultiprocessor(
        &result, &device, &kernel, &state, threads, 0);
    printf("%d\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
"""


@needs_nvcc
def test_occupancy_is_that_of_the_toolkit(tmp_path: Path) -> None:
    """Its header is given the sizes of our table, and knows steps and numbers of blocks itself."""
    include = _ptxas.toolkit() / "include"
    if not (include / "cuda_occupancy.h").is_file():
        pytest.skip(f"{include} has no cuda_occupancy.h")
    source, program = tmp_path / "oracle.cpp", tmp_path / "oracle"
    source.write_text(ORACLE)
    subprocess.run(["c++", f"-I{include}", str(source), "-o", str(program)], check=True)
    threads, registers = (32, 96, 128, 256, 512, 1024), (16, 32, 33, 40, 48, 64, 72, 104, 168, 255)
    cases = list(itertools.product(LIMITS, threads, registers, (0, 1, 4900, 7681, 16384, 49152)))
    lines = [
        f"{a} {LIMITS[a].threads} {LIMITS[a].shared} {LIMITS[a].shared_reserved} {t} {r} {s}"
        for a, t, r, s in cases
    ]
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    expected = [int(line) for line in done.stdout.split()]
    assert expected == [blocks_at_once(LIMITS[a], Usage(t, r, s)) for a, t, r, s in cases]


# -- Reading --------------------------------------------------------------------------------------

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_80'
ptxas info    : Function properties for _Z1aPf
    16 bytes stack frame, 12 bytes spill stores, 24 bytes spill loads
ptxas info    : Function properties for called
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 32 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 31.183 ms
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_120'
ptxas info    : Function properties for _Z1aPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 488 bytes cmem[0]
"""

PTX = """\
.visible .entry _Z1aPf(
    .param .u64 _Z1aPf_param_0
)
.maxntid 256, 1, 1
.minnctapersm 2
{
    ret;
}
.visible .entry _Z1bv()
.maxntid 8, 4, 2
{
    ret;
}
"""


def test_a_report_is_read() -> None:
    first = {"registers": 40, "shared": 4096, "stack": 32, "spill_stores": 12, "spill_loads": 24}
    second = {"registers": 32, "stack": 0, "spill_stores": 0, "spill_loads": 0}
    assert _ptxas.parse_report(REPORT) == {("_Z1aPf", "8.0"): first, ("_Z1aPf", "12.0"): second}


def test_launch_bounds_are_read() -> None:
    assert _ptxas.parse_threads(PTX) == {"_Z1aPf": 256, "_Z1bv": 64}
    with pytest.raises(ValueError, match="_Z1aPf has no launch bounds"):
        _ptxas.parse_threads(PTX.replace(".maxntid 256, 1, 1", ""))


@pytest.mark.parametrize(
    ("signature", "expected", "specialised"),
    [
        (
            "void kgrec::cuda::x_kernel<float, kgrec::cuda::RowShape<float, 64, 16> >(kgrec::P)",
            "x float32 64",
            True,
        ),
        (
            "void kgrec::cuda::x_kernel<kgrec::Half, kgrec::cuda::RowShape<kgrec::Half, 32, 8> >()",
            "x float16 32/8",
            True,
        ),
        (
            "void kgrec::cuda::x_kernel<kgrec::Half, kgrec::cuda::AnyShape, true>(kgrec::P)",
            "x float16 any true",
            False,
        ),
        ("void kgrec::cuda::y_kernel<kgrec::BFloat16, 8>(kgrec::P)", "y bfloat16 8", True),
        ("void kgrec::cuda::y_kernel<4>(kgrec::P)", "y 4", True),
        ("kgrec::cuda::z_kernel(kgrec::cuda::P)", "z", True),
    ],
)
def test_names_are_readable(signature: str, expected: str, specialised: bool) -> None:
    name = _ptxas.name_of(signature)
    assert str(name) == expected
    assert name.specialised == specialised


def test_widths_are_sorted_as_numbers() -> None:
    names = [Name("x", "float32", shape) for shape in ("256", "any", "64", "32", "128")]
    names.sort(key=lambda name: name.order)
    assert [name.shape for name in names] == ["32", "64", "128", "256", "any"]


def test_includes_are_followed() -> None:
    segment = {p.name for p in _ptxas.included(_ptxas.ROOT / "csrc" / "cuda" / "segment.cu")}
    assert {"segment.cu", "segment.cuh", "segment_lanes.cuh", "device.cuh", "types.h"} <= segment
    assert "aggregate.cuh" not in segment


# -- Comparing ------------------------------------------------------------------------------------

NAME = Name("x", "float32", "64")
USAGE = Usage(256, 40)


def differences(same_release: bool = True, **changes: int) -> list[str]:
    usage = dataclasses.replace(USAGE, **changes)
    return compare({NAME: {"8.0": usage}}, {NAME: {"8.0": USAGE}}, same_release)


def test_what_is_not_worse_passes() -> None:
    assert differences() == []
    assert differences(registers=32) == []


@pytest.mark.parametrize("figure", kernel_resources.FIGURES)
def test_more_of_anything_is_worse(figure: str) -> None:
    found = differences(**{figure: getattr(USAGE, figure) + 1})
    assert found[0].startswith(f"x float32 64 on 8.0: {figure}")
    assert differences(same_release=False, **{figure: 41}) == []


def test_lower_occupancy_is_worse() -> None:
    assert differences(threads=1024) == [
        "x float32 64 on 8.0: occupancy 50%, in the table 75%",
    ]


def test_kernels_must_be_in_both() -> None:
    other = Name("x", "float32", "32")
    for same_release in (True, False):
        found = compare({NAME: {"8.0": USAGE}}, {other: {"8.0": USAGE}}, same_release)
        assert found == [
            "x float32 32: in the table only",
            "x float32 64 on 8.0: missing from the table",
        ]


def test_only_general_kernels_may_spill() -> None:
    for name, count in ((NAME, 1), (Name("x", "float32", "any"), 0)):
        for figure in ("stack", "spill_stores", "spill_loads"):
            usage = dataclasses.replace(USAGE, **{figure: 8})
            assert len(kernel_resources.spilling({name: {"8.0": usage}})) == count
    assert kernel_resources.spilling({NAME: {"8.0": USAGE}}) == []


def test_a_table_is_read_back(tmp_path: Path) -> None:
    spilling = Usage(256, 64, shared=2048, stack=16, spill_stores=4, spill_loads=8)
    usages = {
        NAME: {"8.0": USAGE, "9.0": spilling},
        Name("z", "", ""): {"8.0": spilling, "9.0": USAGE},
    }
    path = tmp_path / "table.csv"
    kernel_resources.write_table(path, "13.0.88", usages)
    assert kernel_resources.read_table(path) == ("13.0.88", usages)
    path.write_text("kernel\n")
    with pytest.raises(ValueError, match="names no release"):
        kernel_resources.read_table(path)


# -- The command ----------------------------------------------------------------------------------


@needs_nvcc
def test_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restore_threads: None,
) -> None:
    """On one small file: written, checked without compiling again, checked against a better one."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    path, record = tmp_path / "table.csv", tmp_path / "record.json"
    monkeypatch.setattr(_ptxas, "sources", lambda: [_ptxas.ROOT / "csrc" / "cuda" / "random.cu"])
    monkeypatch.setattr(_ptxas, "CACHE", tmp_path / "kept")
    monkeypatch.setattr(kernel_resources, "TABLE", path)
    kernel_resources.main(["--write", "--json", str(record)])
    assert "random_bits" in capsys.readouterr().out
    items = json.loads(record.read_text())["kernels"]
    assert [item["architecture"] for item in items] == _ptxas.architectures()
    assert all(item["kernel"] == "random_bits" and item["threads"] == 256 for item in items)

    def no_compiler(*_: object) -> None:
        raise AssertionError("something was compiled twice")

    monkeypatch.setattr(_ptxas, "_compile", no_compiler)
    kernel_resources.main(["--check"])
    kernel_resources.main(["--check", "--quick"])
    nvcc, usages = kernel_resources.read_table(path)
    better = {n: {a: Usage(256, 8) for a in of} for n, of in usages.items()}
    kernel_resources.write_table(path, nvcc, better)
    with pytest.raises(SystemExit, match=r"random_bits on 9\.0: registers \d+, in the table 8"):
        kernel_resources.main(["--check", "--arch", "9.0"])
    with pytest.raises(SystemExit, match="all architectures"):
        kernel_resources.main(["--write", "--quick"])


def test_the_command_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, restore_threads: None
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(kernel_resources, "why_no_compiler", lambda: "no toolkit")
    with pytest.raises(SystemExit, match="no toolkit"):
        kernel_resources.main(["--check"])
