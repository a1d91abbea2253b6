"""The best items of each user: against Python's sort, with ties, unknown and unrankable items."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from segment_helpers import backend  # noqa: F401
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kgrec_fast.ops import topk_items, topk_items_reference
from kgrec_fast.ops.topk_items import top_items

FLOATS = (torch.float32, torch.float64)


def topk_rows(scores: Tensor, k: int, *known: Tensor | None) -> tuple[Tensor, Tensor]:
    known += (None,) * (3 - len(known))
    return torch.ops.kgrec_fast.topk_rows(scores, *known, k)


def by_sorting(scores: Tensor, k: int) -> list[list[int]]:
    """The first k items of each row in order of (score, highest first; item, lowest first)."""
    return [
        sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in scores.tolist()
    ]


def check(found: tuple[Tensor, Tensor], scores: Tensor, k: int) -> None:
    values, items = found
    assert values.dtype == scores.dtype
    assert items.dtype == torch.int64
    assert items.tolist() == by_sorting(scores, k)
    assert torch.equal(values, scores.gather(1, items))


def normal(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def known_of(rows: int, items: int, dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    """Lists in no order, with repetitions; one user in three knows nothing, one in five all."""
    generator = torch.Generator().manual_seed(7)
    lists = []
    for user in range(rows):
        count = 0 if user % 3 == 0 else int(torch.randint(1 + items // 2, (), generator=generator))
        mine = torch.randint(max(items, 1), (count,), generator=generator)
        lists.append(torch.randperm(items, generator=generator) if user % 5 == 4 else mine)
    counts = torch.tensor([0, *(len(x) for x in lists)])
    return counts.cumsum(0), torch.cat([*lists, torch.zeros(0, dtype=torch.int64)]).to(dtype)


def without_known(scores: Tensor, ptr: Tensor, known: Tensor, users: Tensor | None) -> Tensor:
    scores = scores.clone()
    for row in range(scores.size(0)):
        user = row if users is None else int(users[row])
        for item in known[int(ptr[user]) : int(ptr[user + 1])].tolist():
            scores[row, item] = -torch.inf
    return scores


# -- the op on rows of scores ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("items", [1, 2, 15, 63, 64, 65, 700, 5003])
def test_equals_sorting(items: int, dtype: torch.dtype, isa: str) -> None:
    scores = normal(9, items, dtype)
    for k in (1, 2, 20, 33, 130, items - 1, items, items + 5):
        check(topk_rows(scores, k), scores, k)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("values", [1, 2, 5, 100])
def test_many_equal_scores(values: int, dtype: torch.dtype, isa: str) -> None:
    generator = torch.Generator().manual_seed(values)
    scores = torch.randint(values, (12, 2500), generator=generator).to(dtype) - values // 2
    scores[0] = -0.0
    scores[0, 1::2] = 0.0
    scores[1, :-3] = -torch.inf
    scores[2] = torch.inf
    scores[3, ::7] = torch.inf
    for k in (1, 7, 20, 64, 200, 2500):
        check(topk_rows(scores, k), scores, k)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_in_order(dtype: torch.dtype, isa: str) -> None:
    """The collection of the best overflows again and again where each item beats those before."""
    up = torch.arange(3000, dtype=dtype)
    scores = torch.stack([up, up.flip(0), up // 100, up.flip(0) // 100, -up * 1e-3, up % 64])
    for k in (1, 5, 20, 100, 1500):
        check(topk_rows(scores, k), scores, k)


@pytest.mark.parametrize("dtype", FLOATS)
def test_tiny_and_huge_scores(dtype: torch.dtype, isa: str) -> None:
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps  # subnormal
    levels = torch.tensor(
        [0.0, -0.0, smallest, -smallest, info.tiny, -info.tiny, 1.0, info.max, -info.max],
        dtype=dtype,
    )
    generator = torch.Generator().manual_seed(3)
    scores = levels[torch.randint(len(levels), (6, 1000), generator=generator)]
    scores[4] = levels[:4][torch.randint(4, (1000,), generator=generator)]
    scores[5] = levels[torch.randint(2, 6, (1000,), generator=generator)]
    for k in (1, 20, 300, 900):
        check(topk_rows(scores, k), scores, k)


def test_scores_that_are_nan_count_as_the_lowest(isa: str) -> None:
    scores = normal(4, 900)
    scores[0, ::2] = torch.nan
    scores[1] = torch.nan
    scores[2, 5:] = torch.nan
    scores[3, :899] = torch.nan
    for k in (3, 20, 899):
        check(topk_rows(scores, k), scores.nan_to_num(-torch.inf), k)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("items", [1, 40, 1682])
def test_known_items_come_last(items: int, dtype: torch.dtype, ids: torch.dtype, isa: str) -> None:
    ptr, known = known_of(23, items, ids)
    scores = normal(23, items, dtype)
    before = scores.clone()
    generator = torch.Generator().manual_seed(1)
    for users in (None, torch.randint(23, (23,), generator=generator)):
        wanted = without_known(scores, ptr, known, users)
        for k in (1, 20, items):
            check(topk_rows(scores, k, ptr, known, users), wanted, k)
    assert torch.equal(scores, before)


def test_lists_that_lie_outside_are_left_out(isa: str) -> None:
    """The op itself looks at no values before: on a device that is nobody's task."""
    scores = normal(4, 30)
    known = torch.tensor([3, 30, -1, 2**40, 5, 7])
    ptr = torch.tensor([0, 4, 99, -7, 6])
    users = torch.tensor([0, 1, 4, -1])
    wanted = scores.clone()
    wanted[0, 3] = -torch.inf
    wanted[1, 5] = wanted[1, 7] = -torch.inf
    check(topk_rows(scores, 10, ptr, known, users), wanted, 10)


@pytest.mark.usefixtures("restore_threads")
def test_threads_do_not_matter(isa: str) -> None:
    scores = normal(200, 1000).mul(20).round()
    ptr, known = known_of(200, 1000)
    first = topk_rows(scores, 20, ptr, known)
    check(first, without_known(scores, ptr, known, None), 20)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        again = topk_rows(scores, 20, ptr, known)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_strided_rows(isa: str) -> None:
    scores = normal(8, 90)
    check(topk_rows(scores[:, 3:80], 9), scores[:, 3:80], 9)
    check(topk_rows(scores.t(), 5), scores.t(), 5)


def test_sizes_of_nothing(isa: str) -> None:
    for rows, items, k in ((0, 5, 3), (3, 0, 3), (3, 5, 0), (0, 0, 0)):
        values, found = topk_rows(torch.zeros(rows, items), k)
        assert values.shape == found.shape == (rows, min(k, items))


def test_opcheck() -> None:
    ptr, known = known_of(6, 40)
    for lists in ((None, None, None), (ptr, known, None), (ptr, known.int(), torch.arange(6))):
        op = torch.ops.kgrec_fast.topk_rows.default
        torch.library.opcheck(op, (normal(6, 40), *lists, 5))


def test_a_gradient_that_is_asked_for_raises() -> None:
    with pytest.raises(RuntimeError, match="topk_rows is not differentiable"):
        topk_rows(normal(2, 5).requires_grad_(), 2)[0].sum().backward()


def test_bad_operands_of_the_op() -> None:
    scores, ptr = normal(2, 5), torch.tensor([0, 1, 1])
    for arguments, message in (
        ((scores.half(), None, None, None, 2), "scores are expected in float32 or float64"),
        ((scores[0], None, None, None, 2), "scores have 1 dimensions"),
        ((scores, None, None, None, -1), "k is -1"),
        ((scores, ptr, None, None, 2), "known_ptr and known_items are expected together"),
        ((scores, ptr, ptr.float(), None, 2), "expected"),
        ((scores, None, None, torch.arange(3), 2), "users has 3 elements, expected 2"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.kgrec_fast.topk_rows(*arguments)


# -- users and items ------------------------------------------------------------------------------


def whole(rows: int, items: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Embeddings of small integers: scores are exact in any order of the sum, often equal."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((rows, 6), (items, 6))
    user, item = (torch.randint(-3, 4, s, generator=generator).to(dtype) for s in shapes)
    return user, item


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_scores", [1, 130, 1 << 24])
def test_blocks_do_not_matter(dtype: torch.dtype, max_scores: int, backend: str) -> None:  # noqa: F811
    user, item = whole(31, 60, dtype)
    ptr, known = known_of(31, 60)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scores = user.to(wide) @ item.to(wide).T
    for function in (topk_items, topk_items_reference):
        check(function(user, item, 20, max_scores=max_scores), scores, 20)
        wanted = without_known(scores, ptr, known, None)
        found = function(user, item, 20, ptr, known, max_scores=max_scores)
        check(found, wanted, 20)
        for users in (torch.arange(31).flip(0), torch.full((31,), 4)):
            wanted = without_known(scores, ptr, known, users)
            check(function(user, item, 70, ptr, known.int(), users, max_scores), wanted, 70)


def test_equals_the_reference_on_real_numbers(isa: str) -> None:
    user, item = normal(90, 32, seed=1), normal(1682, 32, seed=2)
    ptr, known = known_of(90, 1682)
    for arguments in ((user, item, 20), (user, item, 50, ptr, known)):
        got, wanted = topk_items(*arguments), topk_items_reference(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_of_nothing(backend: str) -> None:  # noqa: F811
    for rows, items, k in ((0, 5, 3), (3, 0, 3), (3, 5, 0)):
        values, found = topk_items(torch.ones(rows, 2), torch.ones(items, 2), k)
        assert values.shape == found.shape == (rows, min(k, items))
    empty = torch.zeros(0, dtype=torch.int64)
    got = topk_items(torch.ones(2, 1), torch.ones(3, 1), 2, torch.zeros(3).long(), empty)
    assert got[1].tolist() == [[0, 1], [0, 1]]


def test_never_more_scores_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = Tensor.__matmul__

    def product(left: Tensor, right: Tensor) -> Tensor:
        out = real(left, right)
        seen.append(out.numel())
        return out

    monkeypatch.setattr(Tensor, "__matmul__", product)
    topk_items(normal(10, 4), normal(30, 4), 3, max_scores=95)
    assert seen == [90, 90, 90, 30]


def test_no_gradient_flows_and_autocast_is_left_aside(backend: str) -> None:  # noqa: F811
    user, item = normal(3, 64).requires_grad_(), normal(40, 64)
    plain = topk_items(user, item, 5)
    assert not plain[0].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        cast = topk_items(user, item, 5)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_fake_tensors_and_one_graph() -> None:
    ptr, known = known_of(9, 30)
    arguments = (normal(9, 4), normal(30, 4), 5, ptr, known)
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments]
    with mode:
        values, items = topk_items(*fake)
    assert values.shape == items.shape == (9, 5)
    assert items.dtype == torch.int64
    for size in (1 << 24, 100):
        compiled: Any = torch.compile(topk_items, fullgraph=True, backend="aot_eager")
        found = compiled(*arguments, max_scores=size)
        wanted = topk_items(*arguments, max_scores=size)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


U, I = normal(4, 3), normal(6, 3)  # noqa: E741
PTR, KNOWN = torch.tensor([0, 2, 2, 3, 3]), torch.tensor([1, 2, 5])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((None, I, 2), TypeError, "user_emb is a NoneType"),
        ((U, I.double(), 2), TypeError, r"item_emb has dtype torch\.float64"),
        ((U, I[:, :2], 2), ValueError, "item_emb has 2 columns, expected 3"),
        ((U, I, -1), ValueError, "k is -1, expected at least 0"),
        ((U, I, 2.0), TypeError, "k is a float, expected an int"),
        ((U, I, 2, None, None, None, 0), ValueError, "max_scores is 0, expected at least 1"),
        ((U, I, 2, PTR), ValueError, "known_items is None, expected both"),
        ((U, I, 2, None, KNOWN), ValueError, "known_ptr is None, expected both"),
        ((U, I, 2, PTR.int(), KNOWN), TypeError, r"known_ptr is torch\.int32"),
        ((U, I, 2, PTR, KNOWN.float()), TypeError, r"known_items is torch\.float32"),
        ((U, I, 2, PTR, KNOWN[None]), ValueError, r"known_items has shape \[1, 3\]"),
        ((U, I, 2, PTR[:4], KNOWN), ValueError, "known_ptr has 4 elements, expected at least 5"),
        ((U, I, 2, PTR, KNOWN[:2]), ValueError, "known_ptr goes from 0 to 3, expected"),
        ((U, I, 2, torch.tensor([0, 3, 2, 3, 3]), KNOWN), ValueError, "known_ptr decreases"),
        ((U, I, 2, PTR, KNOWN + 1), ValueError, "known_items holds 6, expected 0 <= id < 6"),
        ((U, I, 2, PTR, -KNOWN), ValueError, "known_items holds -5"),
        ((U, I, 2, PTR, KNOWN, torch.arange(3)), ValueError, "users has 3 elements, expected 4"),
        ((U, I, 2, PTR, KNOWN, torch.arange(1, 5)), ValueError, "users holds 4, expected"),
        ((U, I, 2, PTR, KNOWN, torch.arange(4).int()), TypeError, r"users is torch\.int32"),
    ],
)
def test_bad_arguments_are_named(arguments, kind, message) -> None:
    for function in (topk_items, topk_items_reference):
        with pytest.raises(kind, match=message):
            function(*arguments)


# -- the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_items", [5, 1000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_reference_equals_sorting(n_items: int, dtype: torch.dtype) -> None:
    scores = torch.randint(0, 4, (50, n_items), generator=torch.Generator().manual_seed(0))
    scores = scores.to(dtype)
    scores[0] = 0.0
    scores[1, 2:] = -torch.inf
    scores[2] = torch.arange(n_items)  # no ties
    check(top_items(scores, 4), scores, 4)


def test_the_reference_of_nothing() -> None:
    assert top_items(torch.zeros(3, 0), 5)[1].shape == (3, 0)
    assert top_items(torch.zeros(0, 4), 2)[1].shape == (0, 2)
    assert top_items(torch.zeros(1, 2), 5)[1].tolist() == [[0, 1]]
