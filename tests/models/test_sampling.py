"""The draws of a training step: exact counts, and the distributions they are meant to have.

Distributions are tested by chi-square at an error rate of 1e-4 for each test; seeds are fixed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kgrec_fast.models import sampling

ERROR_RATE = 1e-4


def assert_distributed(counts: list[int], probabilities: list[float]) -> None:
    """Chi-square test of counts of all outcomes."""
    counts, expected = torch.tensor(counts).double(), torch.tensor(probabilities).double()
    assert expected.sum().item() == pytest.approx(1)
    expected = expected * counts.sum()
    assert expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, statistic / 2) > ERROR_RATE


def subset_counts(draw, size: int, count: int, times: int) -> list[int]:
    """How often each subset of ``count`` of ``size`` was drawn."""
    seen = Counter(tuple(sorted(draw())) for _ in range(times))
    subsets = list(itertools.combinations(range(size), count))
    assert set(seen) <= set(subsets)
    return [seen[s] for s in subsets]


def test_the_chi_square_test_itself_rejects():
    assert_distributed([250, 260, 240, 250], [0.25] * 4)
    with pytest.raises(AssertionError):
        assert_distributed([330, 220, 220, 230], [0.25] * 4)


@pytest.mark.parametrize("rate", [0.1, 0.29, 0.5, 0.999])
def test_exact_number_of_each_relation(rate):
    torch.manual_seed(0)
    counts = torch.tensor([0, 1, 2, 100, 7, 0, 333])
    relation = torch.repeat_interleave(torch.arange(7), counts)[torch.randperm(443)]
    quota = sampling.quota_positions(counts, rate)
    for _ in range(20):
        edges = sampling.sample_per_relation(relation, quota)
        assert len(set(edges.tolist())) == len(edges)
        found = relation[edges].bincount(minlength=7)
        assert found.tolist() == [int(rate * n) for n in counts.tolist()]


def test_more_relations_than_65535():
    relation = torch.arange(70_000).repeat_interleave(2)
    quota = sampling.quota_positions(torch.full((70_000,), 2), 0.5)
    edges = sampling.sample_per_relation(relation, quota)
    torch.testing.assert_close(relation[edges], torch.arange(70_000), rtol=0, atol=0)


def test_edges_of_a_relation_are_uniform_without_replacement():
    """All 20 subsets of 3 of 6, beside another relation that shares the draw."""
    torch.manual_seed(1)
    relation = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0, 1])
    quota = sampling.quota_positions(torch.tensor([3, 6]), 0.5)
    place = {edge: i for i, edge in enumerate((relation == 1).nonzero().flatten().tolist())}

    def draw():
        edges = sampling.sample_per_relation(relation, quota).tolist()
        return [place[e] for e in edges if e in place]

    assert_distributed(subset_counts(draw, 6, 3, 4000), [1 / 20] * 20)


def test_weighted_draws_have_the_probabilities_of_successive_draws():
    """P({i, j}) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j): what torch.multinomial draws."""
    torch.manual_seed(2)
    log_weight = torch.tensor([0.0, 1.0, -0.5, 1.7, 0.3])
    p = log_weight.double().softmax(0).tolist()
    expected = [
        p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j]))
        for i, j in itertools.combinations(range(5), 2)
    ]
    counts = subset_counts(lambda: sampling.sample_by_score(log_weight, 2).tolist(), 5, 2, 5000)
    assert_distributed(counts, expected)


def test_weights_far_apart_do_not_underflow():
    """softmax in float32 would give 0 to all but the first, and multinomial would raise."""
    log_weight = torch.tensor([2000.0, 1000.0, 500.0, 0.0])
    assert (log_weight.softmax(0)[1:] == 0).all()
    for _ in range(50):
        assert sorted(sampling.sample_by_score(log_weight, 2).tolist()) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gumbel_noise(dtype):
    torch.manual_seed(3)
    noise = sampling.gumbel_like(torch.zeros(100_000, dtype=dtype))
    assert noise.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Equal probabilities of ten intervals of exp(-exp(-x)), which is uniform.
    counts = (noise.neg().exp().neg().exp() * 10).long().clamp(max=9).bincount(minlength=10)
    assert_distributed(counts.tolist(), [0.1] * 10)


def test_masked_edges_are_the_largest_and_as_many_at_random():
    torch.manual_seed(4)
    score = torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    randoms = []
    for _ in range(3000):
        edges = sampling.mask_edges(score, 2).tolist()
        assert sorted(edges[:2]) == [1, 3]
        randoms.append(tuple(sorted(edges[2:])))
    stream = iter(randoms)
    assert_distributed(subset_counts(lambda: next(stream), 6, 2, 3000), [1 / 15] * 15)


def test_lowest_edges():
    score = torch.randn(101)
    lowest = sampling.lowest_edges(score, 0.3)
    assert sorted(lowest.tolist()) == sorted(score.argsort()[:30].tolist())
    assert sampling.lowest_edges(score, 0.0).numel() == 0
    assert sampling.lowest_edges(score[:0], 0.5).numel() == 0


def test_ties_do_not_change_the_count():
    assert sampling.lowest_edges(torch.zeros(1000), 0.5).unique().numel() == 500
    assert sampling.mask_edges(torch.zeros(1000), 200)[:200].unique().numel() == 200


# -- a whole step ---------------------------------------------------------------------------------


def count(mask):
    return int(mask.sum())


def test_masks_of_a_step(world):
    torch.manual_seed(5)
    model = world.model(cl_drop=0.3)
    quota = world.edge_type.bincount(minlength=5) // 2
    edges = int(quota.sum())
    distinct = set()
    for _ in range(30):
        masks = model.draw_masks()
        assert masks.sampled.dtype == masks.masked.dtype == masks.kept.dtype == torch.bool
        by_relation = model.kg.rel[masks.sampled].bincount(minlength=5)
        torch.testing.assert_close(by_relation, quota, rtol=0, atol=0)
        assert not (masks.masked & ~masks.sampled).any()
        assert 5 <= count(masks.masked) <= 10
        assert not (masks.contrast_edges & ~masks.sampled).any()
        assert count(masks.contrast_edges) == edges - int(0.3 * edges)
        # The five largest of the same noisy scores are never among the lowest.
        assert count(masks.masked & masks.contrast_edges) >= 5
        assert not (masks.contrast_interactions & ~masks.kept).any()
        assert count(masks.contrast_interactions) == int((1 - 0.3) * count(masks.kept))
        assert sorted(masks.permutation.tolist()) == list(range(12))
        assert masks.rng.dtype == torch.int64
        distinct.add(tuple(masks.sampled.tolist()))
    assert len(distinct) == 30


def test_one_noisy_score_decides_masking_and_contrast(world):
    """Of four edges the contrast keeps the one with the largest score + Gumbel noise: a draw from
    the softmax of the scores. The same edge is masked, beside one at random.
    """
    torch.manual_seed(8)
    sampler = world.model(mae_msize=1, cl_drop=0.75).sampler
    edges = torch.tensor([150, 3, 77, 20])
    score = torch.zeros(200)
    score[edges] = torch.tensor([0.0, 1.0, 2.0, 0.5])
    sampled = sampling.mask_of(edges, 200)
    kept, beside = torch.zeros(4), torch.zeros(4)
    for _ in range(2000):
        masks = sampler.draw(score, edges, sampled, None)
        (best,) = masks.contrast_edges.nonzero().flatten().tolist()
        assert masks.masked[best]
        kept += edges == best
        masks.masked[best] = False
        beside += masks.masked[edges]
    probability = score[edges].double().softmax(0)
    assert_distributed(kept.tolist(), probability.tolist())
    # The random one is another edge three times out of four.
    others = (1 - probability) / 4
    assert_distributed(
        [*beside.tolist(), 2000 - beside.sum().item()], [*others.tolist(), 1 - others.sum().item()]
    )


def test_nothing_is_sampled_at_rate_zero(world):
    masks = world.model(node_dropout_rate=0.0).draw_masks()
    assert masks.sampled is None
    assert masks.kept is None
    assert count(masks.contrast_edges) == 100
    assert count(masks.contrast_interactions) == 22


def test_interactions_are_not_dropped_in_evaluation_mode(world):
    masks = world.model().eval().draw_masks()
    assert masks.kept is None
    assert masks.sampled is not None


def test_each_interaction_is_kept_independently(world):
    torch.manual_seed(6)
    sampler = world.model(node_dropout_rate=0.3).sampler
    kept = torch.stack([sampler.sample_interactions()[:3] for _ in range(4000)])
    outcomes = (kept * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)
    expected = [0.7 ** bin(i).count("1") * 0.3 ** (3 - bin(i).count("1")) for i in range(8)]
    assert_distributed(outcomes.tolist(), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_item_scores(world, masked):
    model = world.model()
    kg = model.kg
    sampled = torch.rand(200) < 0.5 if masked else torch.ones(200, dtype=torch.bool)
    score = torch.where(sampled, torch.rand(200) * 3, 0.0)
    found = model.sampler.item_scores(score, sampled if masked else None)
    for item in range(12):
        mine = score[sampled & (kg.col == item)]
        mean = mine.mean().item() if len(mine) else 1.0
        assert found[item].item() == pytest.approx((1 + mean) / 2, rel=1e-6)


def test_item_scores_are_those_of_the_reference(world):
    """Where the mean by head, half of the published score, is computed and not known."""
    model = world.model().double()
    reference = world.reference(model)
    masks = model.draw_masks()
    ids = model.kg.perm[masks.sampled].long()
    edges, types = world.edge_index[:, ids], world.edge_type[ids]
    embedding = model.entity_embedding.weight
    wanted = reference.item_scores(edges, reference.gcn.norm_attn_computer(embedding, edges, types))
    score = model.gcn.norm_attn_computer(
        embedding, model.kg, edge_mask=model.kg.edge_mask(masks.sampled, "row")
    )
    found = model.sampler.item_scores(model.kg.to_row_order(score), masks.sampled)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_items_that_are_no_tails_have_the_score_one(world):
    world.edge_index[1] = world.edge_index[1].clamp(min=12)
    sampler = world.model().sampler
    torch.testing.assert_close(sampler.item_scores(torch.rand(200), None), torch.ones(12))


def test_contrast_interactions_are_drawn_as_published(world):
    """Inclusion frequencies of interactions against those of the published multinomial."""
    torch.manual_seed(7)
    model = world.model()
    score = torch.rand(12) * 4
    kept = torch.rand(45) < 0.6
    mine, times = torch.zeros(45), 3000
    for _ in range(times):
        mine += model.sampler._contrast_interactions(score, kept)
    assert (mine[~kept] == 0).all()
    reference = world.reference(model)
    inter = model.interactions
    pairs = torch.stack([inter.head, inter.col]).long()[:, kept]
    ids = kept.nonzero().flatten().double()
    theirs = torch.zeros(45)
    for _ in range(times):
        _, drawn = reference.adaptive_ui_drop_cl(score, pairs, ids)
        theirs[(drawn * 0.5).long()] += 1
    # Difference of two binomial frequencies: 27 of them, all within 4.7 standard deviations.
    p = (mine + theirs)[kept] / (2 * times)
    error = (mine - theirs)[kept].abs() / times / (2 * p * (1 - p) / times).sqrt()
    assert error.max() < 4.7
    assert p.max() - p.min() > 0.1  # and they do differ from each other


# -- the published methods, on edge lists ---------------------------------------------------------


def edge_set(edge_index, edge_type):
    return Counter(zip(*edge_index.tolist(), edge_type.tolist(), strict=True))


def test_relation_aware_edge_sampling(world):
    model = world.model()
    index, types = model.relation_aware_edge_sampling(sampling_rate=0.3)
    wanted = [int(0.3 * n) for n in world.edge_type.bincount(minlength=5).tolist()]
    assert types.bincount(minlength=5).tolist() == wanted
    assert index.dtype == types.dtype == torch.int64
    assert edge_set(index, types) <= edge_set(world.edge_index, world.edge_type)
    with pytest.raises(ValueError, match=r"sampling_rate is 1\.5"):
        model.relation_aware_edge_sampling(1.5)


def test_edge_sampling(world):
    index, types = world.model().edge_sampling(world.edge_index, world.edge_type, 0.77)
    assert index.shape == (2, 154)
    assert types.shape == (154,)
    assert edge_set(index, types) <= edge_set(world.edge_index, world.edge_type)


def test_mae_edge_mask_adapt_mixed(world):
    top = torch.tensor([3, 50, 199])
    rest, rest_type, masked, masked_type, mask = world.model().mae_edge_mask_adapt_mixed(
        world.edge_index, world.edge_type, top
    )
    assert mask[top].all()
    assert 3 <= count(mask) <= 6
    torch.testing.assert_close(masked, world.edge_index[:, mask], rtol=0, atol=0)
    torch.testing.assert_close(masked_type, world.edge_type[mask], rtol=0, atol=0)
    torch.testing.assert_close(rest, world.edge_index[:, ~mask], rtol=0, atol=0)
    torch.testing.assert_close(rest_type, world.edge_type[~mask], rtol=0, atol=0)


def test_adaptive_kg_drop_cl_is_that_of_the_reference(world):
    model = world.model(cl_drop=0.3)
    score = torch.randn(200)
    arguments = (world.edge_index, world.edge_type, score)
    found = model.adaptive_kg_drop_cl(*arguments)
    wanted = world.reference(cl_drop=0.3).adaptive_kg_drop_cl(*arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert found[1].shape == (140,)


def test_adaptive_ui_drop_cl(world):
    model = world.model(cl_drop=0.2)
    weight = torch.arange(45.0)
    pairs, scaled = model.adaptive_ui_drop_cl(torch.rand(12), world.inter_edge, weight)
    assert pairs.shape == (2, 36)
    ids = (scaled * 0.8).round().long()
    assert ids.unique().numel() == 36
    torch.testing.assert_close(pairs, world.inter_edge[:, ids], rtol=0, atol=0)


def test_create_mae_loss_is_that_of_the_reference_and_does_not_overflow(world):
    pairs, relation = torch.randn(6, 2, 8).double(), torch.randn(6, 8).double()
    model, reference = world.model(), world.reference()
    for arguments in ((pairs, relation), (pairs,)):
        torch.testing.assert_close(
            model.create_mae_loss(*arguments), reference.create_mae_loss(*arguments)
        )
    far = torch.tensor([[[20.0] * 8, [-20.0] * 8]])
    assert model.create_mae_loss(far) == 3200


def test_get_edges(world):
    model = world.model()
    wanted = (world.edge_index, world.edge_type)
    torch.testing.assert_close(model.get_edges(world.kg), wanted, rtol=0, atol=0)
    coo = SimpleNamespace(
        row=world.edge_index[0].numpy().astype(np.int32),
        col=world.edge_index[1].numpy().astype(np.int32),
        data=world.edge_type.numpy().astype(np.float32),
    )
    torch.testing.assert_close(model.get_edges(coo), wanted, rtol=0, atol=0)
    torch.testing.assert_close((model.edge_index, model.edge_type), wanted, rtol=0, atol=0)
