"""Nothing in csrc/cuda waits for the device, or allocates outside of torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").iterdir())
# The calls of the runtime and driver that wait, allocate or copy (cudaMemsetAsync does none of it);
# what a tensor is read by on the host; and what waits between blocks.
FORBIDDEN = re.compile(
    r"\b("
    r"cu(da)?(Device|Stream|Event|Ctx|Thread)Synchronize|cudaEventQuery|cudaStreamQuery"
    r"|cu(da)?Mem(cpy|Alloc|AllocHost|Free|Prefetch)\w*|cudaMemset|cudaMalloc\w*|cudaFree\w*|cudaHost\w+"
    r"|cudaLaunchHostFunc|cudaStreamAddCallback"
    r"|aoti_torch_item\w*|_local_scalar_dense|(?<=\.)item(?=(<[\w:]+>)?\()|nonzero|masked_select|synchronize"
    r"|cooperative_groups|cudaLaunchCooperativeKernel|grid_group|__nanosleep"
    r")\s*[(<:]"
)


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_waits(path: Path) -> None:
    found = FORBIDDEN.search(without_comments(path.read_text()))
    assert found is None, f"{path.name}: {found and found[0]}"


@pytest.mark.parametrize(
    "line",
    [
        "cudaDeviceSynchronize();",
        "cudaMemcpyAsync(a, b, n, kind, stream);",
        "cudaMalloc(&p, n);",
        "const int k = x.item<int>();",
        "cudaStreamSynchronize (stream);",
        "namespace cg = cooperative_groups::grid_group;",
    ],
)
def test_the_pattern_finds_them(line: str) -> None:
    assert FORBIDDEN.search(without_comments(line))
    assert not FORBIDDEN.search(without_comments(f"// {line}"))


def test_a_comparison_is_no_call() -> None:
    assert FORBIDDEN.search("a.key == b.key && a.item < b.item") is None
    assert FORBIDDEN.search("a.item() < b")
