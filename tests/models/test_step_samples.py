"""The draws of a training step: exact counts, and the distributions they are meant to have.

Those of the ops that draw are tested in tests/ops. Distributions are tested by chi-square at an
error rate of 1e-4 for each test; seeds are fixed.
"""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kgrec_fast.ops._edge_masks import among

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


def test_the_chi_square_test_itself_rejects():
    assert_distributed([250, 260, 240, 250], [0.25] * 4)
    with pytest.raises(AssertionError):
        assert_distributed([330, 220, 220, 230], [0.25] * 4)


# -- a whole step ---------------------------------------------------------------------------------


def count(mask):
    return int(mask.sum())


def steps(number: int, seed: int = 9):
    """`rng` of so many steps."""
    return [torch.tensor([seed, step]) for step in range(number)]


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
        assert masks.slots.shape == masks.slot_weight.shape == (10,)
        assert masks.slots[masks.slot_weight == 1].unique().numel() == count(masks.masked)
        assert among(masks.slots, 200).equal(masks.masked)
        assert count(masks.slot_weight == 1) == count(masks.masked)
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
    model = world.model(mae_msize=1, cl_drop=0.75)
    model.sampler.num_sampled, model.sampler.num_contrast_edges = 4, 1
    edges = torch.tensor([150, 3, 77, 20])
    score = torch.zeros(200)
    score[edges] = torch.tensor([0.0, 1.0, 2.0, 0.5])
    sampled = among(edges, 200)
    kept, beside = torch.zeros(4), torch.zeros(4)
    for rng in steps(2000):
        masks = model.sampler.draw(score, model.kg, sampled, None, rng)
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
    sampler = world.model(node_dropout_rate=0.3).sampler
    kept = torch.stack([sampler.sample_interactions(rng)[:3] for rng in steps(4000)])
    outcomes = (kept * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8)
    expected = [0.7 ** bin(i).count("1") * 0.3 ** (3 - bin(i).count("1")) for i in range(8)]
    assert_distributed(outcomes.tolist(), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_item_scores(world, masked):
    model = world.model()
    kg = model.kg
    sampled = torch.rand(200) < 0.5 if masked else torch.ones(200, dtype=torch.bool)
    score = torch.where(sampled, torch.rand(200) * 3, 0.0)
    found = model.sampler.item_scores(score, kg, sampled if masked else None)
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
    in_row_order = model.kg.to_row_order(score)
    found = model.sampler.item_scores(in_row_order, model.kg, masks.sampled)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_items_that_are_no_tails_have_the_score_one(world):
    world.edge_index[1] = world.edge_index[1].clamp(min=12)
    model = world.model()
    found = model.sampler.item_scores(torch.rand(200), model.kg, None)
    torch.testing.assert_close(found, torch.ones(12))


def test_contrast_interactions_are_drawn_as_published(world):
    """Inclusion frequencies of interactions against those of the published multinomial."""
    torch.manual_seed(7)
    model = world.model()
    score, kept = torch.rand(200) * 4, torch.rand(45) < 0.6
    item_score = model.sampler.item_scores(score, model.kg, None)
    mine, times = torch.zeros(45), 3000
    for rng in steps(times):
        masks = model.sampler.draw(score, model.kg, model.kg.rel >= 0, kept, rng)
        mine += masks.contrast_interactions
    assert (mine[~kept] == 0).all()
    reference = world.reference(model)
    inter = model.interactions
    pairs = torch.stack([inter.head, inter.col]).long()[:, kept]
    ids = kept.nonzero().flatten().double()
    theirs = torch.zeros(45)
    for _ in range(times):
        _, drawn = reference.adaptive_ui_drop_cl(item_score, pairs, ids)
        theirs[(drawn * 0.5).long()] += 1
    # Difference of two binomial frequencies: 27 of them, all within 4.7 standard deviations.
    p = (mine + theirs)[kept] / (2 * times)
    error = (mine - theirs)[kept].abs() / times / (2 * p * (1 - p) / times).sqrt()
    assert error.max() < 4.7
    assert p.max() - p.min() > 0.1  # and they do differ from each other


def test_a_step_is_a_function_of_rng_alone(world):
    model = world.model()
    draws = [model.draw_masks(torch.tensor(rng)) for rng in ((1, 2), (1, 2), (1, 3), (2, 2))]
    for name, value in vars(draws[0]).items():
        assert torch.equal(value, getattr(draws[1], name)), name
        if name not in ("slot_weight",):
            assert not torch.equal(value, getattr(draws[2], name)), name
            assert not torch.equal(value, getattr(draws[3], name)), name


def test_published_quirks(world):
    """The last relation is never sampled, and node_dropout_rate keeps interactions."""
    model = world.model(node_dropout_rate=0.3, published_quirks=True)
    quota = (world.edge_type.bincount(minlength=5) * 0.3).long()
    assert quota[-1] > 0
    quota[-1] = 0
    assert model.sampler.num_sampled == quota.sum()
    kept = 0
    for rng in steps(200):
        masks = model.draw_masks(rng)
        by_relation = model.kg.rel[masks.sampled].bincount(minlength=5)
        torch.testing.assert_close(by_relation, quota, rtol=0, atol=0)
        kept += count(masks.kept)
    # Of 45 * 200 draws 0.3 are kept: within 4.9 standard deviations, an error rate of 1e-6.
    assert abs(kept / 9000 - 0.3) < 4.9 * (0.3 * 0.7 / 9000) ** 0.5
    assert world.model(node_dropout_rate=0.0, published_quirks=True).draw_masks().sampled is None


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
