"""Least traffic of CUDA kernels by hand; that a sample of a graph keeps within the limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import kernel_traffic
from benchmarks.kernel_traffic import Counts

# Row 0: relations 0, 0, 1; row 1: none; row 2: relation 1.
PTR = torch.tensor([0, 3, 3, 4])
REL = torch.tensor([0, 0, 1, 1])


def test_counts_of_a_graph() -> None:
    assert kernel_traffic.count_runs(PTR, REL, None) == Counts(4, 4, 3, 3, 2)
    mask = torch.tensor([True, False, False, False])
    assert kernel_traffic.count_runs(PTR, REL, mask) == Counts(4, 1, 1, 3, 1)


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        # Rows of Q, X, Rel, O are 8 sectors; two heads of float32 are a quarter of one.
        ("forward", torch.float32, 4 * 16 + 4 * 8 / 32 + 3 * 8 + 2 * (8 + 8 + 0.25)),
        ("rows", torch.float32, 4 * 16 + 4 * 8 / 32 + 3 * 8 + 2 * (4 * 8 + 0.5)),
        ("sums", torch.float32, 3 * (8 + 4 / 32)),
        ("columns", torch.float32, 4 * (16 + 16 / 32 + 4 / 32) + 4 * 8 / 32 + 3 * 8 + 2 * 24),
        # Of bfloat16 4, but O, dQ and what is added up are of float32.
        ("forward", torch.bfloat16, 4 * 8 + 4 * 8 / 32 + 3 * 4 + 2 * (4 + 8 + 0.25)),
        ("rows", torch.bfloat16, 4 * 8 + 4 * 8 / 32 + 3 * 4 + 2 * (2 * 4 + 2 * 8 + 0.5)),
        ("columns", torch.bfloat16, 4 * (8 + 16 / 32 + 4 / 32) + 4 * 8 / 32 + 3 * 4 + 2 * 16),
    ],
)
def test_least_sectors(name: str, dtype: torch.dtype, expected: float) -> None:
    counts = kernel_traffic.count_runs(PTR, REL, None)
    assert kernel_traffic.least_sectors(name, counts, dtype, masked=False) == pytest.approx(
        expected
    )


def test_a_sample_keeps_within_the_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "traffic.json"
    assert kernel_traffic.main(["--rows", "400", "--json", str(path)]) == 0
    passes = json.loads(path.read_text())["passes"]
    names = {(p["dtype"], p["masked"], p["name"]) for p in passes}
    assert len(names) == len(passes) == 16
    for p in passes:
        assert p["sectors"] == p["read"] + p["written"]
        assert p["sectors"] >= 0.99 * p["least"]
    assert "bfloat16" in capsys.readouterr().out
