"""The best items of each user by inner product, without the matrix of all scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kgrec_fast import _library
from kgrec_fast._numbers import check_int
from kgrec_fast.ops import _common

MAX_SCORES = 1 << 24
"""Scores in flight at once: 64 MiB of float32, whatever the number of items."""
MAX_CUDA_K = 1024
"""More than that the CUDA kernel does not rank: the reference does. Equal to kMaxTopk in C++."""

# A block on the CPU: scores that stay in the cache from the product to the ranking, but as many
# rows as make a fast product.
CPU_SCORES = 1 << 21
MIN_CPU_ROWS = 64

# scores, known_ptr, known_items, users, k -> values, items
_RankRows = Callable[
    [Tensor, Tensor | None, Tensor | None, Tensor | None, int], tuple[Tensor, Tensor]
]


@torch.no_grad()
def topk_items(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    known_ptr: Tensor | None = None,
    known_items: Tensor | None = None,
    users: Tensor | None = None,
    max_scores: int = MAX_SCORES,
) -> tuple[Tensor, Tensor]:
    """The `k` items with the highest inner product for each row of `user_emb`; no gradient flows.

    Of equal scores the lower item comes first, always. The known items of a user score ``-inf``:
    they come last, the lowest first. Users are taken in blocks, so that there are never more than
    `max_scores` scores (one user's at least). A score that is NaN counts as ``-inf`` in native
    kernels; where the reference puts it is left open. On CUDA more than 1,024 items a user are
    ranked by the reference, which waits for the device.

    Time O(B I D), the matrix product's; ranking is little more than one read of the scores.

    Args:
        user_emb: [B, D]; half types are multiplied in float32, and autocast does not apply.
        item_emb: [I, D], of the same dtype.
        k: how many; all of them where there are fewer.
        known_ptr: int64 [U + 1]: user u knows ``known_items[known_ptr[u]:known_ptr[u + 1]]``.
        known_items: int64 or int32 [M], in any order; both or neither.
        users: int64 [B], the user of each row; None where row b is user b.
        max_scores: upper bound for the scores held at once.

    Returns:
        scores [B, min(k, I)] in descending order, float64 for float64, else float32; and items,
        int64 of the same shape.

    Raises:
        TypeError, ValueError: an argument is not as described (the values of `known_ptr`,
            `known_items` and `users` are looked at on the CPU only: a GPU would have to be waited
            for, and leaves out what lies outside).
    """
    known = (known_ptr, known_items, users)
    k, max_scores = _check(user_emb, item_emb, k, *known, max_scores)
    device = user_emb.device
    native = _common.runs_native(device)
    if not native or (device.type == "cuda" and min(k, item_emb.size(0)) > MAX_CUDA_K):
        return _in_blocks(_rank_rows_reference, user_emb, item_emb, k, *known, max_scores)
    return _in_blocks(_topk_rows, user_emb, item_emb, k, *known, max_scores)


@torch.no_grad()
def topk_items_reference(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    known_ptr: Tensor | None = None,
    known_items: Tensor | None = None,
    users: Tensor | None = None,
    max_scores: int = MAX_SCORES,
) -> tuple[Tensor, Tensor]:
    """`topk_items` in plain PyTorch."""
    known = (known_ptr, known_items, users)
    k, max_scores = _check(user_emb, item_emb, k, *known, max_scores)
    return _in_blocks(_rank_rows_reference, user_emb, item_emb, k, *known, max_scores)


def top_items(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row in plain PyTorch; of equal scores the lower item first, always.

    ``torch.topk`` leaves open which of several equal entries it returns and in which order. Rows
    where that matters at the boundary are few (none, usually) and are sorted stably instead.

    Args:
        scores: ``[B, n_items]``, no NaN.
        k: how many; all of them where there are fewer.

    Returns:
        scores ``[B, min(k, n_items)]`` in descending order, items int64 of the same shape.
    """
    k = min(k, scores.shape[1])
    if k == 0 or scores.shape[0] == 0:
        empty = scores.new_zeros(scores.shape[0], k)
        return empty, empty.long()
    values, items = torch.topk(scores, k, dim=1)
    tied = (scores >= values[:, -1:]).sum(dim=1) > k
    if bool(tied.any()):
        best, order = torch.sort(scores[tied], dim=1, descending=True, stable=True)
        values[tied], items[tied] = best[:, :k], order[:, :k]
    items, by_item = torch.sort(items, dim=1)
    values, by_value = torch.sort(values.gather(1, by_item), dim=1, descending=True, stable=True)
    return values, items.gather(1, by_value)


def _in_blocks(
    rank_rows: _RankRows,
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    known_ptr: Tensor | None,
    known_items: Tensor | None,
    users: Tensor | None,
    max_scores: int,
) -> tuple[Tensor, Tensor]:
    """Multiplies and ranks as many rows at a time as `max_scores` allows."""
    rows, items = user_emb.size(0), item_emb.size(0)
    k = min(k, items)
    step = max(1, max_scores // max(1, items))
    if user_emb.device.type == "cpu" and not torch.compiler.is_compiling():
        step = min(step, max(MIN_CPU_ROWS, CPU_SCORES // max(1, items)))
    blocks = max(1, -(-rows // step))
    step = max(1, -(-rows // blocks))  # of like size: products of few rows are slow
    dtype = _common.accumulate_dtype(user_emb.dtype)
    by_item = item_emb.to(dtype).T
    ranked = []
    for begin in range(0, max(1, rows), step):
        end = min(begin + step, rows)
        ptr, who = known_ptr, None
        if users is not None:
            who = users[begin:end]
        elif ptr is not None:
            ptr = ptr[begin : end + 1]
        scores = _product(user_emb[begin:end].to(dtype), by_item)
        ranked.append(rank_rows(scores, ptr, known_items, who, k))
    if len(ranked) == 1:
        return ranked[0]
    values, found = zip(*ranked, strict=True)
    return torch.cat(values), torch.cat(found)


def _product(left: Tensor, right: Tensor) -> Tensor:
    if not torch.is_autocast_enabled(left.device.type):
        return left @ right
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _rank_rows_reference(
    scores: Tensor,
    known_ptr: Tensor | None,
    known_items: Tensor | None,
    users: Tensor | None,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The op `topk_rows` in plain PyTorch; `scores` is overwritten."""
    if known_ptr is not None and known_items is not None:
        if users is None:
            users = torch.arange(scores.size(0), device=scores.device)
        begin = known_ptr[users]
        count = known_ptr[users + 1] - begin
        row = torch.repeat_interleave(torch.arange(users.numel(), device=users.device), count)
        first = count.cumsum(0) - count
        place = begin[row] + torch.arange(row.numel(), device=row.device) - first[row]
        scores[row, known_items[place].long()] = -torch.inf
    return top_items(scores, k)


def _check(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    known_ptr: Tensor | None,
    known_items: Tensor | None,
    users: Tensor | None,
    max_scores: int,
) -> tuple[int, int]:
    """`k` and `max_scores` as ints."""
    _common.check_matrix("user_emb", user_emb, 0)
    _common.check_matrix("item_emb", item_emb, 0, like=user_emb)
    k, max_scores = check_int("k", k), check_int("max_scores", max_scores)
    for name, number, least in (("k", k, 0), ("max_scores", max_scores, 1)):
        if number < least:
            raise ValueError(f"{name} is {number}, expected at least {least}")
    rows, device = user_emb.size(0), user_emb.device
    if users is not None:
        _check_ints("users", users, (torch.int64,), device)
        if users.numel() != rows:
            raise ValueError(f"users has {users.numel()} elements, expected {rows}, as user_emb")
    if known_ptr is None and known_items is None:
        return k, max_scores
    if known_ptr is None or known_items is None:
        missing = "known_ptr" if known_ptr is None else "known_items"
        raise ValueError(f"{missing} is None, expected both known_ptr and known_items, or neither")
    _check_ints("known_ptr", known_ptr, (torch.int64,), device)
    _check_ints("known_items", known_items, (torch.int64, torch.int32), device)
    num_users = known_ptr.numel() - 1
    if num_users < (rows if users is None else 0):
        raise ValueError(f"known_ptr has {num_users + 1} elements, expected at least {rows + 1}")
    if not _common.readable(known_ptr):
        return k, max_scores
    if int(known_ptr[0]) < 0 or int(known_ptr[-1]) > known_items.numel():
        raise ValueError(
            f"known_ptr goes from {int(known_ptr[0])} to {int(known_ptr[-1])}, "
            f"expected no less than 0 and no more than {known_items.numel()}, known_items' length"
        )
    if bool((known_ptr[1:] < known_ptr[:-1]).any()):
        raise ValueError("known_ptr decreases, expected pointers that never do")
    _check_range("known_items", known_items, item_emb.size(0), "the number of items")
    if users is not None:
        _check_range("users", users, num_users, "the users of known_ptr")
    return k, max_scores


def _check_ints(
    name: str, x: Tensor, dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if not isinstance(x, Tensor) or x.dtype not in dtypes:
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} is {found}, expected a tensor of {' or '.join(map(str, dtypes))}")
    _common.check_dense(name, x)
    if x.dim() != 1:
        raise ValueError(f"{name} has shape {list(x.shape)}, expected one dimension")
    _common.check_device(name, x, device)


def _check_range(name: str, ids: Tensor, size: int, what: str) -> None:
    if ids.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(ids))
    if low < 0 or high >= size:
        found = low if low < 0 else high
        raise ValueError(f"{name} holds {found}, expected 0 <= id < {size}, {what}")


if _library.CPU.loaded:

    @torch.library.register_fake("kgrec_fast::topk_rows")
    def _(
        scores: Tensor,
        known_ptr: Tensor | None,
        known_items: Tensor | None,
        users: Tensor | None,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        shape = (scores.size(0), min(k, scores.size(1)))
        return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)

    _topk_rows = _common.register_no_grad("topk_rows")
