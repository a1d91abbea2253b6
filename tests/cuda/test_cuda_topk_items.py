"""The best of each row by the CUDA kernel, on the CPU, against Python's sort."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from emulator import ORDERS, recording, run, run_sanitized
from graph_cases import values
from torch import Tensor

from kgrec_fast.ops.topk_items import MAX_CUDA_K

HEADER = Path(__file__).parents[2] / "csrc" / "cuda" / "topk_items.h"
DTYPES = (torch.float32, torch.float64)
Known = tuple[Tensor, Tensor]


def topk(
    scores: Tensor, k: int, known: Known | None = None, users: Tensor | None = None, **how: Any
) -> tuple[Tensor, Tensor]:
    shape = (scores.size(0), min(k, scores.size(1)))
    found = torch.full(shape, torch.nan, dtype=scores.dtype)
    items = torch.full(shape, -1)
    lists = {}
    if known is not None:
        lists = {"known_ptr": known[0], "known_items": known[1]}
        lists["wide"] = int(known[1].dtype == torch.int64)
    run(
        "topk_rows",
        dtype=scores.dtype,
        scores=scores,
        users=users,
        values=found,
        items=items,
        **lists,
        **how,
    )
    return found, items


def check(
    scores: Tensor, k: int, known: Known | None = None, users: Tensor | None = None, **how: Any
) -> None:
    found, items = topk(scores, k, known, users, **how)
    wanted = scores.clone()
    for row in range(scores.size(0) if known is not None else 0):
        user = row if users is None else int(users[row])
        begin, end = known[0][user : user + 2].tolist()
        wanted[row, known[1][begin:end].long()] = -torch.inf
    wanted = wanted.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    order = [
        sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in wanted.tolist()
    ]
    assert items.tolist() == order
    assert torch.equal(found, wanted.gather(1, items))


def known_of(rows: int, items: int, dtype: torch.dtype) -> Known:
    """Nothing for the first user, everything for the second, then some with repetitions."""
    generator = torch.Generator().manual_seed(2)
    lists = [torch.zeros(0, dtype=torch.int64), torch.randperm(items, generator=generator)]
    lists += [torch.randint(items, (items // 2 + 1,), generator=generator) for _ in range(rows - 2)]
    counts = torch.tensor([0, *(len(x) for x in lists)])
    return counts.cumsum(0), torch.cat(lists).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("items", [1, 2, 33, 255, 257, 900])
def test_equals_sorting(items: int, dtype: torch.dtype) -> None:
    scores = values((3, items), dtype, items)
    for k in (1, 2, 20, items - 1, items, items + 3):
        check(scores, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [1, 2, 5, 100])
def test_many_equal_scores(number: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(number)
    scores = (torch.randint(number, (5, 700), generator=generator) - number // 2).to(dtype)
    scores[0] = -0.0
    scores[0, 1::2] = 0.0
    scores[1, :-3] = -torch.inf
    scores[2, ::7] = torch.inf
    for k in (1, 7, 64, 300, 700):
        check(scores, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_differ_in_their_last_bits(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    steps = torch.arange(600, dtype=dtype)
    tiny = torch.finfo(dtype).tiny * eps  # subnormal
    scores = torch.stack([1 + eps * steps, -1 - eps * steps, tiny * steps, tiny * (300 - steps)])
    for k in (1, 20, 301, 599):
        check(scores, k)


def test_more_than_two_to_the_sixteenth_equal_items() -> None:
    scores = torch.zeros(1, 70_000)
    scores[0, 69_000] = 1
    check(scores, 5)
    check(-scores, 5)


@pytest.mark.parametrize("k", [1000, MAX_CUDA_K])
def test_as_many_as_there_may_be(k: int) -> None:
    check(values((2, 1500), torch.float32, 3).mul(50).round(), k)
    check(values((1, k), torch.float64, 3), k)
    (limit,) = re.findall(r"kMaxTopk = (\d+);", HEADER.read_text())
    assert int(limit) == MAX_CUDA_K


def test_scores_that_are_nan_count_as_the_lowest() -> None:
    scores = values((3, 400), torch.float32, 4)
    scores[0, ::2] = torch.nan
    scores[1] = torch.nan
    scores[2, 5:] = -torch.nan
    for k in (3, 20, 400):
        check(scores, k)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("items", [1, 32, 333])
def test_known_items_come_last(items: int, dtype: torch.dtype, ids: torch.dtype) -> None:
    scores, known = values((5, items), dtype, 5), known_of(5, items, ids)
    for users in (None, torch.tensor([4, 1, 0, 0, 2])):
        for k in (1, 20, items):
            check(scores, k, known, users)


def test_lists_that_lie_outside_are_left_out() -> None:
    scores = values((4, 30), torch.float32, 6)
    known = (torch.tensor([0, 4, 99, -7, 6]), torch.tensor([3, 30, -1, 2**40, 5, 7]))
    found, items = topk(scores, 10, known, torch.tensor([0, 1, 4, -1]))
    scores[0, 3] = scores[1, 5] = scores[1, 7] = -torch.inf
    best, order = torch.sort(scores, dim=1, descending=True, stable=True)
    assert torch.equal(found, best[:, :10])
    assert torch.equal(items, order[:, :10])


def test_nothing_to_do() -> None:
    for rows, items, k in ((0, 4, 2), (3, 0, 2), (3, 4, 0)):
        topk(torch.zeros(rows, items), k)


@pytest.mark.parametrize(("order", "seed"), ORDERS)
@pytest.mark.parametrize("max_blocks", [0, 1, 3])
def test_order_and_grid_do_not_matter(order: str, seed: int, max_blocks: int) -> None:
    how = {"order": order, "seed": seed, "max_blocks": max_blocks}
    scores, known = values((5, 300), torch.float32, 7).mul(4).round(), known_of(5, 300, torch.int32)
    for k in (5, 50):
        check(scores, k, known, **how)


def test_sanitized(tmp_path: Path) -> None:
    with recording(tmp_path / "cases"):
        for dtype in DTYPES:
            for ids in (torch.int64, torch.int32):
                scores = values((3, 130), dtype, 8).round()
                topk(scores, 33, known_of(3, 130, ids), torch.tensor([2, 1, 0]))
            topk(scores, 130)
    done = run_sanitized(tmp_path / "cases")
    assert done.returncode == 0, done.stderr
