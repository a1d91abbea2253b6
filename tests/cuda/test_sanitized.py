"""Kernels under AddressSanitizer and UBSan: a program of its own, on cases recorded here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulator import ORDERS, recording, run, run_sanitized


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_correct_kernels(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    with recording(cases):
        for order, seed in ORDERS:
            options = {"order": order, "seed": seed}
            x, ints = normal(1000), np.arange(256, dtype=np.int32) % 50
            run("block_sum", x=x, out=np.zeros(3, np.float32), **options)
            run("warp_scan", x=ints, out=np.zeros_like(ints), **options)
            run("histogram", x=ints, counts=np.zeros(50, np.int64), **options)
            half = x.astype(np.float16)
            run("convert", x=half, wide=x, narrow=half.copy(), dtype="f16", **options)
            ptr = np.array([0, 3, 3, 40, 41])
            long_segments = np.zeros(1, np.int32)
            out = np.zeros(4)
            run(
                "segment_sum",
                ptr=ptr,
                x=np.ones(41),
                out=out,
                long_segments=long_segments,
                **options,
            )
    done = run_sanitized(cases)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5 * len(ORDERS)


def test_errors_of_the_emulator_come_out(tmp_path: Path) -> None:
    """Fibers that are given up must not confuse the sanitizer."""
    cases = tmp_path / "cases"
    x, out = normal(64), np.zeros(64, np.float32)
    with recording(cases):
        run("block_sum", x=x, out=out[:1])
        with pytest.raises(RuntimeError):
            run("mistake", kernel="barrier_after_exit", x=x, out=out)
    done = run_sanitized(cases)
    assert done.returncode == 1
    assert "waits for thread 37, which has exited" in done.stderr
    assert "AddressSanitizer" not in done.stderr


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("raw_read_past_end", "AddressSanitizer: heap-buffer-overflow"),
        ("raw_shared_past_end", "AddressSanitizer: global-buffer-overflow"),
        ("local_array_past_end", "AddressSanitizer: stack-buffer-overflow"),
        ("shift_too_far", "shift exponent 32 is too large"),
        ("overflow", "signed integer overflow"),
    ],
)
def test_mistakes_that_go_around_load_and_store(kernel: str, report: str, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    with recording(cases):
        run("mistake", kernel=kernel, x=normal(64), out=np.zeros(64, np.float32))
    done = run_sanitized(cases)
    assert done.returncode != 0
    assert report in done.stderr
    assert "emulator_mistakes.cpp" in done.stderr
