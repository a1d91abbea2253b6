"""Ranking metrics against hand-worked cases and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
import torchmetrics.functional.retrieval as oracle

from kgrec_fast.training.metrics import METRICS, check_cutoffs, metric_names, ranking_metrics

ORACLES = {
    "recall": oracle.retrieval_recall,
    "ndcg": oracle.retrieval_normalized_dcg,
    "precision": oracle.retrieval_precision,
    "hit": oracle.retrieval_hit_rate,
    "mrr": oracle.retrieval_reciprocal_rank,
}


def test_a_case_worked_by_hand() -> None:
    # Ranks 2 and 4 are hits, out of three positives.
    hits = torch.tensor([[False, True, False, True]])
    got = ranking_metrics(hits, torch.tensor([3]), [1, 2, 4])
    second, fourth = 1 / math.log2(3), 1 / math.log2(5)
    ideal = [1.0, 1.0 + second, 1.0 + second + 0.5]
    expected = {
        "recall": [0, 1 / 3, 2 / 3],
        "precision": [0, 1 / 2, 2 / 4],
        "hit": [0, 1, 1],
        "mrr": [0, 1 / 2, 1 / 2],
        "ndcg": [0, second / ideal[1], (second + fourth) / ideal[2]],
    }
    for metric in METRICS:
        for k, value in zip([1, 2, 4], expected[metric], strict=True):
            assert got[f"{metric}@{k}"].item() == pytest.approx(value, abs=1e-12), (metric, k)


@pytest.mark.parametrize("n_items", [7, 60])
def test_agrees_with_torchmetrics(n_items: int) -> None:
    generator = torch.Generator().manual_seed(n_items)
    scores = torch.rand(25, n_items, generator=generator)
    target = torch.rand(25, n_items, generator=generator) < 0.15
    target[:, 3] |= target.sum(1) == 0
    order = scores.argsort(dim=1, descending=True)
    hits = target.gather(1, order)
    ks = [1, 5, 7]
    got = ranking_metrics(hits, target.sum(1), ks)
    for metric, function in ORACLES.items():
        for k in ks:
            expected = torch.stack(
                [function(s, t, top_k=k) for s, t in zip(scores, target, strict=True)]
            ).double()
            torch.testing.assert_close(got[f"{metric}@{k}"], expected, rtol=0, atol=2e-7)


def test_ranks_that_are_missing_are_no_hits() -> None:
    short = torch.tensor([[True, False], [False, True]])
    long = torch.tensor([[True, False, False, False, False], [False, True, False, False, False]])
    positives = torch.tensor([2, 4])
    got = ranking_metrics(short, positives, [1, 5])
    expected = ranking_metrics(long, positives, [1, 5])
    for name in metric_names([1, 5]):
        assert torch.equal(got[name], expected[name]), name


def test_a_cutoff_beyond_all_items_takes_no_memory() -> None:
    hits = torch.tensor([[False, True, True], [False, False, False]])
    positives = torch.tensor([5, 1])
    far = 10**12
    got = ranking_metrics(hits, positives, [3, far])
    assert got[f"recall@{far}"].tolist() == [2 / 5, 0]
    assert got[f"precision@{far}"].tolist() == [2 / far, 0]
    assert got[f"hit@{far}"].tolist() == [1, 0]
    assert got[f"mrr@{far}"].tolist() == [1 / 2, 0]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, 6))
    found = 1 / math.log2(3) + 1 / math.log2(4)
    assert got[f"ndcg@{far}"].tolist() == pytest.approx([found / ideal, 0], abs=1e-12)


def test_no_user_and_no_item() -> None:
    none = ranking_metrics(torch.zeros(0, 4, dtype=torch.bool), torch.zeros(0).long(), [2])
    assert all(value.shape == (0,) for value in none.values())
    empty = ranking_metrics(torch.zeros(3, 0, dtype=torch.bool), torch.ones(3).long(), [2])
    assert all(torch.equal(value, torch.zeros(3).double()) for value in empty.values())


@pytest.mark.parametrize("ks", [[], [0], [-1, 5], [2.0], [True]])
def test_cutoffs_must_be_positive_integers(ks: list) -> None:
    with pytest.raises(ValueError, match="ks: got"):
        check_cutoffs(ks)


def test_cutoffs_are_sorted_and_distinct() -> None:
    assert check_cutoffs([10, 5, 10]) == (5, 10)


def test_malformed_blocks() -> None:
    hits = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"hits: got torch\.float32"):
        ranking_metrics(hits.float(), torch.ones(2).long(), [1])
    with pytest.raises(ValueError, match=r"positives: got shape \(3,\), expected \(2,\)"):
        ranking_metrics(hits, torch.ones(3).long(), [1])
    with pytest.raises(ValueError, match="user without positives"):
        ranking_metrics(hits, torch.tensor([1, 0]), [1])
